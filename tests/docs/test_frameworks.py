"""The how-to of the frameworks: each section's program writes a model, and the runtime loads that model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pilotage_runtime.content import FORMATS
from pilotage_runtime.contract_file import ContractFile
from tests.docs import pages

PAGE = pages.DOCS / "how-to/serve-a-model-of-each-framework.md"
SECTIONS = {
    heading: body
    for heading, body in re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    if "```python" in body
}
FORMAT = {
    "ONNX": "ONNX",
    "PyTorch, exported": "TorchExport",
    "TorchScript": "TorchScript",
    "scikit-learn": "Skops",
    "XGBoost": "XGBoost",
    "LightGBM": "LightGBM",
    "CatBoost": "CatBoost",
    "TensorFlow and Keras": "TensorFlow",
    "A Python class": "Python",
    "Pickle and joblib": "Joblib",
}
LOAD = """
import hashlib
from pathlib import Path
from pilotage_runtime import digest, warmup
from pilotage_runtime.contract import refine
from pilotage_runtime.failure import Stage
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions

root = Path("model")
of = digest.digest(root) if root.is_dir() else "sha256:" + hashlib.sha256(root.read_bytes()).hexdigest()
found = detect(root, Stage.LOAD, trusted=True)
model = by_format.load(found, LoadOptions(threads=1, trusted=True, digest=of))
contract = refine(model.contract(), found.folder)
answers = model.run(warmup.generated(contract), [spec.name for spec in contract.outputs])
assert len(answers) == len(contract.outputs) > 0
print("FORMAT", found.format)
"""


def test_every_format_has_its_section() -> None:
    assert set(SECTIONS) == set(FORMAT)
    assert set(FORMAT.values()) == set(FORMATS) - {"Pickle"}  # it shares one with joblib


@pytest.mark.parametrize("section", SECTIONS)
def test_what_a_section_writes_is_served(section: str, tmp_path: Path) -> None:
    program = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*program, LOAD])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert f"FORMAT {FORMAT[section]}" in done.stdout, done.stdout + done.stderr[-3000:]


def test_the_reference_s_example_is_a_contract() -> None:
    example = next(pages.blocks(pages.DOCS / "reference/contract.md", "json"))
    assert ContractFile.model_validate_json(example).features[0].maximum == 120
