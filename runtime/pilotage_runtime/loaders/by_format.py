"""Which loader loads which format."""

from collections.abc import Callable

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders.base import LoadOptions, Model


def load(file: ModelFile, options: LoadOptions) -> Model:
    """Load a model by its format; raise StartFailure, which names the extra where a library is missing."""
    return _LOADERS[file.format](file, options)


def _onnx(file: ModelFile, options: LoadOptions) -> Model:
    try:
        from pilotage_runtime.loaders.onnx import OnnxModel  # noqa: PLC0415 - a loader's library only when used
    except ImportError as error:
        raise StartFailure(
            Stage.LOAD,
            Reason.LOAD_FAILED,
            f"onnxruntime is missing ({error}): pip install 'pilotage[runtime]'",
        ) from error
    return OnnxModel(file.path, options.threads)


_LOADERS: dict[str, Callable[[ModelFile, LoadOptions], Model]] = {"ONNX": _onnx}
