"""The memory that callers hold: bodies that are not answered, and answers that are not taken."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from pilotage_runtime.errors import Refused
from pilotage_runtime.services.exchange import Answer, refusal

if TYPE_CHECKING:
    from pilotage_runtime.services.connection import Connection

# Not refused because others do not read: a queue of these is bounded by its length.
SMALL_BYTES = 64 * 1024

_RETRY = (b"retry-after", b"1")


class Holder(Protocol):
    """A request whose body is held."""

    size: int
    arriving: bool

    def answer(self, answer: Answer) -> None:
        """Take a refusal: the body has to go."""
        ...


class Held:
    """One sum, which whoever adds to it compares with the most; only beyond that anybody is looked for."""

    def __init__(self, *, each: int, together: int) -> None:
        """`each` body may have so many bytes, and all of them, with answers that nobody takes, so many."""
        self.each = each
        self.most = max(each, together)
        self.size = 0
        self._unsent_size = 0
        # In the order in which they came; a body that comes with its head is never in here.
        self._arriving: dict[Holder, None] = {}
        self._unsent: dict[Connection, int] = {}

    def arrives(self, holder: Holder) -> None:
        """A body is on its way, and holds what has come of it."""
        holder.arriving = True
        self._arriving[holder] = None

    def arrived(self, holder: Holder) -> None:
        """All of it is here: from now on it is for us to hurry."""
        holder.arriving = False
        del self._arriving[holder]

    def release(self, holder: Holder) -> None:
        """Nothing of its body is needed any more."""
        self.size -= holder.size
        holder.size = 0
        if holder.arriving:
            self.arrived(holder)

    def make_room(self, holder: Holder) -> None:
        """Refuse who holds most, so that who sends slowly does not keep out everybody else."""
        while (refused := self._in_the_way(holder)) is not None:
            refused.answer(refusal(429, self._busy(), _RETRY))
            if refused is holder:
                return

    @contextmanager
    def whole(self, size: int) -> Generator[None]:
        """Hold a body that was gathered elsewhere; raise Refused where there is no room."""
        self.size += size
        try:
            if self.size > self.most and size > SMALL_BYTES:
                raise Refused(self._busy(), 429, _RETRY)
            yield
        finally:
            self.size -= size

    def _busy(self) -> str:
        return f"busy: unanswered requests and answers that nobody takes have {self.size} bytes"

    def _in_the_way(self, holder: Holder) -> Holder | None:
        """Tell which body has to go, so that this one may grow: the largest on its way, or this one itself."""
        if self.size <= self.most:
            return None
        if holder.size <= SMALL_BYTES and self.size - self._unsent_size <= self.most:
            return None
        largest = max(self._arriving, key=lambda one: one.size, default=holder)
        return largest if largest.size > holder.size else holder

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
