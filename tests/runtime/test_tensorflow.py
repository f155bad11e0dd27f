"""SavedModels: TensorFlow's own answers, in a process of their own, for the library changes global state."""

import subprocess
import sys
from pathlib import Path

import pytest

from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions

BUILD = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf

out = Path(sys.argv[1])
tf.random.set_seed(7)

class Network(tf.Module):
    def __init__(self):
        self.weights = tf.Variable(tf.random.normal([4, 3]))
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([None], tf.string, "t")])
    def both(self, x, t):
        return {"probabilities": tf.nn.softmax(x @ self.weights), "text": tf.strings.upper(t)}
class Reader(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string, "path")])
    def read(self, path):
        return {"content": tf.io.read_file(path)}

network = Network()
tf.saved_model.save(network, out / "good", signatures=network.both)
reader = Reader()
tf.saved_model.save(reader, out / "reads", signatures=reader.read)
class Bare(tf.Module):
    pass
tf.saved_model.save(Bare(), out / "bare")
keras = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(3, activation="softmax")])
keras.save(out / "model.keras")
keras.save(out / "model.h5")
keras.export(out / "keras", verbose=False)
rows = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)
np.savez(out / "expected.npz", rows=rows, mine=network.both(rows, tf.constant(["a"] * 5))["probabilities"].numpy(),
         keras=keras(rows).numpy())
"""
CHECK = """
import sys
from pathlib import Path
import numpy as np
from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions

out = Path(sys.argv[1])
expected = np.load(out / "expected.npz")
rows = expected["rows"]

def loaded(name, **options):
    return by_format.load(detect(out / name, Stage.LOAD), LoadOptions(threads=1, **options))

model = loaded("good")
contract = model.contract()
assert model.platform == "tensorflow_savedmodel"
assert [(s.name, s.datatype, s.shape) for s in contract.inputs] == [("t", "BYTES", (-1,)), ("x", "FP32", (-1, 4))]
assert [(s.name, s.datatype) for s in contract.outputs] == [("probabilities", "FP32"), ("text", "BYTES")]
text, mine = model.run({"x": rows, "t": np.array(["a", "ä"] * 2 + ["c"], object)}, ["text", "probabilities"])
assert text.tolist() == ["A", "ä", "A", "ä", "C"], text
np.testing.assert_array_equal(mine, expected["mine"])
model = loaded("keras")
(name,), (output,) = ([s.name for s in specs] for specs in (model.contract().inputs, model.contract().outputs))
np.testing.assert_allclose(model.run({name: rows}, [output])[0], expected["keras"], rtol=1e-6)

def refused(name, sentence, **options):
    try:
        loaded(name, **options)
    except StartFailure as failure:
        assert sentence in failure.message, failure.message
    else:
        raise AssertionError(f"{name} was loaded")

refused("reads", "its graph reaches outside by ReadFile")
refused("bare", "has no signature serving_default")
refused("good", "TensorFlow sees no GPU here", device="cuda")
variables = out / "good" / "variables" / "variables.index"
variables.unlink()
refused("good", "tensorflow refuses saved_model.pb")
print("all is well")
"""


def run(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run(BUILD, folder)
    return folder


def refusal(path: Path, stated: str | None = None) -> tuple[str, str]:
    with pytest.raises(StartFailure) as failure:
        detect(path, Stage.VERIFY, stated)
    return failure.value.reason, failure.value.message


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_keras_own_formats_are_refused_with_the_command_that_exports_them(saved: Path, name: str) -> None:
    reason, message = refusal(saved / name)
    assert (reason, ".export('model')" in message) == ("UnknownFormat", True)


def test_a_graph_without_its_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pb").write_bytes((saved / "good" / "saved_model.pb").read_bytes())
    assert "which is a folder" in refusal(tmp_path / "model.pb")[1]
    assert refusal(saved / "good", "ONNX") == (
        "InvalidModel",
        "saved_model.pb should be ONNX, but is TensorFlow",
    )


def test_a_missing_library_names_its_extra(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    found = detect(saved / "good", Stage.LOAD)
    with pytest.raises(StartFailure, match=r"pip install 'pilotage\[tensorflow\]'"):
        by_format.load(found, LoadOptions(threads=1))


def test_answers_are_tensorflows_own(saved: Path) -> None:
    assert "all is well" in run(CHECK, saved)
