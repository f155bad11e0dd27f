"""The protocol's datatypes and what they are in numpy and in JSON."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the Open Inference Protocol."""

    name: str
    dtype: np.dtype
    json_kinds: str  # numpy's kinds that a JSON list of this datatype is read as
    json_words: str  # what a sender should have put there
    largest: float | None = None  # the largest number of a floating-point datatype


def _table() -> dict[str, Datatype]:
    table = {
        "BOOL": Datatype("BOOL", np.dtype(np.bool_), "b", "true or false"),
        "BYTES": Datatype("BYTES", np.dtype(object), "U", "strings"),
    }
    for bits in (8, 16, 32, 64):
        for name, kind in ((f"INT{bits}", f"int{bits}"), (f"UINT{bits}", f"uint{bits}")):
            table[name] = Datatype(name, np.dtype(kind), "iu", "whole numbers")
    for bits in (16, 32, 64):
        dtype = np.dtype(f"float{bits}")
        table[f"FP{bits}"] = Datatype(f"FP{bits}", dtype, "iuf", "numbers", float(np.finfo(dtype).max))
    # JSON carries its numbers as those of FP32, of which it is the upper half.
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    table["BF16"] = Datatype("BF16", bfloat16, "iuf", "numbers", float(ml_dtypes.finfo(bfloat16).max))
    return table


DATATYPES = _table()
_NAMES = {datatype.dtype: datatype.name for datatype in DATATYPES.values()}


def datatype_name(dtype: np.dtype) -> str:
    """Name a numpy type as the protocol does; text of any width is BYTES."""
    return "BYTES" if dtype.kind in "US" else _NAMES.get(dtype, str(dtype))
