"""The outermost layer of all that is no inference, around an application that does what the test says."""

import asyncio
import os
from typing import Any

import orjson
import pytest
from starlette.requests import ClientDisconnect

from pilotage_runtime.log import AccessLog
from pilotage_runtime.services.edge import Edge
from pilotage_runtime.services.lifecycle import Lifecycle
from tests.runtime.scripted import NOWHERE


async def call(
    app: Any, *, draining: bool = False, log: AccessLog | None = None, **headers: str
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v2",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    lifecycle = Lifecycle(draining=draining)
    await Edge(app, lifecycle, log or AccessLog(NOWHERE))(scope, receive, send)
    return sent


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_each_answer_has_a_request_id_and_while_draining_the_word_to_close() -> None:
    headers = (await call(fine, x_request_id="a-1"))[0]["headers"]
    assert headers == [(b"x-request-id", b"a-1")]
    assert (b"connection", b"close") in (await call(fine, draining=True))[0]["headers"]


async def test_a_defect_of_our_own_is_500_without_its_text() -> None:
    head, answer = await call(broken)
    assert head["status"] == 500
    assert orjson.loads(answer["body"]) == {"error": "internal error; the log has it under this request's id"}


async def test_time_up_is_504() -> None:
    async with asyncio.timeout(20):
        head, answer = await call(endless, x_envoy_expected_rq_timeout_ms="20")
    assert head["status"] == 504
    assert orjson.loads(answer["body"]) == {"error": "no answer within the 20 ms that the caller waits"}


async def endless(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


async def left(scope: Any, receive: Any, send: Any) -> None:
    await fine(scope, receive, send)
    raise ClientDisconnect


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("the secret of the inside")


@pytest.mark.parametrize(
    ("app", "status", "error"),
    [
        (fine, 200, None),
        (broken, 500, "RuntimeError"),
        (endless, 504, "TimeoutError"),
        # What was begun has reached nobody.
        (left, 499, "the caller left before its request was whole"),
    ],
)
async def test_the_access_log_tells_what_the_caller_got_and_why(
    app: Any, status: int, error: str | None
) -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer)
    async with asyncio.timeout(20):
        await call(app, log=log, x_request_id="r", x_envoy_expected_rq_timeout_ms="20")
    log.flush()
    line = orjson.loads(os.read(reader, 10_000))
    assert (line["request_id"], line["method"], line["path"]) == ("r", "GET", "/v2")
    assert (line["status"], line.get("error")) == (status, error)
    for descriptor in (reader, writer):
        os.close(descriptor)
