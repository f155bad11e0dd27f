"""The outermost ASGI layer, for all but inference: request id, deadline, access log and drain."""

import asyncio
import logging
import time

from starlette.requests import ClientDisconnect

from pilotage_runtime.log import AccessLog
from pilotage_runtime.services.asgi import ASGIApp, Message, Receive, Scope, Send
from pilotage_runtime.services.exchange import Answer, Exchange, refusal
from pilotage_runtime.services.lifecycle import Lifecycle

# Probes come every second: their successes tell nothing.
_UNLOGGED = frozenset({"/v2/health/live", "/v2/health/ready"})

# A stream ends itself at its deadline, with an event that says so; a caller that does not read it is cut off.
_LAST_WORDS_SECONDS = 1

_CLIENT_CLOSED = 499  # as nginx writes it

logger = logging.getLogger(__name__)


class Edge:
    """Sends everything to FastAPI; the connection has kept inference for itself."""

    def __init__(self, rest: ASGIApp, lifecycle: Lifecycle, access_log: AccessLog) -> None:
        self._rest = rest
        self._lifecycle = lifecycle
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        exchange = Exchange(scope["method"], scope["path"], scope["headers"])
        scope["exchange"] = exchange
        begun = list[int]()
        patience = asyncio.timeout_at(exchange.deadline)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message["status"])
                headers = [*message["headers"], (b"x-request-id", exchange.request_id.encode("ascii"))]
                if self._lifecycle.draining:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        async def in_time(message: Message) -> None:
            if exchange.deadline is not None and not begun and not patience.expired():
                patience.reschedule(exchange.deadline + _LAST_WORDS_SECONDS)
            await with_headers(message)

        error: str | None = None
        try:
            async with patience:
                await self._rest(scope, receive, in_time)
        except ClientDisconnect as left:
            error = str(left) or "the caller left before its request was whole"
            begun.clear()  # what was sent reached nobody
        except Exception as failure:
            error = type(failure).__name__
            late = isinstance(failure, TimeoutError)
            if not late:
                logger.exception("unexpected failure", extra={"request_id": exchange.request_id})
            if not begun:
                answer = (
                    refusal(504, f"no answer within the {exchange.allowance} ms that the caller waits")
                    if late
                    else refusal(500, "internal error; the log has it under this request's id")
                )
                await self._send(answer, with_headers)
        status = begun[0] if begun else _CLIENT_CLOSED
        if status != 200 or exchange.path not in _UNLOGGED:
            seconds = time.perf_counter() - exchange.started
            self._access_log.write(
                exchange.request_id, exchange.method, exchange.path, status, seconds, error=error
            )

    @staticmethod
    async def _send(answer: Answer, send: Send) -> None:
        assert isinstance(answer.body, bytes)
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            # What is left of the body would be taken for the next request.
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
