"""Formats that are code: what is trusted runs, what is not does not run at all."""

import hashlib
import json
import os
import pickle
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from pilotage_runtime import digest
from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions, Model, StreamingModel

ROWS, CLASSES = load_iris(return_X_y=True)
TRAINED = LogisticRegression(max_iter=1000).fit(ROWS, CLASSES)
CONTRACT = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}
X = {"x": np.array([1, 2, 3], np.float32)}


class Weapon:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def trusted(path: Path, stated: str | None = None) -> Model:
    found = detect(path, Stage.LOAD, stated, trusted=True)
    return by_format.load(found, LoadOptions(threads=1, trusted=True, digest=of(path)))


def of(path: Path) -> str:
    if path.is_file():
        return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return digest.digest(path)


def refusal(act: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(StartFailure) as failure:
        act()
    return failure.value.reason, failure.value.message


def dump(path: Path, how: str) -> Path:
    if how == "pickle":
        path.write_bytes(pickle.dumps(TRAINED))
    else:
        joblib.dump(
            TRAINED, path, compress=("zlib", 3) if how == "joblib" else (how, 3) if how != "plain" else 0
        )
    return path


@pytest.mark.parametrize(
    ("how", "kind"),
    [("pickle", "Pickle"), ("plain", "Joblib"), ("joblib", "Joblib"), ("gzip", "Joblib"), ("bz2", "Joblib"),
     ("xz", "Joblib"), ("lzma", "Joblib")],
)  # fmt: skip
def test_a_trusted_pickle_answers_as_its_estimator_does(tmp_path: Path, how: str, kind: str) -> None:
    path = dump(tmp_path / "any.onnx", how)
    assert detect(tmp_path, Stage.LOAD, trusted=True).format == kind
    for place in (path, tmp_path):
        model = trusted(place)
        assert model.platform == f"python_{kind.lower()}"
        label, probabilities = model.run({"X": ROWS}, ["label", "probabilities"])
        assert label.tolist() == TRAINED.predict(ROWS).tolist()
        np.testing.assert_array_equal(probabilities, TRAINED.predict_proba(ROWS))
    assert refusal(lambda: detect(path, Stage.VERIFY))[0] == "UntrustedFormat"


@pytest.mark.parametrize("kind", ["Pickle", "Joblib"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (LoadOptions(1), "UntrustedFormat"),
        (LoadOptions(1, trusted=True), "UntrustedFormat"),
        (LoadOptions(1, digest="sha256:" + "0" * 64), "UntrustedFormat"),
        (LoadOptions(1, trusted=True, digest="sha256:" + "0" * 64), "DigestMismatch"),
    ],
)
def test_a_hostile_pickle_does_not_run(tmp_path: Path, kind: str, options: LoadOptions, reason: str) -> None:
    fired = tmp_path / "fired"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Weapon(fired)))
    found = detect(tmp_path / "model.pkl", Stage.LOAD, kind, trusted=True)
    assert refusal(lambda: by_format.load(found, options))[0] == reason
    assert not fired.exists()
    # The control: it is a weapon.
    trusted_reason, message = refusal(lambda: trusted(tmp_path / "model.pkl", kind))
    assert fired.exists()
    assert (trusted_reason, "holds a NoneType, which cannot predict" in message) == ("InvalidModel", True)


def test_a_pickle_that_fails_to_load_is_a_failed_load(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04cnowhere.to_be_found\nThing\n.")
    reason, message = refusal(lambda: trusted(tmp_path / "model.pkl"))
    assert reason == "LoadFailed"
    assert "No module named 'nowhere'" in message
    assert "the image needs the library" in message


def test_a_pickle_in_memory_is_vouched_for_by_its_encrypted_file(tmp_path: Path) -> None:
    path = dump(tmp_path / "model", "pickle")
    held = path.read_bytes()
    path.write_bytes(b"encrypted")
    found = detect(path, Stage.LOAD, trusted=True, opened=lambda _: held)
    model = by_format.load(found, LoadOptions(threads=1, trusted=True, digest=of(path)))
    assert model.run({"X": ROWS}, ["label"])[0].tolist() == TRAINED.predict(ROWS).tolist()


def written(folder: Path, source: str, contract: Mapping[str, Any] = CONTRACT) -> Path:
    (folder / "model.py").write_text(source)
    (folder / "contract.json").write_text(json.dumps(contract))
    return folder


def test_a_class_loads_what_lies_beside_it_and_predicts(tmp_path: Path) -> None:
    (tmp_path / "factor.txt").write_text("3")
    (tmp_path / "arithmetic.py").write_text("def times(a, b):\n    return a * b\n")
    source = """
from arithmetic import times

class Triple:
    def load(self, folder):
        self.factor = float((folder / "factor.txt").read_text())
    def preprocess(self, inputs):
        return inputs["x"]
    def predict(self, x):
        return times(x, self.factor)
    def postprocess(self, y):
        return {"y": y + 1}
"""
    model = trusted(written(tmp_path, source))
    assert model.platform == "python_class"
    assert not isinstance(model, StreamingModel)
    answer = model.run(X, ["y"])[0]
    assert (answer.dtype, answer.tolist()) == (np.float32, [4, 7, 10])
    assert not (tmp_path / "__pycache__").exists()
    assert trusted(tmp_path).run(X, ["y"])[0].tolist() == [4, 7, 10]


def test_a_class_may_change_its_inputs_in_place(tmp_path: Path) -> None:
    source = """
class Model:
    def preprocess(self, inputs):
        inputs["x"] -= 1
        return inputs["x"]

    def predict(self, x):
        x *= 2
        return x
"""
    model = trusted(written(tmp_path, source))
    sent = np.frombuffer(np.array([1, 2, 3], np.float32).tobytes(), np.float32)  # as a request's own bytes
    assert model.run({"x": sent}, ["y"])[0].tolist() == [0, 2, 4]
    assert sent.tolist() == [1, 2, 3]


def test_an_untrusted_class_is_not_imported(tmp_path: Path) -> None:
    fired = tmp_path.parent / f"{tmp_path.name}-fired"
    written(tmp_path, f"open({str(fired)!r}, 'w')\nclass A:\n    def predict(self, x): return x\n")
    reason, message = refusal(lambda: detect(tmp_path, Stage.VERIFY))
    assert (reason, message.startswith("model.py is a Python class, which is code")) == (
        "UntrustedFormat",
        True,
    )
    found = detect(tmp_path, Stage.LOAD, trusted=True)
    for options in (
        LoadOptions(1),
        LoadOptions(1, trusted=True),
        LoadOptions(1, trusted=True, digest="sha256:0"),
    ):
        assert refusal(lambda options=options: by_format.load(found, options))[0] in {
            "UntrustedFormat",
            "DigestMismatch",
        }
    assert not fired.exists()
    trusted(tmp_path)
    assert fired.exists()


STREAM = """
class Words:
    def predict(self, inputs, parameters):
        self.closed = 0
        try:
            for value in inputs["x"][: parameters.get("most", 99)]:
                yield {"y": [value]}
        finally:
            self.closed += 1
"""


def test_a_generator_is_a_stream_and_closing_it_closes_the_class(tmp_path: Path) -> None:
    model: Any = trusted(written(tmp_path, STREAM))
    assert isinstance(model, StreamingModel)
    assert [piece["y"].tolist() for piece in model.stream(X, {"most": 2})] == [[1], [2]]
    assert model._instance.closed == 1
    stream: Any = model.stream(X, {})
    assert next(stream)["y"].tolist() == [1]
    assert model._instance.closed == 0
    stream.close()
    assert model._instance.closed == 1
    assert model.run(X, ["y"])[0].tolist() == [1, 2, 3]


def test_streams_take_turns_step_by_step(tmp_path: Path) -> None:
    model: Any = trusted(written(tmp_path, STREAM))
    first, second = model.stream(X, {}), model.stream(X, {})
    assert [next(first)["y"][0], next(second)["y"][0], next(first)["y"][0]] == [1, 1, 2]


@pytest.mark.parametrize(("says", "together"), [("", 1), ("thread_safe = True", 2)])
def test_one_call_runs_at_a_time_unless_the_class_says_otherwise(
    tmp_path: Path, says: str, together: int
) -> None:
    source = f"""
import threading, time
class Busy:
    {says}
    running, most, lock = 0, 0, threading.Lock()
    def predict(self, inputs):
        with self.lock:
            Busy.running += 1
            Busy.most = max(Busy.most, Busy.running)
        time.sleep(0.1)
        with self.lock:
            Busy.running -= 1
        return inputs["x"]
"""
    model: Any = trusted(written(tmp_path, source))
    both = threading.Barrier(2)

    def call() -> None:
        both.wait()
        model.run(X, ["y"])

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(call), pool.submit(call)]:
            done.result()
    assert type(model._instance).most == together


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1", "should hold one class with a method predict, or one called Model; it holds none"),
        (
            "class A:\n def predict(self, x): pass\nclass B(A): pass",
            "it holds A, B",
        ),
        ("raise SystemExit(3)", "model.py failed at load: SystemExit: 3"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("class A:\n def load(self, f): 1/0\n def predict(self, x): pass", "ZeroDivisionError"),
    ],
)
def test_a_class_that_does_not_load_says_why(tmp_path: Path, source: str, sentence: str) -> None:
    assert sentence in refusal(lambda: trusted(written(tmp_path, source)))[1]


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ("{'z': 1}", "output y is missing; came: z"),
        ("(1, 2)", "2 outputs came, 1 are in the contract"),
        ("['a']", "output 'y' should be FP32, but is <U1"),
    ],
)
def test_an_answer_outside_the_contract_is_the_models_failure(
    tmp_path: Path, returned: str, sentence: str
) -> None:
    source = f"class A:\n def predict(self, x): return {returned}"
    model = trusted(written(tmp_path, source))
    with pytest.raises(ValueError, match=sentence):
        model.run(X, ["y"])


def test_a_class_needs_its_contract(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class A:\n def predict(self, x): return x")
    assert "contract.json is missing: model.py does not say" in refusal(lambda: trusted(tmp_path))[1]


def test_a_folder_with_a_class_and_an_onnx_file_needs_its_format_stated(tmp_path: Path, models: Path) -> None:
    written(tmp_path, "class A:\n def predict(self, x): return x['x']")
    (tmp_path / "encoder.onnx").write_bytes((models / "iris" / "1" / "model.onnx").read_bytes())
    assert "state the format, Python or ONNX" in refusal(lambda: detect(tmp_path, Stage.LOAD))[1]
    assert trusted(tmp_path, "Python").run(X, ["y"])[0].tolist() == [1, 2, 3]
    assert detect(tmp_path, Stage.LOAD, "ONNX").format == "ONNX"
