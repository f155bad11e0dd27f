"""Which loader loads which format."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders.base import LoadOptions, Model
from pilotage_runtime.trial import Trials


@dataclass(frozen=True, slots=True)
class _Loader:
    module: str
    name: str
    extra: str | None
    """The extra of the distribution that brings the library; None where the runtime has all it takes."""
    from_bytes: bool = True
    gpu: bool = False
    half: bool = False
    tried: bool = False
    """A damaged file may crash the library, and cannot be vetted: it is tried in a process of its own first."""


_LOADERS: dict[str, _Loader] = {
    "ONNX": _Loader("onnx", "OnnxModel", "runtime", gpu=True, half=True),
    "TorchScript": _Loader("torch", "TorchScriptModel", "torch", gpu=True, half=True),
    "TorchExport": _Loader("torch", "ExportedModel", "torch", gpu=True, half=True),
    "Skops": _Loader("skops", "SkopsModel", "sklearn"),
    "XGBoost": _Loader("xgboost", "XGBoostModel", "xgboost", gpu=True),
    "LightGBM": _Loader("lightgbm", "LightGBMModel", "lightgbm"),
    "CatBoost": _Loader("catboost", "CatBoostModel", "catboost", tried=True),
    "TensorFlow": _Loader("tensorflow", "TensorFlowModel", "tensorflow", from_bytes=False, gpu=True),
    "Pickle": _Loader("pickled", "PickledModel", "sklearn"),
    "Joblib": _Loader("pickled", "PickledModel", "sklearn"),
    "Python": _Loader("python", "load", None, from_bytes=False, gpu=True),
}
LOADS_FROM_BYTES = frozenset(name for name, loader in _LOADERS.items() if loader.from_bytes)
"""Formats of one file that need not lie on a disk: these can be kept encrypted."""


def load(file: ModelFile, options: LoadOptions, trials: Trials | None = None) -> Model:
    """Load a model by its format; raise StartFailure, which names the extra where a library is missing."""
    loader = _LOADERS[file.format]
    if file.content is not None and not loader.from_bytes:
        raise _unable(
            f"{file.format} is loaded from a folder, so it cannot be kept encrypted; "
            f"can be: {', '.join(sorted(LOADS_FROM_BYTES))}",
        )
    if options.device != "cpu" and not loader.gpu:
        raise _unable(
            f"device {options.device} was asked for, but {file.format} runs on the CPU: leave it out"
        )
    if options.precision != "float32" and not loader.half:
        raise _unable(
            f"precision {options.precision} was asked for, but {file.format} has one of its own: leave it out"
        )
    if loader.tried:
        # While the other process starts, this one imports the same library.
        file = (trials or Trials()).passed(file, loader.module, lambda: library(file.format))
    return build(file, options)


def library(form: str) -> ModuleType:
    """Import what a format takes."""
    loader = _LOADERS[form]
    try:
        return import_module(f"pilotage_runtime.loaders.{loader.module}")
    except ImportError as error:
        raise _unable(
            f"{form} needs a library that is missing ({error}): pip install 'pilotage[{loader.extra}]'"
        ) from error


def build(file: ModelFile, options: LoadOptions) -> Model:
    """Load in this process, whatever the file may do to it."""
    make: Callable[[ModelFile, LoadOptions], Model] = getattr(
        library(file.format), _LOADERS[file.format].name
    )
    try:
        return make(file, options)
    except StartFailure:
        raise
    except Exception as error:  # a library's own way to fail, of which a loader knows nothing
        text = " ".join(str(error).split())[:500]
        raise _unable(f"{file.path.name} could not be loaded: {type(error).__name__}: {text}") from error


def _unable(message: str) -> StartFailure:
    return StartFailure(Stage.LOAD, Reason.LOAD_FAILED, message)
