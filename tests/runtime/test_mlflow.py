"""A folder as MLflow writes it: its model is found, its signature and example are used."""

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import xgboost as xgb
import yaml
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from pilotage_runtime.contract import Contract, TensorSpec, refine
from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.mlflow import Signature, signature

ROWS, CLASSES = load_iris(return_X_y=True)
COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]
SIGNATURE = {"inputs": json.dumps([{"type": "double", "name": name} for name in COLUMNS]), "outputs": "[]"}


def folder(path: Path, flavors: dict[str, Any], **more: Any) -> Path:
    document = {
        "artifact_path": "model",
        "flavors": {"python_function": {"loader_module": "m"}, **flavors},
        **more,
    }
    (path / "MLmodel").write_text(yaml.safe_dump(document))
    (path / "conda.yaml").write_text("name: mlflow-env")
    (path / "requirements.txt").write_text("mlflow")
    return path


def booster(path: Path) -> None:
    xgb.XGBClassifier(n_estimators=3, n_jobs=1).fit(ROWS, CLASSES).save_model(path)


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(StartFailure) as failure:
        detect(path, Stage.VERIFY)
    return failure.value.reason, failure.value.message


def test_names_and_example_come_from_mlflow(tmp_path: Path) -> None:
    booster(tmp_path / "model.xgb.ubj")
    (tmp_path / "input_example.json").write_text(json.dumps({"columns": COLUMNS, "data": ROWS[:2].tolist()}))
    folder(
        tmp_path,
        {"xgboost": {"data": "model.xgb.ubj"}},
        signature=SIGNATURE,
        saved_input_example_info={"artifact_path": "input_example.json", "type": "dataframe"},
    )
    found = detect(tmp_path, Stage.LOAD)
    assert (found.path.name, found.format, found.folder) == ("model.xgb.ubj", "XGBoost", tmp_path)
    contract = refine(by_format.load(found, LoadOptions(threads=1)).contract(), found.folder)
    assert contract.feature_names == tuple(COLUMNS)
    assert contract.sample_request == {
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 4], "data": ROWS[:2].ravel().tolist()}]
    }
    # What a person wrote counts first.
    (tmp_path / "contract.json").write_text(json.dumps({"feature_names": ["a", "b", "c", "d"]}))
    assert refine(contract, tmp_path).feature_names == ("a", "b", "c", "d")


def test_a_pickled_flavour_is_code_like_any_other(tmp_path: Path) -> None:
    joblib.dump(LogisticRegression(max_iter=500).fit(ROWS, CLASSES), tmp_path / "model.pkl")
    folder(tmp_path, {"sklearn": {"pickled_model": "model.pkl"}})
    assert refusal(tmp_path)[0] == "UntrustedFormat"
    assert detect(tmp_path, Stage.LOAD, trusted=True).format == "Joblib"


def test_an_example_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    booster(tmp_path / "m.ubj")
    for columns, data in (
        (COLUMNS, [[1, 2]]),
        (COLUMNS, [["a", 1, 2, 3]]),
        (COLUMNS, "no"),
        (COLUMNS, [[1, 2, 3, True]]),
        (COLUMNS[::-1], [[1, 2, 3, 4]]),
        (COLUMNS, [[1, 2, 3, float("nan")]]),
    ):
        (tmp_path / "input_example.json").write_text(json.dumps({"columns": columns, "data": data}))
        folder(
            tmp_path,
            {"xgboost": {"data": "m.ubj"}},
            signature=SIGNATURE,
            saved_input_example_info={"artifact_path": "input_example.json"},
        )
        found = detect(tmp_path, Stage.LOAD)
        contract = refine(by_format.load(found, LoadOptions(threads=1)).contract(), tmp_path)
        assert contract.sample_request is None


def test_of_an_example_a_model_of_so_many_rows_takes_that_many(tmp_path: Path) -> None:
    (tmp_path / "input_example.json").write_text(json.dumps({"columns": COLUMNS, "data": ROWS[:3].tolist()}))
    folder(tmp_path, {}, saved_input_example_info={"artifact_path": "input_example.json"})
    samples = [
        refine(Contract((TensorSpec("X", "FP32", (rows, 4)),), ()), tmp_path).sample_request
        for rows in (2, 3, 4)
    ]
    assert [sample["inputs"][0]["shape"] if sample else None for sample in samples] == [[2, 4], [3, 4], None]
    assert samples[0] is not None
    assert samples[0]["inputs"][0]["data"] == ROWS[:2].ravel().tolist()


def test_an_example_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_text(json.dumps({"columns": COLUMNS, "data": ROWS[:1].tolist()}))
    inside = tmp_path / "model"
    inside.mkdir()
    for name in ("../theirs.json", str(tmp_path / "theirs.json")):
        folder(inside, {}, signature=SIGNATURE, saved_input_example_info={"artifact_path": name})
        assert signature(inside) == Signature(columns=tuple(COLUMNS), rows=())


def test_names_that_the_model_has_itself_count_before_mlflows(tmp_path: Path) -> None:
    own = Contract((TensorSpec("X", "FP32", (-1, 4)),), (), feature_names=("a", "b", "c", "d"))
    assert refine(own, folder(tmp_path, {}, signature=SIGNATURE)).feature_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("flavors", "sentence"),
    [
        ({"spark": {}}, "its flavors are python_function, spark, served are onnx"),
        ({"onnx": {"data": "../secret"}}, "'../secret', which is not inside its folder"),
        ({"onnx": {"data": "model.onnx"}}, "'model.onnx', which is not there"),
        ({"onnx": {"data": "."}}, "'.', which is not inside its folder"),
        ({"onnx": {"data": "a\0b"}}, r"'a\x00b', which is no file's name"),
        ({"onnx": {"data": "x" * 300}}, "', which is no file's name"),
    ],
)
def test_a_folder_that_cannot_be_served_says_why(
    tmp_path: Path, flavors: dict[str, Any], sentence: str
) -> None:
    (tmp_path.parent / "secret").write_bytes(b"")
    assert sentence in refusal(folder(tmp_path, flavors))[1]


def test_broken_yaml_is_a_bad_model(tmp_path: Path) -> None:
    for text in (
        "a: [", "- a", "!!python/object/apply:os.mkdir [x]", "at: 2021-13-45", f"at: {'1' * 5000}", "at: !!int ''",
        "at: !!bool perhaps", "at: !!timestamp now", "[" * 3000,
    ):  # fmt: skip
        (tmp_path / "MLmodel").write_text(text)
        assert refusal(tmp_path)[0] == "InvalidModel"


def test_yaml_that_names_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(f"flavors: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert "MLmodel is no YAML" in refusal(tmp_path)[1]
    assert not (tmp_path / "made").exists()


def test_a_document_beyond_every_measure_is_not_parsed(tmp_path: Path) -> None:
    booster(tmp_path / "m.ubj")
    folder(tmp_path, {"xgboost": {"data": "m.ubj"}}, notes="x" * (2 << 20))
    assert "MLmodel is larger than" in refusal(tmp_path)[1]


def test_rows_of_an_example_are_inferred(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((models / "iris" / "1" / "model.onnx").read_bytes())
    folder(tmp_path, {"onnx": {"data": "model.onnx"}}, signature=SIGNATURE)
    model = by_format.load(detect(tmp_path, Stage.LOAD), LoadOptions(threads=1))
    assert refine(model.contract(), tmp_path).feature_names == tuple(COLUMNS)
    assert len(model.run({"X": ROWS.astype(np.float32)}, ["output_label"])[0]) == len(ROWS)
