"""The reference says what the code says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilotage_operator.api import reference
from pilotage_operator.api.crd import crd
from tests.docs import pages
from tests.docs.pages import DOCS, ROOT

GENERATORS = sorted((DOCS / "reference").glob("*.py"))


def test_the_pages_of_the_fields_are_what_the_models_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check"]) == 0, capsys.readouterr().out


def test_a_page_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    assert reference.main(["--check"]) == 1
    assert reference.main(["--write"]) == 0
    assert reference.main(["--check"]) == 0
    (tmp_path / "modeldeployment.md").write_text("by hand")
    assert reference.main(["--check"]) == 1
    assert "modeldeployment.md differs from the code: run" in capsys.readouterr().out


def test_every_field_is_there_once() -> None:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    told = pages.first_column(DOCS / "reference/modeldeployment-status.md")
    assert told == _fields(schema["status"], "status")
    page = pages.prose(DOCS / "reference/modeldeployment.md").partition("## Rules")[0]
    sections = [f"spec.{name}" for name in schema["spec"]["properties"]]
    assert [path for path in _fields(schema["spec"], "spec") if path not in sections] == re.findall(
        r"^\| `(.*?)` \|", page, re.MULTILINE
    )


def _fields(schema: dict[str, Any], path: str) -> list[str]:
    found: list[str] = []
    for name, field in schema.get("properties", {}).items():
        below = f"{path}.{name}"
        found += [below, *_fields(field, below), *_fields(field.get("items", {}), f"{below}[]")]
    return found


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda path: path.name)
def test_the_other_pages_are_what_the_code_says(generator: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(generator), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_charts_readme_has_every_value_with_its_default() -> None:
    values = yaml.safe_load((ROOT / "charts/pilotage/values.yaml").read_text())
    told = dict(_told_values())
    assert set(told) == set(_leaves(values, ""))
    for name, default in told.items():
        value = values
        for part in name.split("."):
            value = value[part]
        shown = "none" if value == "" else f"`{value if isinstance(value, str) else json.dumps(value)}`"
        assert default in {shown, "needed"}, name
        assert (default == "needed") == name.endswith("image.repository"), name


def _told_values() -> list[tuple[str, str]]:
    rows = [
        line.split(" | ")
        for line in pages.prose(ROOT / "charts/pilotage/README.md").splitlines()
        if line[:3] == "| `"
    ]
    return [(name.strip("| `"), default) for name, default, *_ in rows]


def _leaves(values: dict[str, Any], path: str) -> list[str]:
    found: list[str] = []
    for name, value in values.items():
        nested = isinstance(value, dict) and value and name != "resources"
        found += _leaves(value, f"{path}{name}.") if nested else [f"{path}{name}"]
    return found
