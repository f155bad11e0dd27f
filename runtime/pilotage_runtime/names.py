"""Names in shared memory: what a label's values are called, written once by a worker and read by whoever is scraped.

They lie beside the counts that they name, so a count is never shown under another's name: not while workers change to
a new file of the same version one after the other, and not after a worker's death. A name keeps its place for ever.
"""

import threading
from collections.abc import Iterable

# More values than these share the place OTHER: a label's values are series, and each costs.
MOST = 64
PLACES = MOST + 1
OTHER = "other"
_OTHER_AT = MOST
_NAME_BYTES = 64
_HEAD_BYTES = 1
BYTES = _HEAD_BYTES + MOST * _NAME_BYTES
# A model may load in a thread beside the one that it will replace, which counts in the same place.
_naming = threading.Lock()


class Names:
    """The names of one label of one version, in one worker's memory."""

    def __init__(self, memory: "memoryview[int]") -> None:
        self._memory = memory
        self._at = {name: at for at, name in enumerate(self.listed())}

    def listed(self) -> list[str]:
        """List the names in the order of their places."""
        return [self._read(at) for at in range(self._memory[0])]

    def place(self, name: str) -> int:
        """Give a name's place, a new one where it has none, that of all others where none is left."""
        name = _cut(name)
        at = self._at.get(name)
        return self._new(name) if at is None else at

    def _new(self, name: str) -> int:
        if len(self._at) >= MOST or name == OTHER:
            return _OTHER_AT
        with _naming:
            self._at = {known: at for at, known in enumerate(self.listed())}
            if name in self._at:
                return self._at[name]
            at = len(self._at)
            if at >= MOST:
                return _OTHER_AT
            encoded = name.encode()
            start = _HEAD_BYTES + at * _NAME_BYTES
            self._memory[start : start + len(encoded)] = encoded
            # Last, so that whoever reads meanwhile sees no half of a name.
            self._memory[0] = at + 1
            self._at[name] = at
            return at

    def places(self, names: Iterable[str]) -> list[int]:
        """Give the places of several names."""
        return [self.place(name) for name in names]

    def _read(self, at: int) -> str:
        start = _HEAD_BYTES + at * _NAME_BYTES
        return bytes(self._memory[start : start + _NAME_BYTES]).rstrip(b"\0").decode("utf-8", "replace")


def _cut(name: str) -> str:
    """Make a name fit its place; without NUL, which ends it there."""
    name = name.replace("\0", "")
    encoded = name.encode("utf-8", "replace")
    if len(encoded) <= _NAME_BYTES:
        return encoded.decode()
    mark = "…".encode()
    return encoded[: _NAME_BYTES - len(mark)].decode("utf-8", "ignore") + "…"
