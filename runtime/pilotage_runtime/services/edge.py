"""The outermost layer: request id, deadline, in-flight, metrics, access log and drain, for every path."""

import asyncio
import logging
import time
import types
from collections.abc import Coroutine, Generator
from typing import Any

from pilotage_runtime.log import AccessLog
from pilotage_runtime.services.exchange import (
    JSON,
    Answer,
    ASGIApp,
    ClientGoneError,
    Exchange,
    Message,
    Receive,
    Scope,
    Send,
    refusal,
)
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.telemetry import Slot

# Probes come every second: their successes tell nothing.
_UNLOGGED = frozenset({"/v2/health/live", "/v2/health/ready"})
_CLIENT_CLOSED = 499  # in the access log only, as nginx writes it

logger = logging.getLogger(__name__)


class Edge:
    """Sends inference to its handler, everything else to FastAPI."""

    def __init__(
        self, infer: InferHandler, rest: ASGIApp, slot: Slot, lifecycle: Lifecycle, access_log: AccessLog
    ) -> None:
        self._infer = infer
        self._rest = rest
        self._slot = slot
        self._lifecycle = lifecycle
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        exchange = Exchange(scope, receive)
        if exchange.path.endswith("/infer"):
            await self._serve_inference(exchange, send)
        else:
            await self._serve_rest(exchange, scope, receive, send)

    async def _serve_inference(self, exchange: Exchange, send: Send) -> None:
        slot = self._slot
        slot.enter()
        try:
            answer = await (self._infer(exchange) if exchange.deadline is None else self._in_time(exchange))
        except ClientGoneError:
            slot.abandon()
            self._log(exchange, _CLIENT_CLOSED, "the caller left before its request was whole")
            return
        except asyncio.CancelledError:
            slot.abandon()
            raise
        except Exception:
            logger.exception("unexpected failure", extra={"request_id": exchange.request_id})
            answer = refusal(500, "internal error; the log has it under this request's id")
        # Counted when the answer is known, before a slow reader takes it.
        seconds = time.perf_counter() - exchange.started
        if exchange.pinned:
            slot.leave_pinned()
        else:
            slot.leave(answer.status, seconds)
        self._access_log.write(
            exchange.request_id, exchange.method, exchange.path, answer.status, seconds, error=answer.error
        )
        await self._send(exchange, answer, send)

    async def _in_time(self, exchange: Exchange) -> Answer:
        inference = self._infer(exchange)
        try:
            waits_for = inference.send(None)
        except StopIteration as finished:  # without ever waiting: a timer had nothing to cut short
            answer: Answer = finished.value
        else:
            timer = asyncio.timeout_at(exchange.deadline)
            try:
                async with timer:
                    answer = await _resumed(inference, waits_for)
            except TimeoutError:
                if not timer.expired():
                    raise
                return self._too_late(exchange)
        # A run in the loop's own thread holds the timer back with everything else.
        overdue = asyncio.get_running_loop().time() > (exchange.deadline or 0)
        return self._too_late(exchange) if overdue else answer

    @staticmethod
    def _too_late(exchange: Exchange) -> Answer:
        if not exchange.body_complete:
            return refusal(408, f"the request was not whole within {exchange.allowance} ms")
        return refusal(504, f"no answer within the {exchange.allowance} ms that the caller waits")

    async def _send(self, exchange: Exchange, answer: Answer, send: Send) -> None:
        headers = [
            (b"content-type", JSON),
            (b"content-length", b"%d" % len(answer.body)),
            (b"x-request-id", exchange.request_id.encode("ascii")),
            *answer.headers,
        ]
        # A body left unread would be taken for the next request.
        if self._lifecycle.draining or (answer.status >= 400 and not exchange.body_complete):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _serve_rest(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", exchange.request_id.encode("ascii"))]
                if self._lifecycle.draining:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        error: str | None = None
        try:
            async with asyncio.timeout_at(exchange.deadline):
                await self._rest(scope, receive, with_headers)
        except Exception as failure:
            error = type(failure).__name__
            if not isinstance(failure, TimeoutError):
                logger.exception("unexpected failure", extra={"request_id": exchange.request_id})
            if status == 0:
                answer = (
                    self._too_late(exchange)
                    if isinstance(failure, TimeoutError)
                    else refusal(500, "internal error; the log has it under this request's id")
                )
                status = answer.status
                await self._send(exchange, answer, send)
        if status != 200 or exchange.path not in _UNLOGGED:
            self._log(exchange, status, error)

    def _log(self, exchange: Exchange, status: int, error: str | None) -> None:
        seconds = time.perf_counter() - exchange.started
        self._access_log.write(
            exchange.request_id, exchange.method, exchange.path, status, seconds, error=error
        )


@types.coroutine
def _resumed(begun: Coroutine[Any, Any, Answer], waits_for: Any) -> Generator[Any, Any, Answer]:
    """Await a coroutine that was begun by hand and now waits for something."""
    while True:
        try:
            result = yield waits_for
        except BaseException as error:  # noqa: BLE001 - a cancellation too is for the coroutine to hear
            step, value = begun.throw, error
        else:
            step, value = begun.send, result
        try:
            waits_for = step(value)
        except StopIteration as finished:
            return finished.value
