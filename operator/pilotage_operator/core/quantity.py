"""Kubernetes' quantities as numbers: 250m, 2, 512Mi."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

_SUFFIXES = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** (n + 1) for n, unit in enumerate("kMGT")},
    **{f"{unit}i": Decimal(1024) ** (n + 1) for n, unit in enumerate("KMGT")},
}


def value(text: Any) -> Decimal:
    """The number that a quantity stands for.

    Raises
    ------
    ValueError
        If it is none.
    """
    written = str(text)
    number = written.rstrip("KMGTkmi")
    factor = _SUFFIXES.get(written[len(number) :])
    if factor is None or not number or not number[0].isdigit():
        raise ValueError(f"{written!r} is no quantity such as 250m, 2 or 512Mi")
    try:
        return Decimal(number) * factor
    except InvalidOperation as error:
        raise ValueError(f"{written!r} is no quantity such as 250m, 2 or 512Mi") from error


def same(one: Any, other: Any) -> bool:
    """Whether two texts are quantities of the same value, since the API server rewrites 0.5 as 500m."""
    try:
        return value(one) == value(other)
    except ValueError:
        return False
