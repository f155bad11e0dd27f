"""Takes the ZipMap off the end of an ONNX model.

scikit-learn's converters end a classifier with a ZipMap, which turns the tensor of probabilities into a list
with a {class: probability} for each row. For a small model that costs more than the inference, and the
tensor is what the protocol carries. So the file is rewritten in memory: an Identity in the ZipMap's place,
under the same output name, and the classes go to the contract. Only what is rewritten is understood; every
other byte is copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pilotage_runtime.loaders.onnx_file import BYTES, VARINT, MalformedOnnxError, fields, varint

MOST_BYTES = 256 * 2**20  # a larger file is not held twice in memory; its ZipMap stays

# Fields of ONNX's messages.
_GRAPH, _OPSETS = 7, 8
_NODE, _OUTPUT = 1, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_NAME = 1
_INTS, _STRINGS = 8, 9
_OPSET_DOMAIN = 1
_FLOAT = 1


@dataclass(frozen=True, slots=True)
class Stripped:
    """A model without ZipMaps, and the classes that each of them named."""

    model: bytes
    labels: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _ZipMap:
    source: bytes
    output: bytes
    labels: tuple[str, ...]


def stripped(model: bytes) -> Stripped | None:
    """Rewrite a model whose outputs come from ZipMaps; None where there is nothing to take off."""
    if b"ZipMap" not in model or not _has_core_operators(model):
        return None
    parts: list[bytes] = []
    labels: dict[str, tuple[str, ...]] = {}
    for number, wire, start, begin, end in _spans(model, 0, len(model)):
        if number == _GRAPH and wire == BYTES:
            graph = _graph(model, begin, end, labels)
            parts.append(_message(_GRAPH, graph))
        else:
            parts.append(model[start:end])
    return Stripped(b"".join(parts), labels) if labels else None


def _graph(model: bytes, start: int, end: int, labels: dict[str, tuple[str, ...]]) -> bytes:
    zip_maps = {
        begin: found
        for number, wire, begin, stop in fields(model, start, end)
        if number == _NODE and wire == BYTES and (found := _zip_map(model, begin, stop)) is not None
    }
    outputs = {
        name
        for number, wire, begin, stop in fields(model, start, end)
        if number == _OUTPUT and wire == BYTES and (name := _first(model, begin, stop, _NAME)) is not None
    }
    by_output = {found.output: found for found in zip_maps.values() if found.output in outputs}
    parts: list[bytes] = []
    for number, _, field, begin, stop in _spans(model, start, end):
        if number == _NODE and begin in zip_maps and zip_maps[begin].output in by_output:
            parts.append(_message(_NODE, _identity(zip_maps[begin])))
        elif number == _OUTPUT and (name := _first(model, begin, stop, _NAME)) in by_output:
            assert name is not None, "it is a key"
            parts.append(_message(_OUTPUT, _tensor(name, len(by_output[name].labels))))
            try:
                labels[name.decode()] = by_output[name].labels
            except UnicodeDecodeError as error:
                raise MalformedOnnxError("an output's name is no text") from error
        else:
            parts.append(model[field:stop])
    return b"".join(parts)


def _zip_map(model: bytes, start: int, end: int) -> _ZipMap | None:
    """Read a node if it is a ZipMap that names its classes."""
    if _first(model, start, end, _NODE_OPERATOR) != b"ZipMap":
        return None
    source = _first(model, start, end, _NODE_INPUT)
    output = _first(model, start, end, _NODE_OUTPUT)
    labels: tuple[str, ...] = ()
    for number, wire, begin, stop in fields(model, start, end):
        if number == _NODE_ATTRIBUTE and wire == BYTES:
            labels = labels or tuple(_labels(model, begin, stop))
    return _ZipMap(source, output, labels) if source and output and labels else None


def _labels(model: bytes, start: int, end: int) -> Iterator[str]:
    for number, wire, begin, stop in fields(model, start, end):
        if number == _STRINGS and wire == BYTES:
            yield model[begin:stop].decode(errors="replace")
        elif number == _INTS:
            at = begin
            while at < stop:  # one number, or all of them packed
                value, at = varint(model, at, stop)
                yield str(value - 2**64 if value >= 2**63 else value)


def _has_core_operators(model: bytes) -> bool:
    """Whether the model imports the operator set to which Identity belongs."""
    return any(
        number == _OPSETS and wire == BYTES and not _first(model, begin, end, _OPSET_DOMAIN)
        for number, wire, begin, end in fields(model, 0, len(model))
    )


def _first(model: bytes, start: int, end: int, wanted: int) -> bytes | None:
    for number, wire, begin, stop in fields(model, start, end):
        if number == wanted and wire == BYTES:
            return model[begin:stop]
    return None


def _spans(model: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (number, wire type, start of the field, start and end of its value)."""
    at = start
    for number, wire, begin, stop in fields(model, start, end):
        yield number, wire, at, begin, stop
        at = stop


def _identity(zip_map: _ZipMap) -> bytes:
    return (
        _message(_NODE_INPUT, zip_map.source)
        + _message(_NODE_OUTPUT, zip_map.output)
        + _message(_NODE_OPERATOR, b"Identity")
    )


def _tensor(name: bytes, classes: int) -> bytes:
    """A ValueInfoProto: float, any number of rows, a column for each class."""
    rows = _message(1, b"")
    columns = _message(1, _number(1, classes))
    shape = _message(2, rows + columns)
    return _message(_NAME, name) + _message(2, _message(1, _number(1, _FLOAT) + shape))


def _message(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    if value < 0:
        raise MalformedOnnxError(f"{value} is no length")
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
