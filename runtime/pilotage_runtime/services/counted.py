"""An inference that FastAPI serves: counted in the same metrics, refused in the same words."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import Refused
from pilotage_runtime.repository import Repository
from pilotage_runtime.services.exchange import Exchange, is_late
from pilotage_runtime.services.infer import refused as answer_of
from pilotage_runtime.telemetry import Slot

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class EventStream(StreamingResponse):
    """Server-sent events; their end, and not their beginning, is counted."""

    def __init__(self, events: AsyncGenerator[bytes], outcome: "Outcome") -> None:
        super().__init__(events, media_type="text/event-stream")
        self._events = events
        self._outcome = outcome
        self.ended: Callable[[int], None] = lambda _: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a caller that leaves closes them at once, and not when memory is next tidied."""
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self.ended(self._outcome.status)


class CallerLeftError(ClientDisconnect):
    """The caller left before it was answered."""


async def unless_left(request: Request, answering: Awaitable[_T]) -> _T:
    """Await an answer to a request whose body is whole; raise CallerLeftError, and cancel, where the caller leaves first."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, leaving = asyncio.ensure_future(answering), asyncio.create_task(left())
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise CallerLeftError("the caller left before it was answered")
    finally:
        answer.cancel()
        leaving.cancel()


@dataclass(slots=True)
class Outcome:
    """How a stream ended: until its last event its caller may leave."""

    status: int = 499


async def counted(
    request: Request,
    repository: Repository,
    name: tuple[str, str | None],
    serve: Callable[[Engine, Exchange], Awaitable[Response]],
) -> Response:
    """Find the engine, let it serve, and count what comes of it; every failure is answered in the one shape."""
    exchange: Exchange = request.scope["exchange"]
    try:
        engine = repository.engine(*name)
    except Refused as refused:
        repository.unknown.enter()
        _leave(repository.unknown, exchange, refused.status)
        raise
    engine.slot.enter()
    engine.holders += 1
    engine.used_at = exchange.started
    status: int | None = 499
    streamed = False
    try:
        response = await serve(engine, exchange)
        status = response.status_code
        if isinstance(response, EventStream):
            streamed = True
            response.ended = partial(_ended, engine, exchange)
    except Refused as refused:
        status = refused.status
        headers = {key.decode(): value.decode() for key, value in refused.headers}
        response = JSONResponse({"error": refused.message}, status, headers)
    except asyncio.CancelledError:
        # Edge cancels when the caller's time is up; else the caller has left.
        status = 504 if is_late(exchange.deadline) else 499
        raise
    except CallerLeftError:
        raise
    except ClientDisconnect:
        status = None
        raise
    except Exception as error:  # noqa: BLE001 - `answer_of` tells what it knows, and logs the rest
        answer = answer_of(error, exchange)
        status = answer.status
        headers = {key.decode(): value.decode() for key, value in answer.headers}
        assert isinstance(answer.body, bytes)
        response = Response(answer.body, status, headers, "application/json")
    finally:
        if status is None:  # the caller left before its request was whole: nobody's failure
            engine.holders -= 1
            engine.slot.abandon()
        elif not streamed:
            _ended(engine, exchange, status)
    return response


def json(body: Any) -> Response:
    """Answer with numbers as numpy holds them."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _ended(engine: Engine, exchange: Exchange, status: int) -> None:
    engine.holders -= 1
    _leave(engine.slot, exchange, status)


def _leave(slot: Slot, exchange: Exchange, status: int) -> None:
    if exchange.pinned:
        slot.leave_pinned()
    else:
        slot.leave(status, time.perf_counter() - exchange.started)
