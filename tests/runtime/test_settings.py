"""Settings of the runtime: how they may be written, and what is said of one that cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilotage_runtime.settings import ServeSettings
from tests.runtime.conftest import environment


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("sklearn.tree._tree.Tree", ["sklearn.tree._tree.Tree"]),
        ("a.B, c.D,", ["a.B", "c.D"]),
        ('["a.B", "c.D"]', ["a.B", "c.D"]),  # as the operator writes it
        ("", []),
    ],
)
def test_trusted_types_are_names_separated_by_commas_or_a_json_list(
    monkeypatch: pytest.MonkeyPatch, text: str, types: list[str]
) -> None:
    monkeypatch.setenv("PILOTAGE_TRUSTED_TYPES", text)
    assert ServeSettings().trusted_types == types


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ({"trusted_types": '["a.B"'}, "PILOTAGE_TRUSTED_TYPES: Value error, names separated by commas or a JSON list"),
        ({"model_dir": "/nowhere"}, "/nowhere does not exist: there is no model to serve"),
        ({"http_port": 8080, "metrics_port": 8080}, "PILOTAGE_METRICS_PORT: Value error, 8080 is the http_port already"),
        ({"http_port": 8080, "grpc_port": 8080}, "PILOTAGE_GRPC_PORT: Value error, 8080 is the http_port already"),
        ({"grpc_port": 9090}, "PILOTAGE_METRICS_PORT: Value error, 9090 is the grpc_port already"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_with_is_told_in_a_sentence(
    tmp_path: Path, stated: dict[str, Any], sentence: str
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    done = subprocess.run(
        [sys.executable, "-m", "pilotage_runtime", "serve"],
        env=environment(termination_log=message, **stated),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert sentence in json.loads(message.read_text())["message"]


def test_any_free_port_may_be_asked_for_several_times() -> None:
    assert ServeSettings(http_port=0, grpc_port=0, metrics_port=0).metrics_port == 0
