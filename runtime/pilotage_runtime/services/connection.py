"""uvicorn's HTTP connection with limits on a request's head, and errors in the shape of all others."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pilotage_runtime.services.exchange import error_body

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
# A head comes in one or two packets; one that trickles in holds a connection and nothing else.
HEAD_SECONDS = 30


class Connection(HttpToolsProtocol):
    """One connection; a head that grows past the limits is answered 431 and closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._head_bytes = 0
        self._chunk_bytes = 0
        self._head_too_large = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        # One that never says a word may stay no longer than one that has said its last.
        self._idle_since = self.loop.time()
        self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk_bytes = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._head_too_large = True
            self.send_400_response("")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._chunk_bytes
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS or (
            self._head_bytes > MAX_HEAD_BYTES
            and sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES
        ):
            self._head_too_large = True
            raise ValueError("head too large")  # the parser turns it into send_400_response
        self._in_head = False
        self._end_head_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        # As uvicorn does, but it sets and cancels a timer a request; here one runs on, and looks at the clock.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        del msg
        status, message = 400, "this is no valid HTTP request"
        if self._head_too_large:
            status = 431
            message = f"a request's head may hold {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
        body = error_body(message)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _close_if_idle(self) -> None:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's types say
        busy = self._in_head or (cycle is not None and not cycle.response_complete)
        since = self.loop.time() if busy else self._idle_since
        remaining = since + self.timeout_keep_alive - self.loop.time()
        if remaining > 0:
            self._idle_timer = self.loop.call_later(remaining, self._close_if_idle)
        else:
            self.transport.close()

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
