"""V2 REST bodies: parse a request into tensors, write an answer from tensors; JSON, with binary tensors behind it."""

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.protocol import binary
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
MOST_DIMENSIONS = 64  # numpy holds no more
_SMALL = 64  # elements below which a Python loop beats numpy's call overhead


class InferRequest(NamedTuple):
    """A parsed request; `outputs` is empty where the caller wants them all."""

    id: str | None
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]
    timeout_us: int = 0  # how long the caller waits; 0 says nothing
    sharing: bytes | None = None  # requests may share a run of the model only where these are equal
    parameters: dict[str, Any] | None = None  # for models that take some
    binary: bool = False  # outputs are wanted binary, but for those that say otherwise
    forms: dict[str, bool] | None = None  # outputs that say: binary or not


# What these say is between the caller and the server; everything else is for the model.
_OWN = frozenset({"binary_data_output", "timeout", "priority"})


def parse(body: bytes, contract: Contract, json_length: int | None = None) -> InferRequest:
    """Read a request; raise Refused with a sentence that its sender can act on.

    `json_length` is where the JSON ends and binary tensors begin; None: there are none.
    """
    tail = None
    text: bytes | memoryview = body
    if json_length is not None:
        tail = binary.Tail(body, json_length)
        text = memoryview(body)[:json_length]
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Refused(f"the body is not JSON: {error}") from error
    return read(document, contract, tail)


def read(document: Any, contract: Contract, tail: binary.Tail | None = None) -> InferRequest:
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
        inputs[name] = _tensor(entry, name, contract.input_by_name.get(name), tail)
    if tail is not None:
        tail.end()
    wanted = document.get("outputs")
    parameters = document.get("parameters")
    if not wanted and not parameters:  # as most requests
        return InferRequest(request_id, inputs, ())
    outputs, forms = _wanted(wanted) if wanted else ((), None)
    if not parameters:
        return InferRequest(request_id, inputs, outputs, forms=forms)
    return InferRequest(request_id, inputs, outputs, forms=forms, **known_parameters(parameters))


def answer(
    model: str,
    version: str,
    request: InferRequest,
    specs: Sequence[TensorSpec],
    values: Sequence[np.ndarray],
) -> tuple[bytes | list[bytes | memoryview], int | None]:
    """Write an answer and tell how long its JSON is where binary tensors follow it.

    Data is flat and row-major, as the protocol's peers send it.
    """
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    # list[…]() makes the alias anew at every request, and fails to name itself in the list.
    outputs: list[dict[str, Any]] = []
    raw: list[bytes | memoryview] = []
    for spec, value in zip(specs, values, strict=True):
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": value.shape}
        wants_binary = request.binary
        if request.forms is not None:
            wants_binary = request.forms.get(spec.name, wants_binary)
        if wants_binary:
            part = binary.raw(DATATYPES[spec.datatype], value)
            raw.append(part)
            output["parameters"] = {"binary_data_size": len(part)}
        else:
            output["data"] = data(spec, value)
        outputs.append(output)
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return ([text, *raw], len(text)) if raw else (text, None)


def data(spec: TensorSpec, value: np.ndarray) -> Any:
    """Give a tensor's elements as orjson writes them."""
    if value.dtype.kind in "OUS":
        return [
            item.decode("utf-8", "replace") if isinstance(item, bytes) else item
            for item in value.ravel().tolist()
        ]
    if spec.datatype == "BF16":
        value = value.astype(np.float32)
    return value.ravel()


def _wanted(entries: Any) -> tuple[tuple[str, ...], dict[str, bool] | None]:
    if type(entries) is not list:
        raise Refused(f"'outputs' should be a list, but is {_shown(entries)}")
    names: dict[str, None] = {}
    forms: dict[str, bool] | None = None
    for at, entry in enumerate(entries):
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise Refused(f"outputs[{at}] should be an object with a 'name', but is {_shown(entry)}")
        name = entry["name"]
        if name in names:
            raise Refused(f"output '{_cut(name)}' is asked for twice")
        names[name] = None
        parameters = entry.get("parameters")
        if not parameters:
            continue
        if type(parameters) is not dict:
            raise Refused(f"outputs[{at}].parameters should be an object, but is {_shown(parameters)}")
        if "classification" in parameters:
            raise Refused(
                f"output '{_cut(name)}': the classification extension is not supported; labels are in the metadata",
                501,
            )
        if "shared_memory_region" in parameters:
            raise Refused(f"output '{_cut(name)}': shared memory is not supported", 501)
        form = parameters.get("binary_data")
        if form is not None:
            if type(form) is not bool:
                raise Refused(
                    f"outputs[{at}].parameters.binary_data should be true or false, but is {_shown(form)}"
                )
            if forms is None:
                forms = {}
            forms[name] = form
    return tuple(names), forms


def known_parameters(given: Any) -> dict[str, Any]:
    """Read a request's parameters into the fields of InferRequest; raise Refused for what is none."""
    if type(given) is not dict:
        raise Refused(f"'parameters' should be an object, but is {_shown(given)}")
    for name, value in given.items():
        if type(value) not in (str, int, float, bool):
            raise Refused(
                f"parameter '{_cut(name)}' should be a string, a number, true or false, but is {_shown(value)}"
            )
    known: dict[str, Any] = {}
    form = given.get("binary_data_output")
    if form is not None:
        if type(form) is not bool:
            raise Refused(f"parameter 'binary_data_output' should be true or false, but is {_shown(form)}")
        known["binary"] = form
    timeout = given.get("timeout")
    if timeout is not None:
        if type(timeout) is not int or timeout < 0:
            raise Refused(f"parameter 'timeout' should be a number of microseconds, but is {_shown(timeout)}")
        known["timeout_us"] = timeout
    rest = {name: value for name, value in given.items() if name not in _OWN}
    if rest:
        known["parameters"] = rest
        known["sharing"] = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)
    return known


def _tensor(
    entry: dict[str, Any], name: str, spec: TensorSpec | None, tail: binary.Tail | None
) -> np.ndarray:
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
    if len(shape) > MOST_DIMENSIONS:
        raise Refused(
            f"input '{_cut(name)}': shape has {len(shape)} dimensions; at most {MOST_DIMENSIONS} are taken"
        )
    size = prod(shape)
    if size == 0:
        raise Refused(f"input '{_cut(name)}': shape {_shown(shape)} holds no element; send at least one row")
    data = entry.get("data")
    if tail is not None or data is None:
        parameters = entry.get("parameters")
        if parameters and type(parameters) is dict and data is None:
            return _binary(name, datatype, shape, parameters, tail)
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


def _binary(
    name: str, datatype: Datatype, shape: list[int], parameters: dict[str, Any], tail: binary.Tail | None
) -> np.ndarray:
    if "shared_memory_region" in parameters:
        raise Refused(f"input '{_cut(name)}': shared memory is not supported; send data", 501)
    length = parameters.get("binary_data_size")
    if type(length) is not int or length < 0:
        raise Refused(
            f"input '{_cut(name)}': has no 'data', and its binary_data_size should be a number of bytes, but is "
            f"{_shown(length)}"
        )
    if tail is None:
        raise Refused(
            f"input '{_cut(name)}': binary_data_size needs the header Inference-Header-Content-Length, the length "
            "of the JSON before the binary data"
        )
    return binary.tensor(_cut(name), datatype, shape, tail.take(_cut(name), length))


def _are_sizes(shape: list[Any]) -> bool:
    # A bool is an int to Python; type() tells them apart. A plain loop, for every request comes by here.
    for size in shape:  # noqa: SIM110
        if type(size) is not int or size < 0:
            return False
    return True


def _array(name: str, datatype: Datatype, data: list[Any], *, nulls: bool) -> np.ndarray:
    if datatype.largest is not None and len(data) <= _SMALL and _are_numbers(data, datatype.largest):
        return np.array(data, dtype=datatype.dtype)
    kinds = set(map(type, data))
    if list in kinds:
        kinds |= _kinds_within(data)
    if bool in kinds and kinds - {bool, list}:
        # numpy would read true as 1.
        raise Refused(f"input '{_cut(name)}': data holds true or false among other values")
    # A string is looked for before numpy sees it, which gives each element of an array the room of the longest.
    if str in kinds:
        return _text(name, datatype, data)
    try:
        # Told what comes, numpy need not look for it, which pays for our having looked.
        array = np.fromiter(data, np.float64, len(data)) if kinds == {float} else np.array(data)
    except (ValueError, OverflowError) as error:
        raise Refused(f"input '{_cut(name)}': data is a list of uneven or too deep lists") from error
    kind = array.dtype.kind
    if kind == "O" and nulls and datatype.largest is not None:
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
    if datatype.largest is not None:
        if array.dtype == datatype.dtype:
            return array
        try:
            with np.errstate(over="raise"):
                return array.astype(datatype.dtype)
        except FloatingPointError as error:
            raise Refused(
                f"input '{_cut(name)}': data holds a number too large for {datatype.name}"
            ) from error
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


def _kinds_within(data: list[Any]) -> set[type]:
    """List the types of what lists of lists hold."""
    found, level = set[type](), data
    while level:
        kinds = set(map(type, level))
        found |= kinds
        level = (
            list(chain.from_iterable([part for part in level if type(part) is list])) if list in kinds else []
        )
    return found


def _text(name: str, datatype: Datatype, data: list[Any]) -> np.ndarray:
    """Take strings as they are: numpy reads [1, "a"] as two strings, and drops trailing NULs."""
    try:
        array = np.array(data, dtype=object)
    except ValueError as error:
        raise Refused(f"input '{_cut(name)}': data is a list of uneven or too deep lists") from error
    only = all(type(value) is str for value in array.flat)
    if datatype.name != "BYTES":
        came = _KIND_WORDS["U" if only else "O"]
        raise Refused(
            f"input '{_cut(name)}': {datatype.name} takes {datatype.json_words}, but data holds {came}"
        )
    if not only:
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
