"""The outermost layer in this process, with a model that waits for the test's word."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import Refused
from pilotage_runtime.log import AccessLog
from pilotage_runtime.services.edge import Edge
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.infer import MAX_IN_FLIGHT, InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.telemetry import CODES, Slot
from tests.runtime.test_engine import Scripted, contract, double

BODY = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [2]}]})


class World:
    """An Edge over a scripted model, and what it sent."""

    def __init__(self, run: Any) -> None:
        self.slot = Slot()
        self.slot.start(0)
        self.engine = Engine("m", Scripted(contract(), run), contract(), threads=1)
        self.edge = Edge(
            InferHandler(self.engine, self.slot, 1000),
            self.rest,
            self.slot,
            Lifecycle(),
            AccessLog(descriptor=-1),
        )
        self.sent: list[dict[str, Any]] = []
        self.fails_with: Exception | None = None

    async def rest(self, scope: Any, receive: Any, send: Any) -> None:
        if self.fails_with:
            raise self.fails_with

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def call(self, body: Any = BODY, path: str = "/v2/models/m/infer", **headers: str) -> None:
        async def receive() -> dict[str, Any]:
            if isinstance(body, bytes):
                return {"type": "http.request", "body": body, "more_body": False}
            return await anext(body)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        await self.edge(scope, receive, self.send)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def error(self) -> str:
        return orjson.loads(self.sent[1]["body"])["error"]

    def count(self, code: int) -> float:
        return self.slot.values[CODES.index(code)]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_time_up_is_answered_and_counted_while_the_model_still_runs(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    world = World(wait)
    async with asyncio.timeout(20):
        await world.call(x_envoy_expected_rq_timeout_ms="30")
    assert not gate.is_set()
    assert (world.status, world.count(504), world.slot.in_flight) == (504, 1, 0)
    assert world.error == "no answer within the 30 ms that the caller waits"


async def test_a_request_that_waits_beyond_its_time_never_reaches_the_model(gate: threading.Event) -> None:
    started = threading.Event()
    runs: list[int] = []

    def wait(inputs: Any, outputs: Any) -> list[Any]:
        runs.append(1)
        started.set()
        gate.wait()
        return double(inputs, outputs)

    world = World(wait)
    first = asyncio.create_task(world.call())
    await asyncio.to_thread(started.wait)
    async with asyncio.timeout(20):
        await world.call(x_envoy_expected_rq_timeout_ms="30")
    assert world.status == 504
    gate.set()
    await first
    assert (len(runs), world.count(504), world.count(200)) == (1, 1, 1)


async def test_a_request_that_is_not_whole_in_time_is_the_callers_fault() -> None:
    async def endless() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.Event().wait()

    world = World(double)
    async with asyncio.timeout(20):
        await world.call(endless(), x_envoy_expected_rq_timeout_ms="30")
    assert (world.status, world.count(408), world.count(504)) == (408, 1, 0)
    assert (b"connection", b"close") in world.sent[0]["headers"]


async def test_a_request_that_waits_several_times_is_answered_within_its_time() -> None:
    async def slowly() -> AsyncIterator[dict[str, Any]]:
        for at in range(len(BODY)):
            await asyncio.sleep(0)
            yield {"type": "http.request", "body": BODY[at : at + 1], "more_body": at + 1 < len(BODY)}

    world = World(double)
    async with asyncio.timeout(20):
        await world.call(slowly(), x_envoy_expected_rq_timeout_ms="20000")
    assert (world.status, world.count(200), world.slot.in_flight) == (200, 1, 0)


async def test_a_request_cancelled_while_it_waits_counts_as_no_answer() -> None:
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[dict[str, Any]]:
        waiting.set()
        await asyncio.Event().wait()
        yield {}

    world = World(double)
    task = asyncio.create_task(world.call(endless(), x_envoy_expected_rq_timeout_ms="20000"))
    async with asyncio.timeout(20):
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert world.slot.in_flight == 0
    assert not any(world.count(code) for code in CODES)


async def test_a_caller_that_leaves_is_counted_as_no_answer() -> None:
    async def leaving() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": b"{", "more_body": True}
        yield {"type": "http.disconnect"}

    world = World(double)
    await world.call(leaving())
    assert world.sent == []
    assert world.slot.in_flight == 0
    assert not any(world.count(code) for code in CODES)


async def test_beyond_the_most_at_once_the_answer_is_busy() -> None:
    world = World(double)
    for _ in range(MAX_IN_FLIGHT):
        world.slot.enter()
    await world.call()
    assert (world.status, world.count(503)) == (503, 1)
    assert (b"retry-after", b"1") in world.sent[0]["headers"]


async def test_no_more_of_an_endless_body_is_read_than_the_cap() -> None:
    chunks = 0

    async def receive() -> dict[str, Any]:
        nonlocal chunks
        chunks += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": chunks < 1000}

    exchange = Exchange({"method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(Refused) as refused:
        await exchange.body(limit=1000)
    assert refused.value.status == 413
    assert chunks == 11


async def test_a_defect_of_our_own_is_500_without_its_text() -> None:
    world = World(double)
    world.fails_with = RuntimeError("the secret of the inside")
    await world.call(path="/v2")
    assert world.status == 500
    assert world.error == "internal error; the log has it under this request's id"

    def bad_shape(inputs: Any, outputs: Any) -> list[Any]:
        return [np.array([1], np.float32), "more than asked for"]

    world = World(bad_shape)
    await world.call()
    assert (world.status, world.count(500)) == (500, 1)
