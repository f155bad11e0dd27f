"""contract.json refines what the model says, and may not contradict it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pilotage_runtime.contract import Contract, TensorSpec, complete, refine
from pilotage_runtime.failure import StartFailure

MODEL = Contract(
    inputs=(TensorSpec("X", "FP32", (-1, -1)),),
    outputs=(TensorSpec("label", "INT64", (-1,)), TensorSpec("p", "FP32", (-1, 2))),
)


def refined(folder: Path, stated: Any) -> Contract:
    (folder / "contract.json").write_text(stated if isinstance(stated, str) else json.dumps(stated))
    return refine(MODEL, folder)


def test_without_the_file_the_model_speaks_for_itself(tmp_path: Path) -> None:
    assert refine(MODEL, tmp_path) == MODEL


def test_a_shape_is_narrowed_labels_and_names_are_added(tmp_path: Path) -> None:
    contract = refined(
        tmp_path,
        {
            "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "p", "parameters": {"labels": ["no", "yes"], "allow_non_finite": True}}],
            "feature_names": ["age", "amount"],
        },
    )
    assert contract.input_by_name["X"].shape == (-1, 2)
    assert contract.output_by_name["p"].metadata()["parameters"] == {
        "labels": ["no", "yes"],
        "allow_non_finite": True,
    }
    assert contract.feature_names == ("age", "amount")
    # The labels make it the tensor of probabilities, whatever its name.
    assert contract.probability is not None
    assert contract.probability.name == "p"


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ("{", "contract.json: the file: Invalid JSON"),
        ({"input": []}, "contract.json: input: Extra inputs are not permitted"),
        ({"feature_names": ["age", "age"]}, "feature_names: 'age' is there twice"),
        (
            {"inputs": [{"name": "X", "shape": [-1, 2]}], "feature_names": ["age"]},
            "feature_names: 1 are stated, but input 'X' has 2 columns",
        ),
        ({"sample": {"request": {}, "response": {"output": []}}}, "sample.response.outputs: Field required"),
        (
            {"sample": {"request": {}, "response": {"outputs": ["p"]}}},
            "sample.response.outputs.0: Input should",
        ),
        (
            {"sample": {"request": {}, "response": {"outputs": [{"name": "p"}]}}},
            "sample.response.outputs.0.data: Field required",
        ),
        ({"inputs": [{"name": "Y"}]}, "inputs: 'Y' is no tensor of the model, which has ['X']"),
        ({"inputs": [{"name": "X", "datatype": "FP64"}]}, "inputs.X: datatype FP64, but the model's is FP32"),
        (
            {"outputs": [{"name": "p", "shape": [-1, 3]}]},
            "outputs.p: shape [-1, 3] contradicts the model's [-1, 2]",
        ),
        (
            {"outputs": [{"name": "p", "shape": [-1]}]},
            "outputs.p: shape [-1] contradicts the model's [-1, 2]",
        ),
        (
            {"inputs": [{"name": "X", "shape": [-2]}]},
            "inputs.0.shape.0: Input should be greater than or equal to -1",
        ),
    ],
)
def test_a_contradiction_stops_the_start(tmp_path: Path, stated: Any, sentence: str) -> None:
    with pytest.raises(StartFailure) as failure:
        refined(tmp_path, stated)
    assert sentence in failure.value.message
    assert (failure.value.stage, failure.value.reason) == ("Load", "InvalidModel")


def test_a_file_beyond_every_measure_is_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(StartFailure) as failure:
        refined(tmp_path, "{" + " " * (16 << 20) + "}")
    assert "contract.json: the file is larger than" in failure.value.message


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "is_probability"),
    [
        ("probabilities", "FP32", (-1, 3), True),
        ("output_probability", "FP64", (-1, 2), True),
        ("probabilities", "FP32", (-1,), False),
        ("probabilities", "INT64", (-1, 3), False),
        ("score", "FP32", (-1, 3), False),
    ],
)
def test_the_tensor_of_probabilities_is_known_by_name_and_form(
    name: str, datatype: str, shape: tuple[int, ...], is_probability: bool
) -> None:
    contract = Contract(inputs=(), outputs=(TensorSpec(name, datatype, shape),))
    assert (contract.probability is not None) == is_probability


def test_where_a_row_may_be_of_many_classes_none_is_the_likeliest() -> None:
    probabilities = TensorSpec("probabilities", "FP32", (-1, 2))
    one, both = TensorSpec("label", "INT64", (-1,)), TensorSpec("label", "INT64", (-1, 2))
    assert Contract((), (one, probabilities)).probability == probabilities
    several = Contract((), (both, probabilities))
    assert (several.probability, several.label) == (None, None)


def test_an_answer_as_the_server_gave_it_may_be_the_expected_one(tmp_path: Path) -> None:
    output = {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}
    response = {"model_name": "fraud", "id": "7", "outputs": [output]}
    contract = refined(tmp_path, {"sample": {"request": {"inputs": []}, "response": response}})
    assert contract.sample_response == response


def test_features_name_the_columns_and_fix_their_number(tmp_path: Path) -> None:
    contract = refined(
        tmp_path,
        {
            "features": [
                {"name": "age", "minimum": 0, "maximum": 120, "unit": "years"},
                {"name": "kind", "categories": [1, 2]},
            ]
        },
    )
    assert contract.input_by_name["X"].shape == (-1, 2)
    assert contract.feature_names == ("age", "kind")
    assert contract.parameters() == {
        "feature_names": ["age", "kind"],
        "features": [
            {"name": "age", "minimum": 0.0, "maximum": 120.0, "unit": "years"},
            {"name": "kind", "categories": [1, 2]},
        ],
    }
    assert len(contract.bounded_columns) == 1


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ([{"name": "a", "minimum": 2, "maximum": 1}], "features.a: minimum 2 is above maximum 1"),
        ([{"name": "a"}, {"name": "a"}], "features: 'a' is there twice"),
        ([{"name": "a", "categories": ["x"]}], "features.a: its categories are not of input 'X', FP32"),
        ([{"name": "a", "min": 1}], "features.0.min: Extra inputs are not permitted"),
    ],
)
def test_features_that_make_no_sense_stop_the_start(
    tmp_path: Path, features: list[Any], sentence: str
) -> None:
    with pytest.raises(StartFailure, match=sentence):
        refined(tmp_path, {"features": features})


def test_features_must_be_as_many_as_the_columns_or_named_like_the_inputs(tmp_path: Path) -> None:
    wide = Contract(inputs=(TensorSpec("X", "FP32", (-1, 3)),), outputs=())
    (tmp_path / "contract.json").write_text(json.dumps({"features": [{"name": "a"}]}))
    with pytest.raises(StartFailure, match="features: 1 are stated, but input 'X' has 3 columns"):
        refine(wide, tmp_path)
    two = Contract(inputs=(TensorSpec("x", "BYTES", (-1,)), TensorSpec("y", "FP32", (-1,))), outputs=())
    with pytest.raises(StartFailure, match="features: 'a' is none of the inputs x, y"):
        refine(two, tmp_path)
    (tmp_path / "contract.json").write_text(json.dumps({"features": [{"name": "x", "minimum": 1}]}))
    with pytest.raises(StartFailure, match="input 'x' is BYTES, for which only categories count"):
        refine(two, tmp_path)
    (tmp_path / "contract.json").write_text(json.dumps({"features": [{"name": "a"}], "feature_names": ["b"]}))
    with pytest.raises(StartFailure, match="leave feature_names out"):
        refine(MODEL, tmp_path)


def test_a_model_that_says_nothing_needs_the_file_and_a_template_shows_it(tmp_path: Path) -> None:
    with pytest.raises(StartFailure) as failure:
        complete(tmp_path, "TorchScript", ("image",))
    assert failure.value.message.startswith(
        "contract.json is missing: TorchScript does not say which tensors it takes and gives"
    )
    template = json.loads(failure.value.message.partition("such as ")[2])
    (tmp_path / "contract.json").write_text(json.dumps(template))
    contract = complete(tmp_path, "TorchScript", ("image",))
    assert contract.inputs == (TensorSpec("image", "FP32", (-1, 4)),)
    assert refine(contract, tmp_path) == contract
    with pytest.raises(StartFailure, match="inputs: image are stated, but TorchScript takes a, b"):
        complete(tmp_path, "TorchScript", ("a", "b"))
    del template["inputs"][0]["shape"]
    (tmp_path / "contract.json").write_text(json.dumps(template))
    with pytest.raises(StartFailure, match=r"inputs.image: datatype and shape are needed"):
        complete(tmp_path, "TorchScript")
