"""What models of rows and columns have in common: names and forms of their tensors.

A row is a row of `X`. A classifier answers `label` and `probabilities`, any other model `prediction`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile

INPUT, LABEL, PROBABILITIES, PREDICTION = "X", "label", "probabilities", "prediction"


def contents(file: ModelFile) -> bytes:
    """Read the model's bytes, wherever they are."""
    return file.path.read_bytes() if file.content is None else file.content


def refused(file: ModelFile, library: str, error: BaseException) -> StartFailure:
    """Make the failure of a file that its own library does not take."""
    text = " ".join(str(error).split())[:500] or type(error).__name__
    return StartFailure(Stage.LOAD, Reason.INVALID_MODEL, f"{library} refuses {file.path.name}: {text}")


def matrix(columns: int, datatype: str, *, missing: bool) -> TensorSpec:
    """The one input of a model of numbers; `missing`: NaN, null in JSON, is a missing value to it."""
    return TensorSpec(INPUT, datatype, (-1, columns), allow_non_finite=missing)


def classes_contract(
    inputs: tuple[TensorSpec, ...],
    names: Sequence[str],
    probability: str,
    count: int,
    *,
    label: str = "INT64",
    labels: Sequence[str] = (),
    several: bool = False,
) -> Contract:
    """The contract of a classifier; `several`: a row may be of many classes, so each has a label of its own."""
    outputs = (
        TensorSpec(LABEL, label, (-1, count) if several else (-1,)),
        TensorSpec(PROBABILITIES, probability, (-1, count), labels=tuple(labels)),
    )
    return Contract(inputs, outputs, tuple(names))


def numbers_contract(
    inputs: tuple[TensorSpec, ...], names: Sequence[str], datatype: str, width: int
) -> Contract:
    """The contract of a model that answers one number a row, or several."""
    shape = (-1,) if width == 1 else (-1, width)
    return Contract(inputs, (TensorSpec(PREDICTION, datatype, shape),), tuple(names))


def both_classes(positive: np.ndarray) -> np.ndarray:
    """Two columns from the probability of the second class alone."""
    return np.stack((1 - positive, positive), axis=1)


def chosen(outputs: Sequence[str], probabilities: np.ndarray, *, several: bool = False) -> list[Any]:
    """Answer a classifier's outputs, in the order asked for; the label is the class's number.

    Where a row may be of `several` classes, the labels are a 1 for each that is likelier than not.
    """
    return [
        (probabilities > 0.5 if several else probabilities.argmax(axis=1)).astype(np.int64)
        if name == LABEL
        else probabilities
        for name in outputs
    ]
