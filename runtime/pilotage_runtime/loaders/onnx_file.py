"""Just enough of ONNX's protobuf wire format to vet a file without loading it.

onnxruntime would read external data from wherever a file says. This walks the messages that can hold a
tensor, skips everything else by its length, and so costs little even for gigabytes (the file is mapped).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# message → field number → the message that the field holds
_TENSOR_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_GRAPH_FIELD = 7
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})

Buffer = bytes | mmap.mmap


class MalformedOnnxError(ValueError):
    """The bytes are no ONNX model, or only a part of one."""


def external_locations(path: Path) -> set[str]:
    """List the files that a model's tensors point to; raise where the file is no whole ONNX model."""
    if path.stat().st_size == 0:
        raise MalformedOnnxError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return locations_in(data)


def locations_in(data: Buffer) -> set[str]:
    """The same for a model that lies in memory."""
    if not is_model(top_fields(data)):
        raise MalformedOnnxError("the file holds no ONNX graph")
    return set(_locations(data))


def top_fields(data: Buffer) -> frozenset[int]:
    """The numbers of the fields of the outermost message."""
    return frozenset(number for number, _, _, _ in fields(data, 0, len(data)))


def is_model(numbers: frozenset[int]) -> bool:
    """Whether a message of these fields can be an ONNX model."""
    return numbers <= _MODEL_FIELDS and _GRAPH_FIELD in numbers


def looks_like_onnx(head: bytes) -> bool:
    """Tell from the first bytes: a model opens with its IR version, a small number in field 1."""
    return len(head) > 2 and head[0] == (1 << 3 | VARINT) and 0 < head[1] < 64


def _locations(data: Buffer) -> Iterator[str]:
    pending = [("Model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        if message == "Entry":
            entry = {number: data[a:b] for number, wire, a, b in fields(data, start, end) if wire == BYTES}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode(errors="replace")
            continue
        inside = _TENSOR_PATHS[message]
        pending.extend(
            (inside[number], a, b)
            for number, wire, a, b in fields(data, start, end)
            if wire == BYTES and number in inside
        )


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end of the value) of one message."""
    at = start
    while at < end:
        key, at = varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            begin = at
            _, at = varint(data, at, end)
        elif wire == BYTES:
            length, begin = varint(data, at, end)
            at = begin + length
        elif wire in (FIXED64, FIXED32):
            begin, at = at, at + (8 if wire == FIXED64 else 4)
        else:
            raise MalformedOnnxError(f"byte {at} cannot be part of an ONNX model")
        if at > end:
            raise MalformedOnnxError(f"the file ends in the middle: {end} bytes, at least {at} expected")
        yield number, wire, begin, at


def varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise MalformedOnnxError(f"the file ends or breaks in the middle of a number at byte {at}")
