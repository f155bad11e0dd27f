"""The memory that callers hold: bodies that are not answered, and answers that are not taken."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotage_runtime.services.call import Call
    from pilotage_runtime.services.connection import Connection

# Not refused because others do not read: a queue of these is bounded by its length.
SMALL_BYTES = 64 * 1024


class Held:
    """One sum, which whoever adds to it compares with the most; only beyond that anybody is looked for."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self._unsent_size = 0
        # In the order in which they came; a body that comes with its head is never in here.
        self._arriving: dict[Call, None] = {}
        self._unsent: dict[Connection, int] = {}

    def arrives(self, call: "Call") -> None:
        """A body is on its way, and holds what has come of it."""
        call.arriving = True
        self._arriving[call] = None

    def arrived(self, call: "Call") -> None:
        """All of it is here: from now on it is for us to hurry."""
        call.arriving = False
        del self._arriving[call]

    def release(self, call: "Call") -> None:
        """Nothing of its body is needed any more."""
        self.size -= call.size
        call.size = 0
        if call.arriving:
            self.arrived(call)

    def in_the_way(self, call: "Call") -> "Call | None":
        """Tell which body has to go, so that this one may grow: the largest on its way, or this one itself."""
        if self.size <= self.most:
            return None
        if call.size <= SMALL_BYTES and self.size - self._unsent_size <= self.most:
            return None
        largest = max(self._arriving, key=lambda one: one.size, default=call)
        return largest if largest.size > call.size else call

    def unsent(self, connection: "Connection", size: int) -> None:
        """A caller does not take its answer as fast as it is written; beyond the most, who waits longest is cut off."""
        self.size += size
        self._unsent_size += size
        self._unsent[connection] = size
        while self._unsent_size > self.most:
            oldest = next(iter(self._unsent))
            if oldest is connection:
                break
            self.sent(oldest)
            oldest.transport.abort()

    def sent(self, connection: "Connection") -> None:
        """It has taken most of it, or is gone."""
        size = self._unsent.pop(connection, 0)
        self.size -= size
        self._unsent_size -= size
