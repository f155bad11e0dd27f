"""The end of a connection whose caller is still sending: its answer should reach it all the same."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

FAREWELL_SECONDS = 2
FAREWELL_BYTES = 64 * 2**20


class Farewell:
    """Reads on for a moment without looking: a close with data unread resets the connection, and its answer is lost."""

    def __init__(
        self,
        transport: asyncio.Transport,
        flow: FlowControl,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[], None],
    ) -> None:
        self._close = close
        self._bytes = 0
        self._timer = loop.call_later(FAREWELL_SECONDS, close)
        if transport.can_write_eof():  # TLS cannot; its caller has a content-length to go by
            transport.write_eof()
        flow.resume_reading()

    def discard(self, size: int) -> None:
        """Take note of what came, and of nothing in it."""
        self._bytes += size
        if self._bytes > FAREWELL_BYTES:
            self._close()

    def end(self) -> None:
        """Forget it: the connection is lost."""
        self._timer.cancel()


class Exit:
    """The transport as uvicorn's cycle sees it, which would close it at once."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, part: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = part
