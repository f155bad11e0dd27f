"""A store's own checksum of a file, and whether what arrived has it."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_READ_BYTES = 1 << 20


class _Sum(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the store says that a whole file sums up to."""

    algorithm: str
    value: bytes

    def fits(self, path: Path) -> bool:
        """Sum the file up and compare."""
        found = _ALGORITHMS[self.algorithm](path.stat().st_size)
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                found.update(chunk)
        return found.digest() == self.value


def _git_blob(size: int) -> _Sum:
    """Git's name for a file's content, which hubs built on Git give for small files."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _crc32c(size: int) -> _Sum:
    del size
    import google_crc32c  # noqa: PLC0415 - comes with the one driver whose store uses it

    return google_crc32c.Checksum()


# Against damage on the way, not against malice: that is what the digest is for.
_ALGORITHMS: dict[str, Callable[[int], _Sum]] = {
    "sha256": lambda _: hashlib.sha256(),
    "sha1": lambda _: hashlib.sha1(usedforsecurity=False),
    "md5": lambda _: hashlib.md5(usedforsecurity=False),
    "crc32": lambda _: _Crc32(),
    "crc32c": _crc32c,
    "git": _git_blob,
}
