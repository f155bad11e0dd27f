"""Whoever is told to install an extra finds it in the distribution."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PLACES = [
    *(ROOT / "runtime").rglob("*.py"), *(ROOT / "cli").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md",
    ROOT / "pyproject.toml",
]  # fmt: skip


def test_every_extra_that_is_named_exists() -> None:
    named = {
        (extra.strip(), path.name)
        for path in PLACES
        for list_ in re.findall(r"pilotage\[([a-z0-9, -]+)\]", path.read_text())
        for extra in list_.split(",")
    }
    assert {extra for extra, _ in named} >= {"runtime", "runtime-gpu", "sklearn"}
    assert [(extra, where) for extra, where in sorted(named) if extra not in EXTRAS] == []


@pytest.mark.parametrize(
    ("extra", "other"), [("runtime", "onnxruntime-gpu"), ("runtime-gpu", "onnxruntime>")]
)
def test_no_extra_brings_both_packages_of_onnxruntime(extra: str, other: str) -> None:
    brought = EXTRAS[extra] + EXTRAS["server"]
    assert not [package for package in brought if package.startswith(other)]
