"""Refuses values outside the ranges that a contract states for its features.

What is to be compared is worked out once, with the contract: a request to a model without ranges pays for
one look at an empty tuple.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from pilotage_runtime.errors import OutOfRange
from pilotage_runtime.features import Feature

if TYPE_CHECKING:
    from pilotage_runtime.contract import Contract, TensorSpec

_SMALL = 64  # comparisons below which a Python loop beats numpy's call overhead
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Columns:
    """The bounded columns of one input; `width` is the number of its columns."""

    name: str
    width: int
    nan_allowed: bool
    bounded: tuple[tuple[int, float, float, Feature], ...]
    indices: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    listed: tuple[tuple[int, frozenset[Any], Feature], ...]


def check(contract: Contract, inputs: Mapping[str, np.ndarray]) -> None:
    """Raise OutOfRange at the first value that its feature's range does not hold; inputs fit the contract."""
    for columns in contract.bounded_columns:
        array = inputs[columns.name]
        if columns.bounded:
            rows = array.size // columns.width
            if rows * len(columns.bounded) <= _SMALL:
                _check_one_by_one(columns, array)
            else:
                _check_at_once(columns, array.reshape(rows, columns.width))
        if columns.listed:
            _check_categories(columns, array.reshape(-1, columns.width))


def columns_of(inputs: Sequence[TensorSpec], features: Sequence[Feature]) -> tuple[Columns, ...]:
    """Work out which columns are bounded: of the one input, or each feature an input of its own name."""
    if not any(feature.bounded for feature in features):
        return ()
    if len(inputs) == 1:
        return (_columns(inputs[0], features),)
    by_name = {feature.name: feature for feature in features}
    return tuple(
        _columns(spec, [by_name[spec.name]])
        for spec in inputs
        if spec.name in by_name and by_name[spec.name].bounded
    )


def _columns(spec: TensorSpec, features: Sequence[Feature]) -> Columns:
    bounded = tuple(
        (
            index,
            -inf if feature.minimum is None else _rounded(spec, feature.minimum),
            inf if feature.maximum is None else _rounded(spec, feature.maximum),
            feature,
        )
        for index, feature in enumerate(features)
        if feature.minimum is not None or feature.maximum is not None
    )
    return Columns(
        name=spec.name,
        width=len(features),
        nan_allowed=spec.allow_non_finite,
        bounded=bounded,
        indices=np.array([index for index, _, _, _ in bounded], dtype=np.intp),
        lows=np.array([low for _, low, _, _ in bounded]),
        highs=np.array([high for _, _, high, _ in bounded]),
        listed=tuple(
            (index, frozenset(_rounded(spec, category) for category in feature.categories), feature)
            for index, feature in enumerate(features)
            if feature.categories
        ),
    )


def _rounded(spec: TensorSpec, value: Any) -> Any:
    """The number as the input carries it: 0.1 in FP32 is a little more than 0.1, and still allowed."""
    return float(spec.dtype.type(value)) if spec.datatype.startswith(("FP", "BF")) else value


def _check_one_by_one(columns: Columns, array: np.ndarray) -> None:
    values = array.ravel().tolist()
    for at in range(0, len(values), columns.width):
        for index, low, high, feature in columns.bounded:
            value = values[at + index]
            # Neither comparison holds for NaN.
            if not low <= value <= high and not (columns.nan_allowed and isnan(value)):
                raise _outside(feature, value, at // columns.width, len(values) // columns.width)


def _check_at_once(columns: Columns, rows: np.ndarray) -> None:
    values = rows[:, columns.indices]
    good = (values >= columns.lows) & (values <= columns.highs)
    if columns.nan_allowed:
        good |= np.isnan(values)
    if not good.all():
        row, column = np.argwhere(~good)[0].tolist()
        raise _outside(columns.bounded[column][3], values[row, column].item(), row, len(rows))


def _check_categories(columns: Columns, rows: np.ndarray) -> None:
    for index, allowed, feature in columns.listed:
        for row, value in enumerate(rows[:, index].tolist()):
            known = value.decode(errors="replace") if isinstance(value, bytes) else value
            if known not in allowed and not (columns.nan_allowed and _is_nan(known)):
                raise _outside(feature, known, row, len(rows))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and isnan(value)


def _outside(feature: Feature, value: Any, row: int, rows: int) -> OutOfRange:
    came = (
        repr(value[:_SHOWN] + "…" if len(value) > _SHOWN else value)
        if isinstance(value, str)
        else f"{value:.7g}"
    )
    unit = f" {feature.unit}" if feature.unit else ""
    where = f" in row {row}" if rows > 1 else ""
    return OutOfRange(
        feature.name,
        f"feature '{feature.name}': {came} came{where}, {feature.range()}{unit} is expected",
    )
