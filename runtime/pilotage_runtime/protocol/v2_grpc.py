"""V2 over gRPC: messages to tensors and back; raw contents as they are, typed ones by their datatype."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from pilotage_runtime.contract import TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.protocol import binary, v2
from pilotage_runtime.tensors import DATATYPES, Datatype

# Where a message carries the elements of a datatype; 16-bit floats have no such place and come raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read(message: Any) -> v2.InferRequest:
    """Read a ModelInferRequest; raise Refused with a sentence that its sender can act on."""
    raws = list(message.raw_input_contents)
    if not message.inputs:
        raise Refused("the request has no inputs")
    inputs: dict[str, np.ndarray] = {}
    used = 0
    for tensor in message.inputs:
        name = tensor.name
        if name in inputs:
            raise Refused(f"input '{name[:60]}' came twice")
        datatype = DATATYPES.get(tensor.datatype)
        if datatype is None:
            raise Refused(
                f"input '{name[:60]}': datatype '{tensor.datatype[:60]}' is unknown; known are {', '.join(DATATYPES)}"
            )
        shape = list(tensor.shape)
        if len(shape) > v2.MOST_DIMENSIONS:
            raise Refused(
                f"input '{name[:60]}': shape has {len(shape)} dimensions; at most {v2.MOST_DIMENSIONS} are taken"
            )
        if any(size < 0 for size in shape) or prod(shape) == 0:
            raise Refused(f"input '{name[:60]}': shape {shape[:8]} should hold at least one element")
        if tensor.HasField("contents"):
            inputs[name] = _typed(name[:60], datatype, shape, tensor.contents)
        elif used < len(raws):
            inputs[name] = binary.tensor(name[:60], datatype, shape, raws[used])
            used += 1
        else:
            raise Refused(f"input '{name[:60]}' has neither contents nor raw_input_contents")
    if used < len(raws):
        raise Refused(f"{len(raws)} raw_input_contents came, {used} inputs are without contents")
    outputs: dict[str, None] = {}
    for wanted in message.outputs:
        if "classification" in wanted.parameters:
            raise Refused(f"output '{wanted.name[:60]}': the classification extension is not supported", 501)
        if wanted.name in outputs:
            raise Refused(f"output '{wanted.name[:60]}' is asked for twice")
        outputs[wanted.name] = None
    parameters = {name: _parameter(value) for name, value in message.parameters.items()}
    known = v2.known_parameters(parameters) if parameters else {}
    known.pop("binary", None)
    return v2.InferRequest(message.id or None, inputs, tuple(outputs), binary=bool(raws), **known)


def write(
    message: Any,
    request: v2.InferRequest,
    specs: Sequence[TensorSpec],
    values: Sequence[np.ndarray],
) -> Any:
    """Fill a ModelInferResponse: raw where the request was, or where a datatype has no typed contents."""
    message.id = request.id or ""
    # One answer is either all raw or all typed: readers take the raw parts by their place.
    raw = request.binary or any(spec.datatype not in _CONTENTS for spec in specs)
    for spec, value in zip(specs, values, strict=True):
        output = message.outputs.add(name=spec.name, datatype=spec.datatype, shape=value.shape)
        if raw:
            message.raw_output_contents.append(bytes(binary.raw(DATATYPES[spec.datatype], value)))
        elif spec.datatype == "BYTES":
            elements = [
                item if isinstance(item, bytes) else str(item).encode() for item in value.ravel().tolist()
            ]
            output.contents.bytes_contents.extend(elements)
        else:
            getattr(output.contents, _CONTENTS[spec.datatype]).extend(value.ravel().tolist())
    return message


def _typed(name: str, datatype: Datatype, shape: list[int], contents: Any) -> np.ndarray:
    field = _CONTENTS.get(datatype.name)
    if field is None:
        raise Refused(f"input '{name}': {datatype.name} has no typed contents; send raw_input_contents")
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if filled != [field]:
        came = ", ".join(filled) or "nothing"
        raise Refused(f"input '{name}': {datatype.name} should come in {field}, but {came} came")
    elements = getattr(contents, field)
    if len(elements) != prod(shape):
        raise Refused(f"input '{name}': {len(elements)} elements came, shape {shape[:8]} needs {prod(shape)}")
    if datatype.name == "BYTES":
        array = np.empty(len(elements), dtype=object)
        try:
            array[:] = [element.decode() for element in elements]
        except UnicodeDecodeError as error:
            raise Refused(f"input '{name}': an element is not UTF-8: {error.reason}") from error
        return array.reshape(shape)
    array = np.array(elements, dtype=np.float64 if datatype.name == "FP64" else None)
    if datatype.dtype.kind in "iu":
        bounds = np.iinfo(datatype.dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise Refused(
                f"input '{name}': an element is outside {datatype.name}, which holds {bounds.min} to {bounds.max}"
            )
    return array.astype(datatype.dtype).reshape(shape)


def _parameter(value: Any) -> Any:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise Refused("a parameter has no value")
    return getattr(value, choice)
