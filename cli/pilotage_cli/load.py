"""Load for a server: many connections, one request each at a time, by a protocol with no more in it than that.

Two kinds. Closed: each connection asks again as soon as it has its answer, so a slow server is asked less.
Open: requests are due at a fixed rate whatever the server does, and each is timed from when it was due, not from when
a connection was free to send it; else the very requests that a stall delays would not be counted as late.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from pilotage_cli.histogram import Histogram

# How long answers are waited for once no more is asked.
GRACE_SECONDS = 5.0
_COARSE_SECONDS = 0.001
_RECONNECT_SECONDS = 0.1
_MOST_HEAD_BYTES = 64 * 1024


class Plan(NamedTuple):
    """What to send where, how much of it, and for how long."""

    host: str
    port: int
    request: bytes
    connections: int
    seconds: float
    most: int
    rate: float | None = None  # None: closed


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    latencies: Histogram = field(default_factory=Histogram)
    statuses: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0
    sent: int = 0
    unanswered: int = 0
    first_error: str = ""

    @property
    def answered(self) -> int:
        """How many requests were answered, whatever the answer."""
        return self.statuses.total()


async def run(plan: Plan) -> Outcome:
    """Load, and give what came of it; bounded in time and in the number of requests."""
    load = _Load(plan)
    return await load.run()


class _Load:
    """Decides which connection sends when."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self.idle = deque[_Connection]()
        self.connections = set[_Connection]()
        self.over = False
        self._due = deque[float]()
        self._in_flight = 0
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()

    async def run(self) -> Outcome:
        keepers = [asyncio.create_task(self._keep()) for _ in range(self.plan.connections)]
        started = time.perf_counter()
        try:
            if self.plan.rate is None:
                await self._wait(self.plan.seconds)
            else:
                await self._release(started, self.plan.rate)
            self.over = True
            # In closed load nothing is due any more; in open load what was due is still to be sent.
            self.outcome.seconds = time.perf_counter() - started
            self._settle()
            await self._wait(GRACE_SECONDS)
        finally:
            lost = [connection.due for connection in self.connections if connection.waits]
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        now = time.perf_counter()
        for due in (*self._due, *lost):  # without an answer: at least this late
            self.outcome.latencies.add(now - due)
        self.outcome.unanswered += len(self._due) + len(lost)
        if self.plan.rate is not None:
            self.outcome.seconds = now - started
        return self.outcome

    def free(self, connection: "_Connection") -> None:
        """Give a connection its next request, if there is one."""
        if self.plan.rate is None:
            if not self.over and self.outcome.sent < self.plan.most:
                self._send(connection, time.perf_counter())
            else:
                self._settle()
        elif self._due:
            self._send(connection, self._due.popleft())
        else:
            self.idle.append(connection)
            self._settle()

    def answered(self, connection: "_Connection", status: str, due: float) -> None:
        """Count an answer."""
        self._in_flight -= 1
        self.outcome.latencies.add(time.perf_counter() - due)
        self.outcome.statuses[status] += 1
        self.free(connection)

    def failed(self, what: str, *, sent: bool) -> None:
        """Count a connection that broke, and the request that was lost with it."""
        self.outcome.errors[what] += 1
        if sent:
            self._in_flight -= 1
            self._settle()

    def _send(self, connection: "_Connection", due: float) -> None:
        self.outcome.sent += 1
        self._in_flight += 1
        connection.send(due)

    async def _release(self, started: float, rate: float) -> None:
        """Let requests become due, `rate` a second, each with its own time."""
        released = 0
        most = min(self.plan.most, round(rate * self.plan.seconds))
        while released < most:
            now = time.perf_counter()
            due_by_now = min(most, int((now - started) * rate) + 1)
            while released < due_by_now:
                due = started + released / rate
                released += 1
                if self.idle:
                    self._send(self.idle.popleft(), due)
                else:
                    self._due.append(due)
            # The loop's timers are a millisecond coarse: the last of it is spent looking, or each would be sent late.
            ahead = started + released / rate - time.perf_counter()
            await asyncio.sleep(ahead - _COARSE_SECONDS if ahead > 2 * _COARSE_SECONDS else 0)

    async def _wait(self, seconds: float) -> None:
        """Wait for the time to pass, or for the last answer."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._ended), seconds)

    def _settle(self) -> None:
        done = self.over or self.outcome.sent >= self.plan.most
        if done and not self._due and self._in_flight <= 0 and not self._ended.done():
            self._ended.set_result(None)

    async def _keep(self) -> None:
        """Hold one connection; open it again when it breaks."""
        while True:
            lost = self._loop.create_future()
            try:
                await self._loop.create_connection(
                    lambda lost=lost: _Connection(self, lost), self.plan.host, self.plan.port
                )
            except OSError as error:
                self.failed(f"cannot connect: {error.strerror or error}", sent=False)
            else:
                await lost
            await asyncio.sleep(_RECONNECT_SECONDS)


class _Connection(asyncio.Protocol):
    """Sends a request and finds the end of its answer."""

    def __init__(self, load: _Load, lost: asyncio.Future[None]) -> None:
        self._load = load
        self._lost = lost
        self._request = load.plan.request
        self._transport: asyncio.Transport | None = None
        self.due = 0.0
        self.waits = False
        self._got = b""
        self._size = -1  # of the whole answer, once its head is here

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._transport = transport
        self._load.connections.add(self)
        self._load.free(self)

    def send(self, due: float) -> None:
        """Ask once."""
        self.due = due
        self.waits = True
        assert self._transport is not None
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        if self._size < 0:
            end = got.find(b"\r\n\r\n")
            if end < 0:
                if len(got) > _MOST_HEAD_BYTES:
                    self._break("an answer without an end of its head")
                return
            length = _length(got[:end])
            if length is None:
                self._break("an answer without content-length")
                return
            self._size = end + 4 + length
        if len(got) < self._size:
            return
        status = got[9:12].decode("ascii", "replace")
        if status[0] != "2" and not self._load.outcome.first_error:
            self._load.outcome.first_error = got[got.find(b"\r\n\r\n") + 4 :][:300].decode(errors="replace")
        self._got, self._size, self.waits = b"", -1, False
        self._load.answered(self, status, self.due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.connections.discard(self)
        if self in self._load.idle:
            self._load.idle.remove(self)
        if self.waits:
            self.waits = False
            self._load.failed("connection lost before the answer", sent=True)
        elif exc is not None:
            self._load.failed(f"connection lost: {exc}", sent=False)
        if not self._lost.done():
            self._lost.set_result(None)

    def _break(self, why: str) -> None:
        self.waits = False
        self._load.failed(why, sent=True)
        assert self._transport is not None
        self._transport.abort()


def _length(head: bytes) -> int | None:
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        return None
    value = head[at + 17 :].partition(b"\r\n")[0].strip()
    return int(value) if value.isdigit() else None
