"""uvicorn's HTTP connection with limits on time and size, and a way of its own for inference.

An inference goes from the parser to its handler and back without an ASGI scope, a task or a message: at the
size of a small model these cost more than everything else. Whatever is no inference takes uvicorn's way.
"""

import asyncio
import sys
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pilotage_runtime.services.arrival import Arrival, unfinished
from pilotage_runtime.services.asgi import error_body
from pilotage_runtime.services.call import Call
from pilotage_runtime.services.exchange import Answer
from pilotage_runtime.services.farewell import Exit, Farewell
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
# A head comes in one or two packets; one that trickles in holds a connection and nothing else.
HEAD_SECONDS = 30
# An answer may take long to be taken, but not for ever.
UNREAD_SECONDS = 30
UNREAD_BYTES = 16 * 1024
_ONE_WRITE = 64 * 1024  # larger bodies are not copied behind their head


class Connection(HttpToolsProtocol):
    """One connection; a head that grows past the limits is answered 431 and closed."""

    def __init__(
        self, inference: InferHandler, lifecycle: Lifecycle, *, most: int = 2**17, **options: Any
    ) -> None:
        super().__init__(**options)
        self._most = most
        self._inference = inference
        self._lifecycle = lifecycle
        self._in_head = False
        self._upgrading = False  # a head that asks for another protocol was read, and is read anew without
        self._names_connection = False  # without that header nothing of HTTP/1.0 is kept
        self._head_bytes = 0
        self._data_bytes = 0
        self._chunk_bytes = 0  # what of the last chunk no head has been charged for
        self._silent_bytes = 0  # since the last of a body: chunks' extensions and trailers
        self._head_too_large = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._arrival: Arrival | None = None
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._held = False
        self._farewell: Farewell | None = None
        self.serving: Any = None  # the cycle whose turn it is: `cycle` is the last one that came

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._inference.sheet.connected(1)
        # One that never says a word may stay no longer than one that has said its last.
        self._idle_since = self.loop.time()
        self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)
        if len(self.connections) > self._most:
            # Without descriptors left nothing could be refused, nor metrics be scraped.
            self._tell(503, f"this server has {self._most} connections, the most that it takes")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inference.sheet.connected(-1)
        self._end_head_timer()
        for timer in (self._idle_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._idle_timer = self._unread_timer = None
        if self._arrival is not None:
            self._arrival.end()
        if self._farewell is not None:
            self._farewell.end()
        self._inference.held.sent(self)
        pending: list[Any] = [self.serving, self.cycle, *(cycle for cycle, _ in self.pipeline)]
        self.pipeline.clear()
        for cycle in dict.fromkeys(pending):
            if type(cycle) is not Call:
                _disconnect(cycle)
            elif not cycle.response_complete:
                cycle.gone()
        if type(self.cycle) is Call:
            self.cycle: Any = None
        super().connection_lost(exc)
        self.cycle = self.serving = None  # they know this connection: none would go without the collector

    def data_received(self, data: bytes) -> None:
        if self._farewell is not None:
            self._farewell.discard(len(data))
            return
        self._chunk_bytes = self._data_bytes = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        self._silent_bytes += len(data)
        self._parse(data)
        if self._farewell is not None or self.transport.is_closing():
            return
        if self._in_head:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._head_too_large = True
                self.send_400_response("")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif self._silent_bytes > MAX_HEAD_BYTES:
            # Nobody reads them, and they may not go on for ever.
            self._head_too_large = True
            self.send_400_response("")
        elif unfinished(self.cycle) and not self.cycle.response_complete:
            arrival = self._arrival
            if arrival is not None and arrival.cycle is self.cycle:
                arrival.came(len(data))
            else:
                if arrival is not None:
                    arrival.end()
                self._arrival = Arrival(self.cycle, self.transport, self.flow, self.loop)

    def _parse(self, data: bytes) -> None:
        """Feed the parser; a request to speak another protocol is served as if it had not asked (RFC 9110, 7.8)."""
        rest = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                except httptools.HttpParserUpgrade as upgrade:
                    # Here the parser ends the request, and would take its body for the next one.
                    rest = memoryview(rest)[upgrade.args[0] :]
                    head = self._head_without_upgrade()
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                    self._upgrading = False
                    self.parser.feed_data(head)
                else:
                    return
        except httptools.HttpParserError:
            if self._farewell is None:
                self.send_400_response("")

    def _head_without_upgrade(self) -> bytes:
        parser = self.parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        if self._farewell is not None:
            raise ValueError("what comes behind the last request is not read")  # ends the parser
        self._in_head = True
        self._silent_bytes = 0
        # Of a head that begins behind other requests in one chunk, what follows the chunk is counted.
        self._head_bytes, self._chunk_bytes = self._chunk_bytes, 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = self._names_connection = False

    def on_headers_complete(self) -> None:
        headers = self.headers
        if len(headers) > MAX_HEADERS or (
            self._head_bytes + self._data_bytes > MAX_HEAD_BYTES
            and sum(len(name) + len(value) for name, value in headers) + len(self.url) > MAX_HEAD_BYTES
        ):
            self._head_too_large = True
            raise ValueError("head too large")  # the parser turns it into send_400_response
        parser: Any = self.parser  # None only once the connection is lost, after which nothing is parsed
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                raise ValueError("a tunnel")  # the parser turns it into send_400_response
            self._upgrading = True
            return
        self._in_head = False
        self._end_head_timer()
        path = self._inference_path() if parser.get_method() == b"POST" else None
        if path is None:
            url, expects = self.url, self.expect_100_continue
            super().on_message_begin()  # makes the scope, which an inference does without
            self.url, self.headers, self.expect_100_continue = url, headers, expects
            self.scope["headers"] = headers
            super().on_headers_complete()
            cycle: Any = self.cycle
            cycle.transport = Exit(self.transport, self._part)
            if not self.pipeline or self.pipeline[0][0] is not cycle:
                self.serving = cycle
            return
        before: Any = self.cycle
        call = self.cycle = Call(
            self,
            self._inference,
            path,
            headers,
            keep_alive=parser.should_keep_alive() and not (self._names_connection and self._is_old()),
            expects_continue=self.expect_100_continue,
        )
        if before is None or (before.response_complete and not self.pipeline):
            call.take_turn()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((call, self.app))  # pyright: ignore[reportArgumentType]

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # behind a body come trailers, which nobody reads
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"connection":
            self._names_connection = True
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        call: Any = self.cycle
        if type(call) is Call:
            call.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        call: Any = self.cycle
        if type(call) is Call:
            call.whole()
        else:
            super().on_message_complete()

    def send(self, call: Call, answer: Answer) -> None:
        """Write an answer, and go on to the next request."""
        if self._ending():
            call.response_complete = True
            return
        body = answer.body
        parts: list[bytes | memoryview] = [body] if isinstance(body, bytes) else [*body]
        size = len(body) if isinstance(body, bytes) else sum(memoryview(part).nbytes for part in body)
        head = [STATUS_LINE[answer.status]]
        for name, value in (*self.server_state.default_headers, *answer.headers):
            head += (name, b": ", value, b"\r\n")
        # A body left unread would be taken for the next request.
        closing = not call.keep_alive or not call.complete or self._lifecycle.draining
        head.append(
            b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n"
            % (
                answer.content_type,
                size,
                call.request_id.encode("ascii"),
                b"connection: close\r\n" if closing else b"",
            )
        )
        if size <= _ONE_WRITE:
            self.transport.write(b"".join([*head, *parts]))
        else:
            self.transport.writelines([b"".join(head), *parts])
        call.response_complete = True
        if closing:
            self._part()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        # As uvicorn does, but it sets and cancels a timer a request; here one runs on, and looks at the clock.
        self.server_state.total_requests += 1
        if self._ending():
            return
        if self.flow.write_paused:
            # Who does not take its answers may ask nothing more.
            self._held = True
            self.flow.pause_reading()
        else:
            self._next()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._inference.held.unsent(self, self.transport.get_write_buffer_size())
        self._watch_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._inference.held.sent(self)
        self._unread_bytes = sys.maxsize  # some of it was taken
        if self._held:
            self._held = False
            self._next()

    def shutdown(self) -> None:
        if self._farewell is not None:
            return  # it ends soon
        cycle: Any = self.cycle
        if cycle is None or (cycle.response_complete and not self.pipeline):
            self.transport.close()
        else:
            cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        del msg
        status, message = 400, "this is no valid HTTP request"
        if self._head_too_large:
            status = 431
            message = f"a request's head may hold {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
        self._refuse(status, message)

    def _refuse(self, status: int, message: str) -> None:
        """Answer, whatever was asked, and close."""
        self._tell(status, message)
        for cycle in (self.serving, self.cycle):
            if type(cycle) is not Call:
                _disconnect(cycle)  # what uvicorn would still write comes too late
        self._read_on()

    def _part(self) -> None:
        """Close behind the last answer."""
        if unfinished(self.cycle):
            self._read_on()
        else:
            self.transport.close()

    def _read_on(self) -> None:
        self._end_head_timer()
        if not self._ending():
            self._farewell = Farewell(self.transport, self.flow, self.loop, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._watch_unread()  # a close waits until all is sent

    def _ending(self) -> bool:
        return self._farewell is not None or self.transport.is_closing()

    def _tell(self, status: int, message: str) -> None:
        body = error_body(message)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)

    def _is_old(self) -> bool:
        # As uvicorn, which does not keep a connection of HTTP/1.0: its caller waits to be told, or for the end.
        parser: Any = self.parser
        return parser.get_http_version() == "1.0"

    def _inference_path(self) -> str | None:
        """Give the path of an inference; None for whatever else is asked."""
        if self.url.find(b"/infer") == -1:  # `in` first takes the word for a number, and fails, at great cost
            return None
        # Without query; a proxy's absolute form is not taken apart, and is no path of ours.
        path = self.url.partition(b"?")[0].decode("latin-1")
        if "%" in path:
            path = unquote(path)
        return path if self._inference.serves(path) else None

    def _next(self) -> None:
        """Go on to the request that waits behind the one just answered."""
        self.flow.resume_reading()
        if self.pipeline:
            # Not at once: many refusals in a row would pile their frames upon each other.
            self.loop.call_soon(self._start_next)
        else:
            self._idle_since = self.loop.time()

    def _start_next(self) -> None:
        if not self.pipeline or self._ending():
            return
        cycle: Any
        cycle, app = self.pipeline.pop()
        if type(cycle) is Call:
            cycle.take_turn()
        else:
            self.serving = cycle
            self._start_asgi_task(cycle, app)

    def _close_if_idle(self) -> None:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's types say
        busy = self._in_head or (cycle is not None and not cycle.response_complete)
        since = self.loop.time() if busy else self._idle_since
        remaining = since + self.timeout_keep_alive - self.loop.time()
        if remaining > 0:
            self._idle_timer = self.loop.call_later(remaining, self._close_if_idle)
        elif self._farewell is None:
            self._close()

    def _watch_unread(self) -> None:
        """Look in a while whether the caller has taken any of what was written."""
        if self._unread_timer is None and (unread := self.transport.get_write_buffer_size()):
            self._unread_bytes = unread
            self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self._abort_if_unread)

    def _abort_if_unread(self) -> None:
        self._unread_timer = None
        if self.transport.get_write_buffer_size() > max(0, self._unread_bytes - UNREAD_BYTES):
            self.transport.abort()
        else:
            self._watch_unread()

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _disconnect(cycle: Any) -> None:
    """Tell a cycle of uvicorn's, if there is one, that its caller is gone."""
    if cycle is not None:
        cycle.disconnected = True
        cycle.message_event.set()
