"""Pickles and joblib dumps. Loading one runs whatever code it holds, so `trust` is asked before a byte is read."""

import io
import pickle
from typing import Any

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import tabular, trust
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.loaders.estimator import EstimatorModel


class PickledModel(EstimatorModel):
    """An object with `predict` that somebody trusted has pickled."""

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        trust.require(file, options)
        try:
            made = _made(file)
        except BaseException as error:  # its code may raise anything, SystemExit included
            text = " ".join(str(error).split())[:500] or type(error).__name__
            hint = ": the image needs the library with which it was saved" * isinstance(error, ImportError)
            raise StartFailure(
                Stage.LOAD, Reason.LOAD_FAILED, f"{file.path.name} cannot be unpickled: {text}{hint}"
            ) from error
        if not hasattr(made, "predict"):
            raise StartFailure(
                Stage.LOAD,
                Reason.INVALID_MODEL,
                f"{file.path.name} holds a {type(made).__name__}, which cannot predict",
            )
        super().__init__(made, f"python_{file.format.lower()}", file, options)


def _made(file: ModelFile) -> Any:
    content = tabular.contents(file)
    if file.format == "Pickle":
        return pickle.loads(content)  # noqa: S301 - trusted, with a digest
    import joblib  # noqa: PLC0415 - only a joblib dump needs it

    return joblib.load(io.BytesIO(content))
