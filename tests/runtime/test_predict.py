"""Rows with names instead of tensors: one or many, refused in words of the row and the feature."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.features import Feature
from pilotage_runtime.protocol import rows
from tests.runtime.conftest import Server, Servers
from tests.runtime.test_repository import scale

ROW = {
    "sepal length (cm)": 5.1,
    "sepal width (cm)": 3.5,
    "petal length (cm)": 1.4,
    "petal width (cm)": 0.2,
}


@pytest.fixture(scope="module")
def iris(models: Path, serve_for_module: Servers) -> Server:
    return serve_for_module(models / "iris" / "1", "iris", max_body_bytes=10_000)


def test_one_row_gets_one_prediction_with_labels(iris: Server) -> None:
    answer = iris.client.post("/predict", json=ROW)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["version"]) == ("iris", "1")
    assert body["prediction"]["output_label"] == 0
    probabilities = body["prediction"]["output_probability"]
    assert max(probabilities, key=lambda label: probabilities[label]) == "setosa"


def test_several_rows_get_as_many_in_their_order(iris: Server) -> None:
    other = {**ROW, "petal length (cm)": 5.2, "petal width (cm)": 2.3}
    for path in ("/predict", "/models/iris/predict", "/models/iris/versions/1/predict"):
        answer = iris.client.post(path, json=[ROW, other])
        assert [one["output_label"] for one in answer.json()["predictions"]] == [0, 2]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (
            {**ROW, "petal width (cm)": "wide"},
            400,
            "row 0: 'petal width (cm)' should be a number, but str 'wide' came",
        ),
        (
            [ROW, {**ROW, "petal width (cm)": None}],
            400,
            "row 1: 'petal width (cm)' should be a number, but nothing",
        ),
        ({**ROW, "petal width (cm)": True}, 400, "should be a number, but bool 'True' came"),
        (
            {**ROW, "colour": 1},
            400,
            "row 0: 'colour' is unknown; a row has sepal length (cm), sepal width (cm)",
        ),
        ([ROW, {}], 400, "row 1: 'sepal length (cm)' is missing; 'sepal width (cm)' is missing"),
        ([], 400, "an object with a value for each feature, or a list of such objects"),
        (7, 400, "an object with a value for each feature, or a list of such objects"),
        ([7], 400, "row 0 should be an object"),
        ([ROW] * 500, 413, "the body is larger than 10000 bytes"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_a_sentence(
    iris: Server, body: Any, status: int, sentence: str
) -> None:
    answer = iris.client.post("/predict", json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert sentence in answer.json()["error"]


def test_what_is_no_json_or_not_served_is_refused(iris: Server) -> None:
    assert iris.client.post("/predict", content=b"{").status_code == 400
    assert (
        iris.client.post("/predict", content=b"{}", headers={"content-type": "text/csv"}).status_code == 415
    )
    assert iris.client.post("/models/other/predict", json=ROW).status_code == 404
    assert iris.client.post("/models/iris/versions/9/predict", json=ROW).status_code == 404
    assert iris.client.get("/predict").status_code == 405


def test_predictions_enter_the_same_metrics(iris: Server) -> None:
    before = {code: iris.metric("inference_requests_total", code=code) for code in ("200", "400")}
    iris.client.post("/predict", json=[ROW, ROW])
    iris.client.post("/predict", json={})
    assert iris.metric("inference_requests_total", code="200") == before["200"] + 1
    assert iris.metric("inference_requests_total", code="400") == before["400"] + 1
    assert iris.metric("inference_requests_in_flight") == 0


def test_the_paths_are_typed_in_the_docs_and_the_example_works(iris: Server) -> None:
    paths = iris.client.get("/openapi.json").json()["paths"]
    for path in ("/predict", "/models/iris/predict", "/models/iris/versions/1/predict"):
        media = paths[path]["post"]["requestBody"]["content"]["application/json"]
        row = media["schema"]["oneOf"][0]
        assert row["required"] == list(ROW)
        assert row["properties"]["petal width (cm)"]["type"] == "number"
        assert iris.client.post(path, json=media["example"]).status_code == 200


def test_versions_and_health(iris: Server) -> None:
    assert iris.client.get("/models/iris/versions").json() == {
        "model": "iris", "default": "1", "versions": [{"version": "1", "ready": True}],
    }  # fmt: skip
    assert iris.client.get("/health").json() == {"status": "ok", "model_loaded": True}
    assert iris.client.get("/models/other/versions").status_code == 404


def test_with_several_models_one_is_to_be_chosen(tmp_path: Path, serve: Servers) -> None:
    for name in ("double", "triple"):
        scale(tmp_path / "repository" / name / "1" / "model.onnx", 2 if name == "double" else 3)
    server = serve(tmp_path / "repository")
    assert server.client.post("/models/triple/predict", json={"x": 2}).json()["prediction"] == {"y": 6}
    refused = server.client.post("/predict", json={"x": 2})
    assert refused.status_code == 404
    assert refused.json()["error"].endswith("choose one: /models/double/predict, /models/triple/predict")


def test_ranges_are_enforced_and_shown(models: Path, tmp_path: Path, serve: Servers) -> None:
    folder = tmp_path / "iris"
    folder.mkdir()
    (folder / "model.onnx").write_bytes((models / "iris" / "1" / "model.onnx").read_bytes())
    features = [{"name": name, "minimum": 0, "maximum": 10, "unit": "cm"} for name in ROW]
    (folder / "contract.json").write_text(json.dumps({"features": features}))
    server = serve(folder, "iris")
    answer = server.client.post("/predict", json={**ROW, "petal width (cm)": 40})
    assert answer.status_code == 400
    assert "petal width (cm)" in answer.json()["error"]
    assert "40" in answer.json()["error"]
    assert "0 to 10" in answer.json()["error"]
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [5, 3, 1, 40]}
    assert server.infer({"inputs": [tensor]}).status_code == 400
    shown = server.client.get("/v2/models/iris").json()["parameters"]["features"]
    assert shown[0] == features[0]
    schema = server.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
    stated = schema["content"]["application/json"]["schema"]["oneOf"][0]["properties"]["petal width (cm)"]
    assert stated == {"type": "number", "minimum": 0, "maximum": 10, "description": "in cm"}


# Contracts of other shapes.


def several() -> Contract:
    return Contract(
        inputs=(
            TensorSpec("age", "INT64", (-1, 1)),
            TensorSpec("city", "BYTES", (-1,)),
            TensorSpec("image", "FP32", (-1, 2, 2)),
            TensorSpec("member", "BOOL", (-1,)),
        ),
        outputs=(TensorSpec("score", "FP32", (-1, 1)), TensorSpec("text", "BYTES", (-1,))),
        features=(Feature("city", categories=("Bern", "Ulm")),),
    )


def test_several_inputs_are_the_names_of_a_row() -> None:
    row = {"age": 3, "city": "Ulm", "image": [[1, 2], [3, 4]], "member": True}
    inputs, single = rows.read([row, row], several())
    assert not single
    assert {name: list(array.shape) for name, array in inputs.items()} == {
        "age": [2, 1], "city": [2], "image": [2, 2, 2], "member": [2],
    }  # fmt: skip
    assert inputs["image"][1].tolist() == [[1, 2], [3, 4]]
    for wrong in ({"age": 3.5}, {"city": 1}, {"member": 1}, {"image": [[1, 2], [3]]}, {"image": 5}):
        with pytest.raises(Refused):
            rows.read({**row, **wrong}, several())
    schema = rows.row_schema(several())["properties"]
    assert schema["city"] == {"type": "string", "enum": ["Bern", "Ulm"]}
    assert (schema["age"]["type"], schema["member"]["type"]) == ("integer", "boolean")
    rows.read(rows.example(several()), several())


def test_columns_of_one_are_single_values_in_the_answer() -> None:
    values = [np.array([[0.5], [0.25]], np.float32), np.array(["a", b"b"], object)]
    assert rows.write(several().outputs, values, 2) == [
        {"score": 0.5, "text": "a"},
        {"score": 0.25, "text": "b"},
    ]


def test_an_output_that_has_not_a_row_for_each_is_for_tensors() -> None:
    with pytest.raises(Refused, match="output 'score' is not made of rows; send tensors"):
        rows.write(several().outputs[:1], [np.zeros((3, 1), np.float32)], 2)


def test_labels_name_the_columns_only_where_they_are_as_many() -> None:
    spec = TensorSpec("p", "FP32", (-1, -1), labels=("no", "yes"))
    two, three = np.array([[0.25, 0.75]], np.float32), np.array([[0.25, 0.25, 0.5]], np.float32)
    assert rows.write([spec], [two], 1) == [{"p": {"no": 0.25, "yes": 0.75}}]
    assert rows.write([spec], [three], 1) == [{"p": [0.25, 0.25, 0.5]}]


def test_more_rows_than_are_taken_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROWS", 2)
    described = Contract((TensorSpec("x", "FP32", (-1,)),), ())
    assert rows.count(rows.read([{"x": 1}] * 2, described)[0]) == 2
    with pytest.raises(Refused, match="3 rows came; at most 2 are taken") as refused:
        rows.read([{"x": 1}] * 3, described)
    assert refused.value.status == 413


def test_a_missing_value_is_null_only_where_the_contract_allows_it() -> None:
    allowing = Contract((TensorSpec("x", "FP32", (-1,), allow_non_finite=True),), ())
    assert np.isnan(rows.read({"x": None}, allowing)[0]["x"][0])
    with pytest.raises(Refused, match="row 0: 'x' should be a number, but nothing came"):
        rows.read({"x": None}, Contract((TensorSpec("x", "FP32", (-1,)),), ()))


def test_a_dimension_that_the_contract_leaves_open_is_as_long_as_what_came() -> None:
    described = Contract((TensorSpec("words", "INT64", (-1, -1, 2)),), ())
    inputs, _ = rows.read([{"words": [[1, 2], [3, 4], [5, 6]]}] * 2, described)
    assert inputs["words"].shape == (2, 3, 2)
    assert inputs["words"][1].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_flat_array_fills_the_shape_of_one_row() -> None:
    described = Contract((TensorSpec("words", "INT64", (-1, -1, 2)),), ())
    inputs, _ = rows.read({"words": [1, 2, 3, 4, 5, 6]}, described)
    assert inputs["words"].tolist() == [[[1, 2], [3, 4], [5, 6]]]


@pytest.mark.parametrize(
    ("shape", "values", "sentence"),
    [
        ((-1, -1), [[1, 2], [3, 4, 5, 6]], r"row 1: 'x' has shape \[4\], but row 0 has \[2\].*pad them"),
        ((-1, 3), [[1, 2], [3, 4, 5, 6]], r"row 0: 'x' has shape \[2\], \[3\] is expected"),
        ((-1, 2, 3), [[[1, 2, 3]], [[1, 2, 3]] * 3], r"row 0: 'x' has shape \[1, 3\], \[2, 3\] is expected"),
        ((-1, 2, 3), [[[1, 2], [3, 4], [5, 6]]], r"row 0: 'x' has shape \[3, 2\], \[2, 3\] is expected"),
        ((-1, 2, 3), [[[1, 2], [3, 4, 5, 6]]], "row 0: 'x' is an uneven array"),
        ((-1, -1, 2), [[1, 2, 3]], r"row 0: 'x' has shape \[3\], \[-1, 2\] is expected \(-1 is any size\)"),
        ((-1, -1, -1), [[1, 2, 3, 4]], r"row 0: 'x' has shape \[4\], \[-1, -1\] is expected"),
    ],
)
def test_no_row_gets_elements_of_another_nor_a_shape_of_its_own(
    shape: tuple[int, ...], values: list[Any], sentence: str
) -> None:
    """All of them together hold as many elements as their shape needs."""
    with pytest.raises(Refused, match=sentence):
        rows.read([{"x": value} for value in values], Contract((TensorSpec("x", "FP32", shape),), ()))


def test_the_example_of_an_open_dimension_is_one_long() -> None:
    described = Contract(
        (TensorSpec("words", "INT64", (-1, -1, 2)), TensorSpec("mask", "BOOL", (-1, -1))), ()
    )
    assert rows.example(described) == {"words": [[0, 0]], "mask": [False]}


def test_the_example_is_the_samples_first_row() -> None:
    tensor = {"name": "X", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
    described = Contract((TensorSpec("X", "FP32", (-1, 2)),), (), ("a", "b"), {"inputs": [tensor]})
    assert rows.example(described) == {"a": 1, "b": 2}


def test_inputs_that_are_not_made_of_rows_are_for_tensors() -> None:
    with pytest.raises(Refused, match="not made of rows"):
        rows.read({"x": 1}, Contract((TensorSpec("x", "FP32", (3,)),), ()))


@pytest.mark.parametrize("depth", [60, 1020])
def test_a_value_nested_however_deep_is_refused(depth: int) -> None:
    value = orjson.loads(b"[" * depth + b"]" * depth)
    with pytest.raises(Refused, match="row 0: 'age' should be an integer, but a list of 1 came"):
        rows.read({"age": value, "city": "Ulm", "image": [[1, 2], [3, 4]], "member": True}, several())
    with pytest.raises(Refused):
        rows.read({"age": 1, "city": "Ulm", "image": value, "member": True}, several())


def test_a_packed_body_is_told_where_it_is_taken(iris: Server) -> None:
    packed = gzip.compress(json.dumps(ROW).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = iris.client.post("/predict", content=packed, headers=headers)
    assert answer.status_code == 415
    assert "/v2/models/MODEL/infer takes gzip" in answer.json()["error"]
