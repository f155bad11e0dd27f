"""The table of commands: quick to list, and clear about what is not installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pilotage_cli import sample
from pilotage_cli.log_view import readable
from pilotage_cli.server_api import Address, ServerApi
from pilotage_cli.target import parse
from tests.cli.conftest import Terminal, surroundings

ACCESS = b'{"time":"2026-01-02T03:04:05.6Z","logger":"access","method":"GET","path":"/v2","status":200,"milliseconds":1.234}'
WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from pilotage_cli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def _without(home: Path, missing: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing), *arguments],
        env=surroundings(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_list_of_commands_imports_none_of_them(terminal: Terminal) -> None:
    done = _without(
        terminal.home, ["pydantic", "rich", "numpy", "pilotage_runtime", "pilotage_operator"], "--help"
    )
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout
    assert _without(terminal.home, ["pydantic"]).stdout == done.stdout


@pytest.mark.parametrize("missing", ["orjson", "numpy", "uvicorn", "onnxruntime"])
@pytest.mark.parametrize("command", ["serve", "inspect"])
def test_a_missing_extra_is_told_with_the_line_that_installs_it(
    terminal: Terminal, models: Path, missing: str, command: str
) -> None:
    done = _without(terminal.home, [missing], command, str(models / "iris"))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert missing in said
    assert "pip install 'pilotage[runtime]'" in said
    assert "Traceback" not in said


def test_neither_operator_nor_its_libraries_are_needed_to_serve(terminal: Terminal, models: Path) -> None:
    done = _without(
        terminal.home, ["kopf", "kubernetes", "pilotage_operator", "aiohttp"], "inspect", str(models / "iris")
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_lists_those_that_there_are(terminal: Terminal) -> None:
    done = terminal.run("sreve", "x")
    assert done.returncode == 2
    assert "invalid choice: 'sreve' (choose from" in done.stderr


def test_kubectl_finds_it_by_its_name() -> None:
    for program in ("pilotage", "kubectl-pilotage"):
        done = subprocess.run(
            [Path(sys.executable).parent / program, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.count(".") == 2


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_pipe_that_closes_early_is_no_error(terminal: Terminal, models: Path, options: str) -> None:
    line = f"{sys.executable} -m pilotage_cli inspect {options} {models / 'iris'} | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=surroundings(terminal.home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("iris.onnx", "iris"),
        ("model.onnx", "model"),
        ("iris/1/model.onnx", "iris"),
        ("iris/1", "iris"),
        ("my model (final).onnx", "my-model-final"),
        ("resnet50-v1.5", "resnet50-v1.5"),
    ],
)
def test_a_path_suggests_the_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(text).parent.mkdir(parents=True, exist_ok=True)
    if text.endswith(".onnx"):
        Path(text).touch()
    else:
        Path(text).mkdir()
    assert parse(text).name == name


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://models/fraud/7", "fraud"),
        ("https://example.com/files/iris.onnx?signature=x", "iris"),
        ("hf://org/bert-base", "bert-base"),
        ("s3://bucket/1", "model"),
    ],
)
def test_a_uri_suggests_the_models_name(uri: str, name: str) -> None:
    assert parse(uri) == (uri, None, name)


def test_a_line_to_paste_is_quoted_for_a_shell() -> None:
    body = {"inputs": [{"name": 'it\'s $HOME `id` \\ "x"', "datatype": "BYTES", "shape": [1], "data": ["é"]}]}
    line = sample.curl(ServerApi(Address("127.0.0.1", 1)), "m", body)
    printed = line.replace("curl -s", "printf '%s\\n'", 1)
    words = subprocess.run(
        ["bash", "-c", printed], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert json.loads(words[-1]) == body


def test_a_long_body_is_pasted_by_its_file() -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 5000], "data": [0] * 5000}]}
    line = sample.curl(ServerApi(Address("127.0.0.1", 1)), "m", body)
    file = Path(line.rpartition("@")[2].strip("'"))
    assert json.loads(file.read_text()) == body
    file.unlink()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (ACCESS.decode(), "03:04:05 200 GET /v2  1.23 ms"),
        ('{"time":"2026-01-02T03:04:05.6Z","level":"error","message":"bad","stage":"Load","reason":"InvalidModel"}',
         "03:04:05 error bad  (Load: InvalidModel)"),
        ("a library says \x1b[2J something", "a library says \\x1b[2J something"),
        ("17", "17"),
    ],
)  # fmt: skip
def test_a_log_line_in_words(line: str, shown: str) -> None:
    assert re.sub(r"\x1b\[\d+m", "", readable(line.encode())) == shown


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_a_log_line_has_no_colour_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    for line in (
        ACCESS,
        b'{"time":"2026-01-02T03:04:05.6Z","level":"warning","message":"odd","reason":"why"}',
    ):
        assert ("\x1b" in readable(line)) is coloured
