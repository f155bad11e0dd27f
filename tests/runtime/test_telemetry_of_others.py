"""The libraries under the runtime report to nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# On a machine that says that it is CI, onnxruntime is silent by itself: a pod says nothing of the kind.
SAID_BY_CI = {"CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}
ALONE = """
import onnxruntime, sys
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""
OURS = """
import sys
from pathlib import Path
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.loaders.onnx import OnnxModel
OnnxModel(ModelFile(Path(sys.argv[1]), "ONNX"), LoadOptions(threads=1))
"""


def left_at_home(program: str, model: Path, home: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SAID_BY_CI}
    environment |= {"HOME": str(home)}
    environment.pop("XDG_CACHE_HOME", None)
    # Cut off from every network, lest the control sends what it gathers.
    command = ["unshare", "--net", sys.executable, "-c", program, str(model)]
    subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
    return [path.name for path in home.rglob("*") if path.is_file()]


@pytest.fixture
def model(models: Path) -> Path:
    if os.geteuid() != 0:
        reason = "a network namespace of its own needs root"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return models / "iris" / "1" / "model.onnx"


def test_onnxruntime_keeps_no_record_to_send(model: Path, tmp_path: Path) -> None:
    assert left_at_home(OURS, model, tmp_path) == []


def test_by_itself_it_would(model: Path, tmp_path: Path) -> None:
    """The control: when this fails, the library has changed its ways, and the test above shows nothing."""
    assert any(name.startswith("onnxruntime.db") for name in left_at_home(ALONE, model, tmp_path))
