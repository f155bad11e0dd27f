"""`pilotage inspect`: what it prints is what the runtime serves."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

from rich.text import Text

from pilotage_cli import banner
from pilotage_runtime import sealed
from pilotage_runtime.digest import digest
from tests.cli.conftest import Terminal
from tests.runtime.test_code import written


def test_a_model_is_told_with_its_facts(terminal: Terminal, models: Path) -> None:
    told = terminal.run("inspect", models / "iris" / "1" / "model.onnx")
    assert told.returncode == 0, told.stderr
    digest = hashlib.sha256((models / "iris" / "1" / "model.onnx").read_bytes()).hexdigest()
    assert f"sha256:{digest}" in told.stdout
    for words in (
        "iris  version 1",
        "batching on",
        "sepal length (cm)",
        "setosa, versicolor, virginica",
        "ONNX",
    ):
        assert words in told.stdout


def test_what_is_printed_as_json_is_a_contract_json(terminal: Terminal, models: Path, tmp_path: Path) -> None:
    first = terminal.run("inspect", "--json", models / "iris")
    assert first.returncode == 0, first.stderr
    copy = tmp_path / "iris"
    copy.mkdir()
    shutil.copy(models / "iris" / "1" / "model.onnx", copy)
    bare = terminal.run("inspect", "--json", copy)
    assert "feature_names" not in json.loads(bare.stdout)
    (copy / "contract.json").write_text(first.stdout)
    written = terminal.run("inspect", "--json", copy, "--output", copy / "contract.json")
    assert (written.returncode, written.stdout) == (0, "")
    assert (copy / "contract.json").read_text() == first.stdout
    assert terminal.run("inspect", "--json", copy).stdout == first.stdout
    (copy / "contract.json").write_text(bare.stdout)
    assert terminal.run("inspect", "--json", copy).stdout == bare.stdout


def test_a_contract_that_is_written_anew_keeps_its_features_ranges(
    terminal: Terminal, models: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "iris"
    copy.mkdir()
    shutil.copy(models / "iris" / "1" / "model.onnx", copy)
    features = [
        {"name": "sepal length", "minimum": 0.0, "maximum": 20.0, "unit": "cm"},
        {"name": "sepal width", "minimum": 0.0},
        {"name": "petal length", "categories": [0, 1.5, 2]},
        {"name": "petal width", "description": "at its widest"},
    ]
    (copy / "contract.json").write_text(json.dumps({"features": features}))
    written = terminal.run("inspect", "--json", copy, "--output", copy / "contract.json")
    assert written.returncode == 0, written.stderr
    document = json.loads((copy / "contract.json").read_text())
    assert document["features"] == features
    assert "feature_names" not in document
    told = terminal.run("inspect", copy)
    assert (told.returncode, "sepal length" in told.stdout) == (0, True)


def test_of_many_each_is_told_and_one_can_be_chosen(terminal: Terminal, models: Path, tmp_path: Path) -> None:
    for version in ("1", "2"):
        shutil.copytree(models / "fraud" / version, tmp_path / "many" / "fraud" / version)
    shutil.copytree(models / "broken", tmp_path / "many" / "broken")
    told = terminal.run("inspect", tmp_path / "many")
    assert told.returncode == 1
    assert "fraud  version 1" in told.stdout
    assert "fraud  version 2" in told.stdout
    assert "broken  version 1: the folder should hold one model file" in told.stdout
    refused = terminal.run("inspect", "--json", tmp_path / "many")
    assert refused.returncode == 2
    assert "choose one with --model, of broken/1, fraud/1, fraud/2" in refused.stderr
    assert terminal.run("inspect", "--json", tmp_path / "many", "--model", "fraud/2").returncode == 0
    assert "there is broken/1" in terminal.run("inspect", tmp_path / "many", "--model", "iris").stderr


def test_why_requests_do_not_share_a_run_is_told(terminal: Terminal, models: Path) -> None:
    told = terminal.run("inspect", models / "iris", "--max-batch-size", "1")
    assert "batching off: switched off: at most 1 row may share a run" in told.stdout


def test_a_python_class_and_a_sealed_model_are_told_like_any_other(
    terminal: Terminal, models: Path, tmp_path: Path
) -> None:
    code, secret, keys = (tmp_path / name for name in ("code", "secret", "keys"))
    for folder in (code, secret, keys):
        folder.mkdir()
    written(code, "class Model:\n    def predict(self, inputs):\n        return {'y': inputs['x']}\n")
    told = terminal.run("inspect", code, "--trusted", "--digest", digest(code))
    assert told.returncode == 0, told.stderr
    assert "  format  Python\n" in told.stdout
    (keys / "key").write_text(base64.b64encode(bytes(32)).decode())
    sealed.seal(models / "iris" / "1" / "model.onnx", secret / "model.jwe", bytes(32))
    told = terminal.run("inspect", secret, "--decryption-keys-dir", keys)
    assert told.returncode == 0, told.stderr
    assert "  format  ONNX\n" in told.stdout
    assert f"  digest  {digest(secret)}\n" in told.stdout


def test_trusted_types_are_given_as_the_help_says(terminal: Terminal, models: Path) -> None:
    told = terminal.run("inspect", models / "iris", "--trusted-types", "sklearn.tree._tree.Tree")
    assert told.returncode == 0, told.stderr
    refused = terminal.run("inspect", models / "iris", "--trusted-types", "[")
    assert refused.returncode == 2
    assert (
        "--trusted-types (PILOTAGE_TRUSTED_TYPES): Value error, names separated by commas" in refused.stderr
    )


def test_a_model_that_cannot_be_served_is_refused_as_the_runtime_does(
    terminal: Terminal, models: Path
) -> None:
    refused = terminal.run("inspect", models / "broken" / "pickle.onnx")
    assert refused.returncode == 1
    assert "which runs code when it is loaded" in refused.stderr
    assert "(Load: UntrustedFormat)" in refused.stderr
    assert refused.stdout == ""


def test_features_that_are_inputs_of_their_own_are_told_once() -> None:
    """All their names beside the first input would read as if it held them all."""
    inputs = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("age", "income")]
    metadata = {"inputs": inputs, "outputs": [], "parameters": {"feature_names": ["age", "income"]}}
    assert list(banner.tensors(metadata).columns[4].cells) == [Text(""), Text("")]
    one = {**metadata, "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 2]}]}
    assert list(banner.tensors(one).columns[4].cells) == [Text("age, income")]
