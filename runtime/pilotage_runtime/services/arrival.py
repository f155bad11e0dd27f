"""A body that did not come with its head: it may take long, but not for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from pilotage_runtime.services.call import Call
from pilotage_runtime.services.exchange import refusal

# Slower than this nobody sends who means to be served: 500 bytes a second, as Apache asks for.
BODY_SECONDS = 30
BODY_BYTES = 16 * 1024


def unfinished(cycle: Any) -> bool:
    """Whether more of a request's body is to come; `cycle` is a Call or uvicorn's own, None before the first."""
    if cycle is None:
        return False
    return not cycle.complete if type(cycle) is Call else cycle.more_body


class Arrival:
    """Looks at the clock while a body comes: it keeps up a rate, and does not outlast its caller's patience."""

    def __init__(
        self, cycle: Any, transport: asyncio.Transport, flow: FlowControl, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.cycle: Any = cycle
        self._transport = transport
        self._flow = flow
        self._loop = loop
        self._bytes = 0
        self._until = loop.time() + BODY_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        if type(cycle) is Call and cycle.early is None:
            cycle.handler.held.arrives(cycle)
        self._look()

    def came(self, size: int) -> None:
        """Take note of a packet."""
        self._bytes += size

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.cycle = None

    def _look(self) -> None:
        self._timer = None
        now, call = self._loop.time(), self.cycle
        if not unfinished(call) or call.response_complete or self._transport.is_closing():
            self.cycle = None
            return
        until = float("inf")
        if type(call) is Call and call.deadline is not None:
            until = call.deadline
            if now >= until:
                self._refuse(f"the request was not whole within {call.allowance} ms")
                return
        if now >= self._until:
            # While we do not read, it is not the caller who is slow.
            if self._bytes < BODY_BYTES and not self._flow.read_paused:
                self._refuse(f"fewer than {BODY_BYTES} bytes of the body came within {BODY_SECONDS} s")
                return
            self._bytes, self._until = 0, now + BODY_SECONDS
        self._timer = self._loop.call_at(min(self._until, until), self._look)

    def _refuse(self, sentence: str) -> None:
        call = self.cycle
        self.cycle = None
        if type(call) is Call and call.early is None:
            call.answer(refusal(408, sentence))
        else:
            self._transport.close()
