"""onnxruntime where it cannot do what is asked: a sentence at load, and no silent CPU."""

from pathlib import Path

import pytest

from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format, onnx
from pilotage_runtime.loaders.base import LoadOptions


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (LoadOptions(threads=1, device="cuda"), "this onnxruntime cannot use a GPU"),
        (LoadOptions(threads=1, precision="float16"), "convert it: onnxconverter_common"),
    ],
)
def test_what_the_machine_cannot_do_is_said_at_load(
    models: Path, options: LoadOptions, sentence: str
) -> None:
    with pytest.raises(StartFailure, match=sentence) as failure:
        by_format.load(detect(models / "iris" / "1", Stage.LOAD), options)
    assert failure.value.reason == "LoadFailed"


def test_a_gpu_that_the_library_could_use_and_the_machine_lacks_is_no_silent_cpu(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As onnxruntime-gpu answers everywhere.
    monkeypatch.setattr(
        onnx.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(StartFailure, match="cannot start CUDAExecutionProvider here"):
        by_format.load(detect(models / "iris" / "1", Stage.LOAD), LoadOptions(threads=1, device="cuda"))


def test_two_packages_that_overwrite_each_other_are_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "_installed", lambda _: True)
    with pytest.raises(StartFailure, match="onnxruntime and onnxruntime-gpu are both installed"):
        by_format.load(detect(models / "iris" / "1", Stage.LOAD), LoadOptions(threads=1))
