"""A sealed model from its key to its answer, and what cannot be opened from memory."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyrage
import pytest

from pilotage_runtime import sealed
from tests.runtime.conftest import Servers
from tests.runtime.test_http import request

KEY = bytes(range(32))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "key").write_text(base64.b64encode(KEY).decode())
    return folder


def test_a_sealed_model_answers_and_lies_nowhere_in_the_clear(
    models: Path, tmp_path: Path, keys: Path, serve: Servers
) -> None:
    plain = models / "iris" / "1" / "model.onnx"
    folder = tmp_path / "model"
    folder.mkdir()
    sealed.seal(plain, folder / "model.jwe", KEY)
    server = serve(folder, "iris", decryption_keys_dir=keys)
    assert server.infer(request()).json()["outputs"][0]["data"] == [0]
    beginning = plain.read_bytes()[:64]
    kept = [Path(where, name) for where, _, names in os.walk(tmp_path) for name in names]
    assert not any(beginning in path.read_bytes() for path in kept)


_WATCHED = """
import os, sys
from pathlib import Path
from pilotage_runtime import formats, sealed
from pilotage_runtime.failure import Stage
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions

def watch(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        print(arguments[0])

sys.addaudithook(watch)
root, keys = map(Path, sys.argv[1:])
found = formats.detect(root, Stage.LOAD, opened=lambda path: sealed.open_if_sealed(path, keys))
model = by_format.load(found, LoadOptions(threads=1))
assert model.contract().inputs
"""


@pytest.mark.parametrize("envelope", ["JWE", "age"])
def test_while_a_sealed_model_is_opened_and_loaded_no_file_is_written_anywhere(
    models: Path, tmp_path: Path, keys: Path, envelope: str
) -> None:
    """Neither beside it nor in a folder for temporary files, not even for a moment."""
    plain, path = models / "iris" / "1" / "model.onnx", tmp_path / "model"
    if envelope == "JWE":
        sealed.seal(plain, path, KEY)
    else:
        identity = pyrage.x25519.Identity.generate()
        (keys / "age").write_text(str(identity))
        path.write_bytes(pyrage.encrypt(plain.read_bytes(), [identity.to_public()]))
    watched = subprocess.run(
        [sys.executable, "-B", "-c", _WATCHED, path, keys], capture_output=True, text=True, check=False
    )
    assert (watched.returncode, watched.stdout) == (0, ""), watched.stderr


def test_without_the_key_it_says_what_is_missing(models: Path, tmp_path: Path, serve: Servers) -> None:
    sealed.seal(models / "iris" / "1" / "model.onnx", tmp_path / "model.jwe", KEY)
    message = tmp_path / "termination-log"
    message.touch()
    server = serve.start(
        tmp_path / "model.jwe", "iris", decryption_keys_dir=tmp_path / "none", termination_log=message
    )
    assert server.wait_exit() != 0
    assert "is sealed (JWE), and there is no key for it" in json.loads(message.read_text())["message"]


def test_a_plain_model_is_served_without_a_key_though_a_sealed_file_lies_beside_it(
    models: Path, tmp_path: Path, serve: Servers
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models / "iris" / "1", folder)
    sealed.seal(models / "fraud" / "1" / "model.onnx", folder / "earlier.jwe", KEY)
    server = serve(folder, "iris", decryption_keys_dir=tmp_path / "none")
    assert server.infer(request()).json()["outputs"][0]["data"] == [0]
