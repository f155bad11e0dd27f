"""The binary tensor extension of V2 over REST: raw little-endian tensors behind the JSON of a body.

`Inference-Header-Content-Length` says where the JSON ends. An input with the parameter `binary_data_size` takes so
many bytes of the rest, in the order of the inputs. BYTES elements each have a length before them, 4 bytes.
Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from math import prod
from struct import Struct

import numpy as np

from pilotage_runtime.errors import Refused
from pilotage_runtime.tensors import Datatype

_LENGTH = Struct("<I")


class Tail:
    """What follows the JSON, taken piece by piece."""

    def __init__(self, body: bytes, json_length: int) -> None:
        if json_length > len(body):
            raise Refused(
                f"Inference-Header-Content-Length is {json_length}, but the whole body has {len(body)} bytes"
            )
        self._rest = memoryview(body)[json_length:]

    def take(self, name: str, size: int) -> memoryview:
        """Take the next bytes for an input."""
        if size > len(self._rest):
            raise Refused(f"input '{name}': binary_data_size is {size}, but {len(self._rest)} bytes are left")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def end(self) -> None:
        """Refuse bytes that belong to no input."""
        if self._rest:
            raise Refused(f"{len(self._rest)} bytes are left behind the last binary input")


def tensor(name: str, datatype: Datatype, shape: list[int], raw: memoryview | bytes) -> np.ndarray:
    """Read a raw tensor; where its bytes lie aligned, without a copy."""
    count = prod(shape)
    if datatype.name == "BYTES":
        return _elements(name, raw, count).reshape(shape)
    expected = count * datatype.dtype.itemsize
    if len(raw) != expected:
        raise Refused(f"input '{name}': {len(raw)} bytes came, {datatype.name} {shape} has {expected}")
    if datatype.name == "BOOL":
        # Any other bit pattern is no bool to numpy, and undefined behaviour to what reads it.
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape)
    array = np.frombuffer(raw, datatype.dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def raw(datatype: Datatype, value: np.ndarray) -> bytes | memoryview:
    """Write a tensor; numbers without a copy where they lie together in memory."""
    if datatype.name != "BYTES":
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    parts = list[bytes]()
    for element in value.ravel().tolist():
        text = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(text)), text)
    return b"".join(parts)


def _elements(name: str, raw: memoryview | bytes, count: int) -> np.ndarray:
    view, at = memoryview(raw), 0
    elements = list[str | bytes]()
    while at < len(view):
        if len(elements) == count:
            raise Refused(f"input '{name}': more than the {count} elements that its shape needs came")
        if at + 4 > len(view):
            raise Refused(f"input '{name}': the last element's length is cut off")
        (length,) = _LENGTH.unpack_from(view, at)
        at += 4
        if at + length > len(view):
            raise Refused(
                f"input '{name}': element {len(elements)} should have {length} bytes, {len(view) - at} are left"
            )
        elements.append(_text(name, len(elements), bytes(view[at : at + length])))
        at += length
    if len(elements) != count:
        raise Refused(f"input '{name}': {len(elements)} elements came, its shape needs {count}")
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array


def _text(name: str, at: int, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Refused(
            f"input '{name}': element {at} is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
