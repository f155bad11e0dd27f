"""V2 REST bodies in JSON: parse a request into tensors, write an answer from tensors."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.tensors import DATATYPES, Datatype

_KIND_WORDS = {
    "b": "true or false",
    "i": "whole numbers",
    "u": "whole numbers",
    "f": "numbers with a fraction",
    "U": "strings",
    "O": "null, objects or mixed values",
}
_SHOWN = 60
_SMALL = 64  # elements below which a Python loop beats numpy's call overhead


class InferRequest(NamedTuple):
    """A parsed request; `outputs` is empty where the caller wants them all."""

    id: str | None
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]


def parse(body: bytes, contract: Contract) -> InferRequest:
    """Read a request; raise Refused with a sentence that its sender can act on."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(f"the body is not JSON: {error}") from error
    return read(document, contract)


def read(document: Any, contract: Contract) -> InferRequest:
    """Read a request from its parsed JSON."""
    if type(document) is not dict:
        raise Refused(f"the body should be a JSON object with 'inputs', but is {_shown(document)}")
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise Refused(f"'id' should be a string, but is {_shown(request_id)}")
    entries = document.get("inputs")
    if type(entries) is not list or not entries:
        raise Refused(f"'inputs' should be a list of tensors, but is {_shown(entries)}")
    inputs: dict[str, np.ndarray] = {}
    for at, entry in enumerate(entries):
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise Refused(f"inputs[{at}] should be an object with a 'name', but is {_shown(entry)}")
        name = entry["name"]
        if name in inputs:
            raise Refused(f"input '{_cut(name)}' came twice")
        inputs[name] = _tensor(entry, name, contract.input_by_name.get(name))
    wanted = document.get("outputs")
    return InferRequest(request_id, inputs, _wanted(wanted) if wanted else ())


def answer(
    model: str, request_id: str | None, specs: Sequence[TensorSpec], values: Sequence[np.ndarray]
) -> bytes:
    """Write an answer; data is flat and row-major, as the protocol's peers send it."""
    document: dict[str, Any] = {"model_name": model}
    if request_id is not None:
        document["id"] = request_id
    document["outputs"] = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": value.shape,
            "data": value.ravel() if value.dtype.kind not in "OU" else value.ravel().tolist(),
        }
        for spec, value in zip(specs, values, strict=True)
    ]
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _wanted(entries: Any) -> tuple[str, ...]:
    if type(entries) is not list:
        raise Refused(f"'outputs' should be a list, but is {_shown(entries)}")
    names: dict[str, None] = {}
    for at, entry in enumerate(entries):
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise Refused(f"outputs[{at}] should be an object with a 'name', but is {_shown(entry)}")
        names[entry["name"]] = None
    return tuple(names)


def _tensor(entry: dict[str, Any], name: str, spec: TensorSpec | None) -> np.ndarray:
    datatype = DATATYPES.get(entry["datatype"]) if type(entry.get("datatype")) is str else None
    if datatype is None:
        raise Refused(
            f"input '{_cut(name)}': datatype {_shown(entry.get('datatype'))} is unknown; "
            f"known are {', '.join(DATATYPES)}"
        )
    shape = entry.get("shape")
    if type(shape) is not list or not _are_sizes(shape):
        raise Refused(
            f"input '{_cut(name)}': shape should be a list of whole numbers from 0 up, but is {_shown(shape)}"
        )
    size = prod(shape)
    if size == 0:
        raise Refused(f"input '{_cut(name)}': shape {_shown(shape)} holds no element; send at least one row")
    data = entry.get("data")
    if type(data) is not list:
        raise Refused(
            f"input '{_cut(name)}': 'data' should be a list of {datatype.json_words}, but is {_shown(data)}"
        )
    array = _array(name, datatype, data, nulls=spec is not None and spec.allow_non_finite)
    if array.ndim == 1 and array.size == size:
        return array.reshape(shape)
    if array.shape == tuple(shape):
        return array
    came = f"{array.size} values" if array.ndim == 1 else f"nested lists of shape {_shown(list(array.shape))}"
    raise Refused(
        f"input '{_cut(name)}': data holds {came}, but shape {_shown(shape)} needs {_cut(str(size))}"
    )


def _are_sizes(shape: list[Any]) -> bool:
    # A bool is an int to Python; type() tells them apart. A plain loop, for every request comes by here.
    for size in shape:  # noqa: SIM110
        if type(size) is not int or size < 0:
            return False
    return True


def _array(name: str, datatype: Datatype, data: list[Any], *, nulls: bool) -> np.ndarray:
    if datatype.largest is not None and len(data) <= _SMALL and _are_numbers(data, datatype.largest):
        return np.array(data, dtype=datatype.dtype)
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise Refused(f"input '{_cut(name)}': data is a list of uneven or too deep lists") from error
    kind = array.dtype.kind
    if kind == "O" and nulls and datatype.dtype.kind == "f":
        array = _with_nulls(name, array)
        kind = "f"
    if kind == "f" and datatype.name == "UINT64":
        array = _large_integers(array, data)
        kind = array.dtype.kind
    if kind not in datatype.json_kinds:
        raise Refused(
            f"input '{_cut(name)}': {datatype.name} takes {datatype.json_words}, "
            f"but data holds {_KIND_WORDS.get(kind, 'something else')}"
        )
    if datatype.dtype.kind == "f":
        if array.dtype == datatype.dtype:
            return array
        try:
            with np.errstate(over="raise"):
                return array.astype(datatype.dtype)
        except FloatingPointError as error:
            raise Refused(
                f"input '{_cut(name)}': data holds a number too large for {datatype.name}"
            ) from error
    if kind == "U":
        return _text(name, data, array.shape)
    if array.dtype == datatype.dtype:
        return array
    bounds = np.iinfo(datatype.dtype)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < bounds.min or highest > bounds.max:
        outside = lowest if lowest < bounds.min else highest
        raise Refused(
            f"input '{_cut(name)}': {outside} is outside {datatype.name}, which holds {bounds.min} to {bounds.max}"
        )
    return array.astype(datatype.dtype)


def _are_numbers(data: list[Any], largest: float) -> bool:
    """Tell whether numpy may convert a flat list unchecked; what is false here may yet be right."""
    for number in data:
        kind = type(number)  # a bool is an int to isinstance
        if (kind is not float and kind is not int) or not -largest <= number <= largest:
            return False
    return True


def _with_nulls(name: str, array: np.ndarray) -> np.ndarray:
    if not all(value is None or type(value) in (int, float) for value in array.flat):
        raise Refused(f"input '{_cut(name)}': data should hold numbers and null only")
    return array.astype(np.float64)


def _large_integers(array: np.ndarray, data: list[Any]) -> np.ndarray:
    """Keep integers whole that numpy, seeing small and very large ones together, reads as floats."""
    exact = np.array(data, dtype=object)
    if all(type(value) is int and value >= 0 for value in exact.flat):
        return exact.astype(np.uint64)
    return array


def _text(name: str, data: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Take strings as they are: numpy reads [1, "a"] as two strings, and drops trailing NULs."""
    array = np.array(data, dtype=object)
    if array.shape != shape or not all(type(value) is str for value in array.flat):
        raise Refused(f"input '{_cut(name)}': BYTES takes strings, but data holds mixed values")
    return array


def _shown(value: Any) -> str:
    """Name a value in a message without repeating a megabyte of it."""
    if value is None:
        return "absent"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"'{_cut(value)}'"
    if isinstance(value, list):
        few = ", ".join(_shown(item) if not isinstance(item, list) else "[…]" for item in value[:8])
        return f"[{few}{', …' if len(value) > 8 else ''}]"
    return _cut({True: "true", False: "false"}[value] if isinstance(value, bool) else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
