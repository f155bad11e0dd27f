"""Just enough of ONNX's protobuf wire format to vet a file without loading it.

onnxruntime would read external data from wherever a file says. This walks the messages that can hold a
tensor, skips everything else by its length, and so costs little even for gigabytes (the file is mapped).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

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


class MalformedOnnxError(ValueError):
    """The bytes are no ONNX model, or only a part of one."""


def external_locations(path: Path) -> set[str]:
    """List the files that a model's tensors point to; raise where the file is no whole ONNX model."""
    if path.stat().st_size == 0:
        raise MalformedOnnxError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        fields = {number for number, _, _, _ in _fields(data, 0, len(data))}
        if not fields <= _MODEL_FIELDS or _GRAPH_FIELD not in fields:
            raise MalformedOnnxError("the file holds no ONNX graph")
        return set(_locations(data))


def looks_like_onnx(head: bytes) -> bool:
    """Tell from the first bytes: a model opens with its IR version, a small number in field 1."""
    return len(head) > 2 and head[0] == (1 << 3 | _VARINT) and 0 < head[1] < 64


def _locations(data: mmap.mmap) -> Iterator[str]:
    pending = [("Model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        if message == "Entry":
            entry = {number: data[a:b] for number, wire, a, b in _fields(data, start, end) if wire == _BYTES}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode(errors="replace")
            continue
        inside = _TENSOR_PATHS[message]
        pending.extend(
            (inside[number], a, b)
            for number, wire, a, b in _fields(data, start, end)
            if wire == _BYTES and number in inside
        )


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end of the value) of one message."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            begin = at
            _, at = _varint(data, at, end)
        elif wire == _BYTES:
            length, begin = _varint(data, at, end)
            at = begin + length
        elif wire in (_FIXED64, _FIXED32):
            begin, at = at, at + (8 if wire == _FIXED64 else 4)
        else:
            raise MalformedOnnxError(f"byte {at} cannot be part of an ONNX model")
        if at > end:
            raise MalformedOnnxError(f"the file ends in the middle: {end} bytes, at least {at} expected")
        yield number, wire, begin, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
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
