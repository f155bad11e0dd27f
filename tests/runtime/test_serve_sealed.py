"""A sealed model from its key to its answer, and what cannot be opened from memory."""

import base64
import json
import os
from pathlib import Path

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


def test_without_the_key_it_says_what_is_missing(models: Path, tmp_path: Path, serve: Servers) -> None:
    sealed.seal(models / "iris" / "1" / "model.onnx", tmp_path / "model.jwe", KEY)
    message = tmp_path / "termination-log"
    message.touch()
    server = serve.start(
        tmp_path / "model.jwe", "iris", decryption_keys_dir=tmp_path / "none", termination_log=message
    )
    assert server.wait_exit() != 0
    assert "is sealed (JWE), and there is no key for it" in json.loads(message.read_text())["message"]
