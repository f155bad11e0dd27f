"""Inferences that FastAPI serves: counted, refused and told in the words of those over V2."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from pilotage_runtime.catalog import Location
from pilotage_runtime.repository import State, Version
from pilotage_runtime.telemetry import _PINNED, _ROWS, CODES
from tests.runtime.scripted import Answered, World, body, double, serving
from tests.runtime.test_infer import until

ASKED = {
    "/v2/models/m/generate": b'{"x": [1]}',
    "/v2/models/m/generate_stream": b'{"x": [1]}',
    "/models/m/predict": b'{"x": 1}',
}


def counts(world: World) -> dict[int, float]:
    """How many requests had which status."""
    return {code: count for code in CODES if (count := world.count(code))}


@pytest.mark.parametrize("path", ASKED)
async def test_beyond_the_queues_bound_the_answer_is_busy_and_says_when_to_ask_again(
    gate: threading.Event, path: str
) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with serving(wait, max_waiting=1) as world:
        runs, waits, late = [await world.caller() for _ in range(3)]
        runs.send(body(1))
        await until(lambda: world.model.runs)
        waits.send(body(2))
        await until(lambda: world.engine.waiting == 1)
        late.send(ASKED[path], path)
        answer = await late.answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.error == "busy: 1 requests wait already"
        gate.set()
        assert [(await caller.answer()).status for caller in (runs, waits)] == [200, 200]
        assert counts(world) == {200: 2, 429: 1}


@pytest.mark.parametrize("path", ASKED)
async def test_who_asks_for_a_model_that_is_not_there_is_counted(path: str) -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.send(ASKED[path], path.replace("/m/", "/n/"))
        assert (await caller.answer()).status == 404
        assert (counts(world), world.in_flight) == ({404: 1}, 0)


@pytest.mark.parametrize("path", ASKED)
async def test_what_is_pinned_to_a_revision_is_evidence_of_nothing(path: str) -> None:
    async with serving() as world:
        for whole in (ASKED[path], b"{}"):
            caller = await world.caller()
            caller.send(whole, path, x_pilotage_pinned="true")
            assert (await caller.reader.readline()).split()[1] == (b"400" if whole == b"{}" else b"200")
        await until(lambda: world.in_flight == 0)
        assert (counts(world), world.engine.slot.values[_PINNED]) == ({}, 2)
        assert world.engine.slot.values[_ROWS] == 0


@pytest.mark.parametrize("path", ASKED)
async def test_who_leaves_before_its_answer_is_counted_as_gone(gate: threading.Event, path: str) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with serving(wait) as world:
        caller = await world.caller()
        caller.send(ASKED[path], path)
        await until(lambda: world.model.runs)
        caller.writer.close()
        await until(lambda: world.in_flight == 0)
        assert counts(world) == {499: 1}
        gate.set()
        await until(lambda: not world.engine.busy)


@pytest.mark.parametrize("path", [p for p in ASKED if not p.endswith("_stream")])
async def test_every_answer_that_came_too_late_is_counted_so(gate: threading.Event, path: str) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async def ask(milliseconds: int) -> int:
        caller = await world.caller()
        caller.send(ASKED[path], path, x_envoy_expected_rq_timeout_ms=str(milliseconds))
        return (await caller.answer()).status

    async with serving(wait) as world:
        assert await asyncio.gather(*map(ask, range(30, 70))) == [504] * 40
        await until(lambda: world.in_flight == 0)
        assert counts(world) == {504: 40}
        gate.set()
        await until(lambda: not world.engine.busy)


@pytest.mark.parametrize("path", [*ASKED, "/v2/models/m/infer"])
@pytest.mark.parametrize("milliseconds", ["0", "-5", "soon", "1e3", "9" * 400])
async def test_a_time_that_is_none_limits_nothing(path: str, milliseconds: str) -> None:
    async with asyncio.timeout(20), serving() as world:
        caller = await world.caller()
        caller.send(ASKED.get(path, body(1)), path, x_envoy_expected_rq_timeout_ms=milliseconds)
        assert (await caller.reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "path", ["/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1/ready", "/health"]
)
async def test_while_draining_nothing_says_that_it_is_ready(path: str) -> None:
    async with serving() as world:
        for draining, status in ((False, 200), (True, 503)):
            world.lifecycle.draining = draining
            caller = await world.caller()
            caller.writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            answer = await caller.answer()
            assert answer.status == status
            assert (answer.headers.get("connection") == "close") == draining


async def test_a_version_that_is_not_ready_is_listed_where_all_are_and_nowhere_else() -> None:
    async with serving() as world:
        location = Location("m", "2", Path())
        world.repository.put(Version(location, 2, State.UNAVAILABLE, "LoadFailed: no room"))

        async def told(path: str) -> Answered:
            caller = await world.caller()
            caller.writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            return await caller.answer()

        assert (await told("/v2/models/m")).json["versions"] == ["1"]
        assert (await told("/models/m/versions")).json == {
            "model": "m",
            "default": "1",
            "versions": [{"version": "1", "ready": True}, {"version": "2", "ready": False}],
        }
        assert (await told("/v2/models/m/ready")).status == 200
        refused = await told("/v2/models/m/versions/2/ready")
        assert refused.status == 503
        assert refused.error == "model 'm' version 2 is UNAVAILABLE: LoadFailed: no room"


@pytest.mark.parametrize("path", ASKED)
async def test_an_answer_that_was_taken_to_its_end_is_a_success(path: str) -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.send(ASKED[path], path)
        assert (await caller.reader.readline()).startswith(b"HTTP/1.1 200")
        await until(lambda: world.in_flight == 0)
        assert (counts(world), world.engine.slot.values[_ROWS]) == ({200: 1}, 1)


@pytest.mark.parametrize(("why_not", "told"), [(None, "on"), ("its rows are mixed", "its rows are mixed")])
async def test_metadata_say_whether_requests_share_a_run_and_why_not(why_not: str | None, told: str) -> None:
    async with serving() as world:
        world.engine.unbatched = why_not
        caller = await world.caller()
        caller.writer.write(b"GET /v2/models/m HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await caller.answer()).json["parameters"]["batching"] == told
