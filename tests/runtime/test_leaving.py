"""Callers that leave before they are answered: who is forgotten, who is answered, and what is counted."""

import asyncio
import threading
from typing import Any

import pytest

from pilotage_runtime.services import connection
from tests.runtime.scripted import Run, body, double, serving
from tests.runtime.test_infer import until


def until_word(gate: threading.Event) -> Run:
    """A model that answers when the gate opens."""

    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    return wait


async def test_a_caller_that_leaves_takes_its_request_out_of_the_queue(gate: threading.Event) -> None:
    async with serving(until_word(gate)) as world:
        first, leaving, third = [await world.caller() for _ in range(3)]
        first.send(body(1))
        await until(lambda: world.model.runs)
        leaving.send(body(2))
        await until(lambda: world.engine.waiting == 1)
        leaving.writer.close()
        await until(lambda: world.engine.waiting == 0)
        third.send(body(3))
        await until(lambda: world.engine.waiting == 1)
        gate.set()
        assert (await third.answer()).json["outputs"][0]["data"] == [6]
        assert world.model.runs == [[1], [3]]
        assert (world.count(499), world.count(200)) == (1, 2)


@pytest.mark.parametrize("behind", ["/v2/models/m/infer", "/health"])
async def test_a_connection_that_is_lost_takes_all_of_its_requests_along(
    gate: threading.Event, behind: str
) -> None:
    async with serving(until_word(gate)) as world:
        first, leaving, third = [await world.caller() for _ in range(3)]
        first.send(body(1))
        await until(lambda: world.model.runs)
        leaving.send(body(2))
        leaving.send(body(3), behind)
        await until(lambda: world.engine.waiting == 1)
        await until(lambda: any(map(pipelined, world.state.connections)))
        third.send(body(4))
        await until(lambda: world.engine.waiting == 2)
        for connected in filter(pipelined, world.state.connections):
            connected.transport.abort()  # nothing is read behind a second request: only a failed write tells
        await until(lambda: world.engine.waiting == 1)
        gate.set()
        assert [(await caller.answer()).status for caller in (first, third)] == [200, 200]
        assert world.model.runs == [[1], [4]]
        await until(lambda: world.in_flight == 0)
        assert (world.count(499), world.count(200), world.engine.holders) == (1, 2, 0)


def pipelined(connected: Any) -> bool:
    return bool(connected.pipeline)


@pytest.mark.parametrize(("waits", "status"), [("60", 504), ("10000", 499)])
async def test_a_caller_that_leaves_when_its_time_is_up_has_waited_in_vain(
    gate: threading.Event, waits: str, status: int
) -> None:
    async with serving(until_word(gate)) as world:
        caller = await world.caller()
        caller.send(body(1), x_envoy_expected_rq_timeout_ms=waits)
        await until(lambda: world.model.runs)
        connected: Any = next(iter(world.state.connections))
        if status == 504:
            # As a proxy does, whose clock began a little earlier.
            await asyncio.sleep(connected.serving.deadline - 0.003 - asyncio.get_running_loop().time())
        caller.writer.transport.abort()
        await until(lambda: world.in_flight == 0)
        assert world.count(status) == 1
        gate.set()


async def test_a_caller_that_leaves_before_its_request_is_whole_is_counted_as_no_answer() -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        await until(lambda: world.in_flight == 1)
        caller.writer.close()
        await until(lambda: world.in_flight == 0)
        assert not any(world.engine.slot.values[: len(connection.STATUS_LINE) and 13])


@pytest.mark.parametrize("path", ["/predict", "/v2/models/m/generate", "/v2/models/m/generate_stream"])
async def test_whoever_leaves_its_rows_in_the_queue_is_forgotten(gate: threading.Event, path: str) -> None:
    async with serving(until_word(gate)) as world:
        first, second = await world.caller(), await world.caller()
        first.send(body(1))
        await until(lambda: world.model.runs)
        second.send(b'{"x": 2}', path, content_type="application/json")
        await until(lambda: world.engine.waiting == 1)
        second.writer.close()
        await until(lambda: not world.engine.waiting)
        await until(lambda: world.in_flight == 1)
        gate.set()
        assert (await first.answer()).status == 200
        assert (world.model.runs, world.count(499), world.count(200)) == ([[1.0]], 1, 1)
