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

from pilotage_runtime.contract import refine
from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions

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
    for data in ([[1, 2]], [["a", 1, 2, 3]], "no", [[1, 2, 3, True]]):
        (tmp_path / "input_example.json").write_text(json.dumps({"columns": COLUMNS, "data": data}))
        folder(
            tmp_path,
            {"xgboost": {"data": "m.ubj"}},
            signature=SIGNATURE,
            saved_input_example_info={"artifact_path": "input_example.json"},
        )
        found = detect(tmp_path, Stage.LOAD)
        contract = refine(by_format.load(found, LoadOptions(threads=1)).contract(), tmp_path)
        assert contract.sample_request is None


@pytest.mark.parametrize(
    ("flavors", "sentence"),
    [
        ({"spark": {}}, "its flavors are python_function, spark, served are onnx"),
        ({"onnx": {"data": "../secret"}}, "'../secret', which is outside its folder"),
        ({"onnx": {"data": "model.onnx"}}, "'model.onnx', which is not there"),
    ],
)
def test_a_folder_that_cannot_be_served_says_why(
    tmp_path: Path, flavors: dict[str, Any], sentence: str
) -> None:
    (tmp_path.parent / "secret").write_bytes(b"")
    assert sentence in refusal(folder(tmp_path, flavors))[1]


def test_broken_yaml_is_a_bad_model(tmp_path: Path) -> None:
    for text in ("a: [", "- a", "!!python/object/apply:os.mkdir [x]"):
        (tmp_path / "MLmodel").write_text(text)
        assert refusal(tmp_path)[0] == "InvalidModel"


def test_rows_of_an_example_are_inferred(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((models / "iris" / "1" / "model.onnx").read_bytes())
    folder(tmp_path, {"onnx": {"data": "model.onnx"}}, signature=SIGNATURE)
    model = by_format.load(detect(tmp_path, Stage.LOAD), LoadOptions(threads=1))
    assert refine(model.contract(), tmp_path).feature_names == tuple(COLUMNS)
    assert len(model.run({"X": ROWS.astype(np.float32)}, ["output_label"])[0]) == len(ROWS)
