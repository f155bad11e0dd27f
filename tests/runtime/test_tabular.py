"""Models of rows and columns, from their own formats: answers are those of the library itself."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost as cb
import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import skops.io as sio
import xgboost as xgb
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from pilotage_runtime.contract import refine
from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format, lightgbm_text
from pilotage_runtime.loaders.base import LoadOptions, Model

OPTIONS = LoadOptions(threads=1)
IRIS: Any = load_iris(as_frame=True)
THREE, THREE_CLASSES = IRIS.data.to_numpy(np.float32), IRIS.target.to_numpy()
TWO, TWO_CLASSES = load_breast_cancer(return_X_y=True)
NUMBERS, TARGET = load_diabetes(return_X_y=True)
TREES: dict[str, Any] = {"n_estimators": 5, "max_depth": 3, "n_jobs": 1, "random_state": 7}
CAT: dict[str, Any] = {"iterations": 5, "random_seed": 7, "verbose": 0, "allow_writing_files": False}


def loaded(path: Path, options: LoadOptions = OPTIONS, **found: Any) -> Model:
    return by_format.load(detect(path, Stage.LOAD, **found), options)


def names(model: Model) -> tuple[str, ...]:
    return tuple(spec.name for spec in model.contract().outputs)


def infer(model: Model, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Infer as the engine does: checked types, every output fitting its own contract."""
    contract = model.contract()
    values = model.run({"X": rows.astype(contract.inputs[0].dtype)}, names(model))
    for spec, value in zip(contract.outputs, values, strict=True):
        assert value.dtype == spec.dtype, spec
        assert len(value.shape) == len(spec.shape), spec
        assert all(known in (-1, size) for known, size in zip(spec.shape, value.shape, strict=True)), spec
    return dict(zip(names(model), values, strict=True))


def refusal(act: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(StartFailure) as failure:
        act()
    return failure.value.reason, failure.value.message


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize(("rows", "target"), [(THREE, THREE_CLASSES), (TWO, TWO_CLASSES)], ids=["3", "2"])
def test_xgboost_classifies(tmp_path: Path, form: str, rows: np.ndarray, target: np.ndarray) -> None:
    trained = xgb.XGBClassifier(**TREES).fit(rows, target)
    trained.save_model(tmp_path / f"model.{form}")
    model = loaded(tmp_path)
    answer = infer(model, rows)
    assert answer["label"].tolist() == trained.predict(rows).tolist()
    np.testing.assert_array_equal(answer["probabilities"], trained.predict_proba(rows))


@pytest.mark.parametrize("booster", ["gblinear", "dart"])
@pytest.mark.parametrize(("rows", "target"), [(THREE, THREE_CLASSES), (TWO, TWO_CLASSES)], ids=["3", "2"])
def test_xgboosts_other_boosters_classify_too(
    tmp_path: Path, booster: str, rows: np.ndarray, target: np.ndarray
) -> None:
    trained = xgb.XGBClassifier(n_estimators=5, n_jobs=1, booster=booster).fit(rows, target)
    trained.save_model(tmp_path / "model.ubj")
    answer = infer(loaded(tmp_path), rows)
    assert answer["label"].tolist() == trained.predict(rows).tolist()
    np.testing.assert_array_equal(answer["probabilities"], trained.predict_proba(rows))


@pytest.mark.parametrize("booster", ["gbtree", "dart", "gblinear"])
def test_xgboost_that_stopped_early_answers_with_its_best_trees(tmp_path: Path, booster: str) -> None:
    settings = {"n_estimators": 40, "learning_rate": 0.9, "early_stopping_rounds": 3, "n_jobs": 1}
    trained = xgb.XGBRegressor(**settings, booster=booster)
    trained.fit(NUMBERS[:300], TARGET[:300], eval_set=[(NUMBERS[300:], TARGET[300:])], verbose=False)
    assert trained.best_iteration + 1 < trained.get_booster().num_boosted_rounds()
    trained.save_model(tmp_path / "model.ubj")
    rows = NUMBERS.astype(np.float32)
    np.testing.assert_array_equal(infer(loaded(tmp_path), rows)["prediction"], trained.predict(rows))


@pytest.mark.parametrize("best", ["-1", "5", "the last"])
def test_an_xgboost_model_whose_best_iteration_is_none_of_its_own_is_refused(
    tmp_path: Path, best: str
) -> None:
    booster = xgb.train({"nthread": 1}, xgb.DMatrix(NUMBERS, TARGET), 5)
    booster.set_attr(best_iteration=best)
    booster.save_model(tmp_path / "model.ubj")
    reason, message = refusal(lambda: loaded(tmp_path))
    assert reason == "InvalidModel"
    assert best in message


def test_xgboost_regresses_and_knows_its_features(tmp_path: Path) -> None:
    data = xgb.DMatrix(NUMBERS, TARGET, feature_names=[f"f{at}" for at in range(10)])
    booster = xgb.train({"max_depth": 3, "nthread": 1}, data, 5)
    booster.save_model(tmp_path / "any name.ubj")
    model = loaded(tmp_path)
    assert names(model) == ("prediction",)
    assert model.contract().feature_names == tuple(f"f{at}" for at in range(10))
    np.testing.assert_array_equal(infer(model, NUMBERS)["prediction"], booster.predict(data))


def test_a_missing_value_is_part_of_a_tree_models_contract(tmp_path: Path) -> None:
    rows = THREE.copy()
    rows[::3, 1] = np.nan
    trained = xgb.XGBClassifier(**TREES).fit(rows, THREE_CLASSES)
    trained.save_model(tmp_path / "model.ubj")
    model = loaded(tmp_path)
    assert model.contract().inputs[0].allow_non_finite
    np.testing.assert_array_equal(infer(model, rows)["probabilities"], trained.predict_proba(rows))


@pytest.mark.parametrize(("rows", "target"), [(THREE, THREE_CLASSES), (TWO, TWO_CLASSES)], ids=["3", "2"])
def test_lightgbm_classifies(tmp_path: Path, rows: np.ndarray, target: np.ndarray) -> None:
    trained = lgb.LGBMClassifier(**TREES, verbose=-1).fit(rows, target)
    trained.booster_.save_model(tmp_path / "model.txt")
    model = loaded(tmp_path)
    assert model.contract().feature_names == ()
    answer = infer(model, rows)
    assert answer["label"].tolist() == trained.predict(rows).tolist()
    np.testing.assert_array_equal(answer["probabilities"], trained.predict_proba(rows))


def test_lightgbm_regresses_and_knows_its_features(tmp_path: Path) -> None:
    data = lgb.Dataset(NUMBERS, TARGET, feature_name=[f"f{at}" for at in range(10)])
    booster = lgb.train({"verbose": -1, "num_threads": 1}, data, 5)
    booster.save_model(tmp_path / "model")
    model = loaded(tmp_path)
    assert model.contract().feature_names == tuple(f"f{at}" for at in range(10))
    np.testing.assert_array_equal(infer(model, NUMBERS)["prediction"], booster.predict(NUMBERS))


@pytest.mark.parametrize(
    ("rows", "target", "label"),
    [
        (THREE, THREE_CLASSES, "INT64"),
        (THREE, np.array(["setosa", "versicolor", "virginica"])[THREE_CLASSES], "BYTES"),
        (TWO, TWO_CLASSES, "INT64"),
    ],
    ids=["3", "3 names", "2"],
)
def test_catboost_classifies(tmp_path: Path, rows: np.ndarray, target: np.ndarray, label: str) -> None:
    trained = cb.CatBoostClassifier(**CAT).fit(rows, target)
    trained.save_model(str(tmp_path / "model.cbm"))
    model = loaded(tmp_path)
    spec = model.contract().output_by_name
    assert spec["label"].datatype == label
    assert spec["probabilities"].labels == tuple(str(name) for name in trained.classes_)
    answer = infer(model, rows)
    assert answer["label"].tolist() == trained.predict(rows).reshape(-1).tolist()
    np.testing.assert_array_equal(answer["probabilities"], trained.predict_proba(rows))


def test_catboost_regresses(tmp_path: Path) -> None:
    trained = cb.CatBoostRegressor(**CAT).fit(NUMBERS, TARGET)
    trained.save_model(str(tmp_path / "model.cbm"))
    np.testing.assert_array_equal(
        infer(loaded(tmp_path), NUMBERS)["prediction"], trained.predict(NUMBERS.astype(np.float32))
    )


@pytest.mark.parametrize("loss", ["Poisson", "Tweedie:variance_power=1.5", "RMSEWithUncertainty", "MAE"])
def test_catboost_answers_in_the_unit_of_its_target(tmp_path: Path, loss: str) -> None:
    trained = cb.CatBoostRegressor(**CAT, loss_function=loss).fit(NUMBERS, TARGET)
    trained.save_model(str(tmp_path / "model.cbm"))
    rows = NUMBERS.astype(np.float32)
    np.testing.assert_array_equal(infer(loaded(tmp_path), rows)["prediction"], trained.predict(rows))


def test_a_sum_of_catboost_models_answers_as_catboost_does(tmp_path: Path) -> None:
    one = cb.CatBoostRegressor(**CAT, loss_function="Poisson").fit(NUMBERS, TARGET)
    both = cb.sum_models([one, one])
    both.save_model(str(tmp_path / "model.cbm"))
    rows = NUMBERS.astype(np.float32)
    np.testing.assert_array_equal(infer(loaded(tmp_path), rows)["prediction"], both.predict(rows))


@pytest.mark.parametrize(("classes", "datatype"), [([0.5, 1.5], "FP64"), ([False, True], "BOOL")])
def test_catboosts_labels_keep_their_type(tmp_path: Path, classes: list[Any], datatype: str) -> None:
    trained = cb.CatBoostClassifier(**CAT).fit(TWO, np.array(classes)[TWO_CLASSES])
    trained.save_model(str(tmp_path / "model.cbm"))
    model = loaded(tmp_path)
    assert model.contract().output_by_name["label"].datatype == datatype
    assert infer(model, TWO)["label"].tolist() == trained.predict(TWO).tolist()


def in_xgboost(folder: Path, rows: np.ndarray, classes: np.ndarray) -> Any:
    trained = xgb.XGBClassifier(**TREES).fit(rows, classes)
    trained.save_model(folder / "model.ubj")
    return trained


def in_catboost(folder: Path, rows: np.ndarray, classes: np.ndarray) -> Any:
    trained = cb.CatBoostClassifier(**CAT, loss_function="MultiLogloss").fit(rows, classes)
    trained.save_model(str(folder / "model.cbm"))
    return trained


def in_scikit_learn(folder: Path, rows: np.ndarray, classes: np.ndarray) -> Any:
    trained = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(rows, classes)
    skops_file(folder, trained)
    return trained


@pytest.mark.parametrize("train", [in_xgboost, in_catboost, in_scikit_learn])
def test_a_row_that_may_be_of_many_classes_has_a_label_for_each(
    tmp_path: Path, train: Callable[[Path, np.ndarray, np.ndarray], Any]
) -> None:
    trained = train(tmp_path, THREE, (THREE.mean(axis=0) < THREE).astype(int)[:, :3])
    model = loaded(tmp_path)
    shapes = {spec.name: spec.shape for spec in model.contract().outputs}
    assert shapes == {"label": (-1, 3), "probabilities": (-1, 3)}
    answer = infer(model, THREE)
    assert answer["label"].tolist() == trained.predict(THREE).tolist()
    np.testing.assert_allclose(answer["probabilities"], trained.predict_proba(THREE), atol=1e-5)


def test_catboost_with_categories_takes_an_input_for_each_feature(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"size": THREE[:, 0], "colour": np.array(["red", "green", "blue"])[np.arange(150) % 3]}
    )
    trained = cb.CatBoostClassifier(**CAT, cat_features=["colour"]).fit(table, THREE_CLASSES)
    trained.save_model(str(tmp_path / "model.cbm"))
    model = loaded(tmp_path)
    assert [(spec.name, spec.datatype) for spec in model.contract().inputs] == [
        ("size", "FP32"),
        ("colour", "BYTES"),
    ]
    columns = {"colour": table["colour"].to_numpy(object), "size": THREE[:, 0]}
    np.testing.assert_array_equal(model.run(columns, ["probabilities"])[0], trained.predict_proba(table))


def skops_file(folder: Path, estimator: Any) -> Path:
    sio.dump(estimator, folder / "model.skops")
    return folder


@pytest.mark.parametrize("target", [THREE_CLASSES, np.array(["a", "b", "c"])[THREE_CLASSES]], ids=["0", "a"])
def test_scikit_learn_classifies(tmp_path: Path, target: np.ndarray) -> None:
    trained = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(THREE, target)
    model = loaded(skops_file(tmp_path, trained))
    answer = infer(model, THREE)
    assert model.contract().output_by_name["probabilities"].labels == tuple(str(x) for x in trained.classes_)
    assert answer["label"].tolist() == trained.predict(THREE).tolist()
    np.testing.assert_array_equal(answer["probabilities"], trained.predict_proba(THREE.astype(np.float64)))


def test_scikit_learn_regresses_with_one_number_a_row_or_several(tmp_path: Path) -> None:
    for target, shape in ((TARGET, (-1,)), (np.stack((TARGET, -TARGET), axis=1), (-1, 2))):
        trained = LinearRegression().fit(NUMBERS, target)
        model = loaded(skops_file(tmp_path, trained))
        assert model.contract().outputs[0].shape == shape
        np.testing.assert_allclose(infer(model, NUMBERS)["prediction"], trained.predict(NUMBERS))


def test_a_classifier_without_probabilities_answers_labels_alone(tmp_path: Path) -> None:
    trained = SVC().fit(THREE, THREE_CLASSES)
    model = loaded(skops_file(tmp_path, trained))
    assert infer(model, THREE)["label"].tolist() == trained.predict(THREE).tolist()
    assert names(model) == ("label",)


def test_a_forest_trained_on_all_cpus_is_served_with_one(tmp_path: Path) -> None:
    trained = make_pipeline(StandardScaler(), RandomForestClassifier(5, n_jobs=-1)).fit(THREE, THREE_CLASSES)
    model: Any = loaded(
        skops_file(tmp_path, trained),
        LoadOptions(1, trusted_types=tuple(sio.get_untrusted_types(data=sio.dumps(trained)))),
    )
    assert model._estimator.get_params()["randomforestclassifier__n_jobs"] == 1


def test_columns_of_mixed_types_are_inputs_once_the_contract_states_them(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"size": THREE[:, 0].astype(float), "colour": np.array(["red", "blue"] * 75, object)}
    )
    trained = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough"),
        LogisticRegression(max_iter=1000),
    ).fit(table, THREE_CLASSES)
    skops_file(tmp_path, trained)
    stated = [
        {"name": "size", "datatype": "FP64", "shape": [-1]},
        {"name": "colour", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    (tmp_path / "contract.json").write_text(json.dumps({"inputs": stated}))
    model = loaded(tmp_path, LoadOptions(threads=1, trusted_types=_types(tmp_path)))
    assert refine(model.contract(), tmp_path) == model.contract()
    columns = {"size": table["size"].to_numpy(), "colour": table[["colour"]].to_numpy(object)}
    np.testing.assert_allclose(
        model.run(columns, ["probabilities"])[0], trained.predict_proba(table), rtol=1e-6
    )
    stated[0]["name"] = "width"
    (tmp_path / "contract.json").write_text(json.dumps({"inputs": stated}))
    reason, message = refusal(
        lambda: loaded(tmp_path, LoadOptions(threads=1, trusted_types=_types(tmp_path)))
    )
    assert (reason, "trained on size, colour" in message) == ("InvalidModel", True)


def _types(folder: Path) -> tuple[str, ...]:
    return tuple(sio.get_untrusted_types(file=folder / "model.skops"))


def test_a_model_of_named_columns_without_a_contract_shows_one_to_write(tmp_path: Path) -> None:
    table = pd.DataFrame({"age": [20.0, 40.0, 60.0, 80.0], "kids": [1, 2, 0, 3]})
    trained = make_pipeline(
        make_column_transformer((StandardScaler(), ["age", "kids"])), LogisticRegression()
    )
    sio.dump(trained.fit(table, [0, 0, 1, 1]), tmp_path / "model")
    with pytest.raises(
        StartFailure, match=r"takes a table.*contract\.json.*BYTES for text, such as"
    ) as refused:
        by_format.load(detect(tmp_path, Stage.LOAD), LoadOptions(threads=1))
    shown = refused.value.message.partition("such as ")[2]
    (tmp_path / "contract.json").write_text(shown)
    model = by_format.load(detect(tmp_path / "model", Stage.LOAD), LoadOptions(threads=1))
    assert [spec.name for spec in model.contract().inputs] == ["age", "kids"]


def test_the_contract_may_choose_the_matrix_type(tmp_path: Path) -> None:
    skops_file(tmp_path, LinearRegression().fit(NUMBERS, TARGET))
    (tmp_path / "contract.json").write_text(
        json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 10]}]})
    )
    model = loaded(tmp_path)
    assert refine(model.contract(), tmp_path).inputs[0].datatype == "FP32"
    assert infer(model, NUMBERS)["prediction"].dtype == np.float64


def test_skops_types_are_trusted_one_by_one_and_none_is_made_before(tmp_path: Path) -> None:
    forest = RandomForestClassifier(5).fit(THREE, THREE_CLASSES)
    types = _types(skops_file(tmp_path, forest))
    assert types
    reason, message = refusal(lambda: loaded(tmp_path))
    assert reason == "UntrustedFormat"
    assert message.startswith(f"model.skops holds types that are not trusted: {', '.join(sorted(types))}; ")
    assert "trustedTypes" in message
    assert names(loaded(tmp_path, LoadOptions(threads=1, trusted_types=types))) == ("label", "probabilities")


@pytest.mark.parametrize(
    ("write", "library"),
    [
        (
            lambda path: xgb.XGBClassifier(**TREES).fit(THREE, THREE_CLASSES).save_model(path / "m.ubj"),
            "xgboost",
        ),
        (
            lambda path: xgb.XGBClassifier(**TREES).fit(THREE, THREE_CLASSES).save_model(path / "m.json"),
            "xgboost",
        ),
        (
            lambda path: (
                lgb.LGBMClassifier(**TREES, verbose=-1)
                .fit(THREE, THREE_CLASSES)
                .booster_.save_model(path / "m.txt")
            ),
            "lightgbm",
        ),
        (
            lambda path: (
                cb.CatBoostClassifier(**CAT).fit(THREE, THREE_CLASSES).save_model(str(path / "m.cbm"))
            ),
            "catboost",
        ),
        (lambda path: skops_file(path, LinearRegression().fit(NUMBERS, TARGET)), "sklearn"),
    ],
    ids=["ubj", "json", "lightgbm", "catboost", "skops"],
)
class TestEveryFormat:
    def test_a_model_in_memory_needs_no_file(self, write: Any, library: str, tmp_path: Path) -> None:
        write(tmp_path)
        path = next(path for path in tmp_path.iterdir())
        before, held = loaded(tmp_path).contract(), path.read_bytes()
        path.write_bytes(b"encrypted")
        assert loaded(path, opened=lambda _: held).contract() == before

    def test_a_missing_library_names_the_extra_that_brings_it(
        self, write: Any, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path)
        found = detect(tmp_path, Stage.LOAD)
        module = by_format._LOADERS[found.format].module
        monkeypatch.delitem(sys.modules, f"pilotage_runtime.loaders.{module}", raising=False)
        monkeypatch.setitem(sys.modules, "skops.io" if library == "sklearn" else library, None)
        reason, message = refusal(lambda: by_format.load(found, OPTIONS))
        assert reason == "LoadFailed"
        assert message.endswith(f"pip install 'pilotage[{library}]'")

    def test_a_cut_file_is_refused(self, write: Any, library: str, tmp_path: Path) -> None:
        write(tmp_path)
        path = next(path for path in tmp_path.iterdir())
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert refusal(lambda: loaded(tmp_path))[0] in {"InvalidModel", "UnknownFormat"}

    def test_what_a_format_cannot_do_is_said(self, write: Any, library: str, tmp_path: Path) -> None:
        write(tmp_path)
        for options in (LoadOptions(1, device="cuda"), LoadOptions(1, precision="float16")):
            reason, message = refusal(lambda options=options: loaded(tmp_path, options))
            assert reason == "LoadFailed"
            assert "was asked for, but" in message


DAMAGED = """
import sys
from pathlib import Path
from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format, lightgbm_text
from pilotage_runtime.loaders.base import LoadOptions

for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, flush=True)
    try:
        by_format.load(detect(path, Stage.LOAD), LoadOptions(threads=1)).contract()
    except StartFailure as failure:
        print("refused", failure.reason, flush=True)
"""


def test_damaged_skops_and_xgboost_files_are_refused_and_never_crash(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    sio.dump(LinearRegression().fit(NUMBERS, TARGET), tmp_path / "whole" / "skops")
    xgb.XGBClassifier(**TREES).fit(THREE, THREE_CLASSES).save_model(tmp_path / "whole" / "json.json")
    chance = random.Random(7)
    (tmp_path / "damaged").mkdir()
    for path in (tmp_path / "whole").iterdir():
        for at in range(30):
            content = bytearray(path.read_bytes())
            for _ in range(chance.randint(1, 6)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            (tmp_path / "damaged" / f"{path.stem}{at}").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED, str(tmp_path / "damaged")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("left_child", lambda value: "0" + value[1:]),  # a node that is its own child: no end
        ("split_feature", lambda value: "99" + value[1:]),
        ("leaf_value", lambda value: value.rpartition(" ")[0]),
        ("threshold", lambda value: "x" + value[1:]),
    ],
)
def test_a_lightgbm_tree_that_leads_nowhere_is_refused_before_lightgbm_sees_it(
    tmp_path: Path, field: str, change: Callable[[str], str]
) -> None:
    text = lgb.LGBMClassifier(**TREES, verbose=-1).fit(THREE, THREE_CLASSES).booster_.model_to_string()
    before = next(line for line in text.splitlines() if line.startswith(f"{field}="))
    after = f"{field}={change(before.partition('=')[2])}"
    first = next(line for line in text.splitlines() if line.startswith("tree_sizes="))
    size = int(first.partition("=")[2].split()[0])
    resized = first.replace(f"={size}", f"={size + len(after) - len(before)}", 1)
    (tmp_path / "model.txt").write_text(text.replace(before, after, 1).replace(first, resized, 1))
    reason, message = refusal(lambda: loaded(tmp_path))
    assert (reason, f"tree 0: {field}" in message) == ("InvalidModel", True), message


def test_what_lightgbm_writes_passes_its_vetting() -> None:
    chance = np.random.default_rng(7)
    rows = chance.normal(size=(400, 3))
    rows[:, 2] = chance.integers(0, 40, 400)
    target = rows[:, 0] + rows[:, 2] % 3
    for stated in ({}, {"linear_tree": True}, {"min_data_in_leaf": 400}):
        data = lgb.Dataset(rows, target, categorical_feature=[2])
        booster = lgb.train({"verbose": -1, "num_threads": 1, **stated}, data, 4)
        lightgbm_text.vet(booster.model_to_string())
