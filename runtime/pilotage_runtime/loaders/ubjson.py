"""Reads UBJSON as XGBoost writes it: a strict subset, in one pass, every length held against what is left.

Source: https://ubjson.org, and "Model IO" in XGBoost's documentation.
"""

import struct
from typing import Any

import numpy as np

# XGBoost nests ten deep; its reader, which calls itself, would follow more until its stack ends.
MAX_DEPTH = 32
_NUMBERS = {
    mark: np.dtype(form)
    for mark, form in (
        (b"i", "i1"),
        (b"U", "u1"),
        (b"I", ">i2"),
        (b"l", ">i4"),
        (b"L", ">i8"),
        (b"d", ">f4"),
        (b"D", ">f8"),
    )
}
_CONSTANTS = {b"T": True, b"F": False, b"Z": None}
_LENGTH = struct.Struct(">cq")


class MalformedUBJSONError(ValueError):
    """The bytes are no whole document."""


def read(content: bytes) -> Any:
    """Give the document: arrays of one type as numpy arrays, the rest as Python has it."""
    reader = _Reader(content)
    document = reader.value(reader.take(1), 0)
    if reader.at != len(content):
        raise MalformedUBJSONError(f"it ends at byte {reader.at}, but {len(content) - reader.at} more follow")
    return document


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._content) - self.at:
            raise MalformedUBJSONError(f"{size} bytes should follow at byte {self.at}, and do not")
        self.at += size
        return self._content[self.at - size : self.at]

    def value(self, mark: bytes, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise MalformedUBJSONError(f"it is nested more than {MAX_DEPTH} deep")
        if mark == b"{":
            return self._object(depth)
        if mark == b"[":
            return self._array(depth)
        if mark == b"S":
            return self._text()
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        return self._numbers(mark, 1)[0].item()

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._content[self.at : self.at + 1] != b"}":
            name = self._text()
            if name in found:
                raise MalformedUBJSONError(f"it holds {name!r:.60} twice")
            found[name] = self.value(self.take(1), depth + 1)
        self.at += 1
        return found

    def _array(self, depth: int) -> Any:
        kind = self.take(1)
        if kind == b"$":
            mark = self.take(1)
            if self.take(1) != b"#":
                raise MalformedUBJSONError(f"an array before byte {self.at} has a type, but no size")
            return self._numbers(mark, self._length())
        if kind == b"#":
            return [self.value(self.take(1), depth + 1) for _ in range(self._length(least=1))]
        raise MalformedUBJSONError(f"an array before byte {self.at} has no size")

    def _numbers(self, mark: bytes, size: int) -> np.ndarray:
        dtype = _NUMBERS.get(mark)
        if dtype is None:
            raise MalformedUBJSONError(f"{mark!r} before byte {self.at} is no type that XGBoost writes")
        return np.frombuffer(self.take(size * dtype.itemsize), dtype)

    def _text(self) -> str:
        try:
            return self.take(self._length(least=1)).decode()
        except UnicodeDecodeError as error:
            raise MalformedUBJSONError(f"a text before byte {self.at} is not UTF-8") from error

    def _length(self, least: int = 0) -> int:
        mark, length = _LENGTH.unpack(self.take(_LENGTH.size))
        if mark != b"L" or length < 0 or length * least > len(self._content) - self.at:
            raise MalformedUBJSONError(f"{mark!r} {length} before byte {self.at} is no length that can be")
        return length
