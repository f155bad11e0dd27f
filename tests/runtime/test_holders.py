"""Models that go while requests for them still come: an engine is closed when the last that holds it has its answer."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotage_runtime import loading
from pilotage_runtime.catalog import Location
from pilotage_runtime.errors import ModelFailedError, Refused
from tests.runtime.scripted import Caller, Scripted, World, body, double, engine, serving
from tests.runtime.test_batching import infer_all, runs, short, x
from tests.runtime.test_conductor import loading_of
from tests.runtime.test_grpc import code_of, connected, request
from tests.runtime.test_infer import until
from tests.runtime.test_repository import scale

WHOLE = {
    "/v2/models/m/infer": body(1),
    "/v2/models/m/versions/1/infer": body(1),
    "/v2/models/m/generate": b'{"x": [1]}',
    "/v2/models/m/generate_stream": b'{"x": [1]}',
    "/models/m/predict": b'{"x": 1}',
}


async def half_sent(world: World, path: str) -> Caller:
    """A caller whose head has arrived, and all of its body but the last byte."""
    caller = await world.caller()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(WHOLE[path])}\r\n\r\n"
    caller.writer.write(head.encode() + WHOLE[path][:-1])
    await until(lambda: world.in_flight)
    return caller


def let_go(world: World) -> asyncio.Task[None]:
    """Unload the model, as a commit does."""
    world.repository.remove(1)
    return asyncio.create_task(loading._close_when_idle([world.engine]))


async def still_waits(closing: asyncio.Task[None]) -> bool:
    done, _ = await asyncio.wait([closing], timeout=5 * loading._IDLE_CHECK_SECONDS)
    return not done


@pytest.mark.parametrize("path", WHOLE)
async def test_a_request_whose_body_comes_after_its_model_went_is_answered(path: str) -> None:
    async with serving() as world:
        caller = await half_sent(world, path)
        closing = let_go(world)
        assert await still_waits(closing)
        caller.writer.write(WHOLE[path][-1:])
        assert (await caller.reader.readline()).startswith(b"HTTP/1.1 200")
        await closing
        assert (world.engine.holders, world.in_flight) == (0, 0)


@pytest.mark.parametrize("path", WHOLE)
async def test_a_caller_that_leaves_before_its_request_is_whole_holds_no_model(path: str) -> None:
    async with serving() as world:
        caller = await half_sent(world, path)
        closing = let_go(world)
        caller.writer.close()
        await closing
        assert (world.engine.holders, world.in_flight) == (0, 0)


@pytest.mark.parametrize("path", WHOLE)
async def test_whichever_way_it_was_asked_a_model_was_used_then(path: str) -> None:
    async with serving() as world:
        world.engine.used_at = 0
        caller = await world.caller()
        caller.send(WHOLE[path], path)
        assert (await caller.reader.readline()).startswith(b"HTTP/1.1 200")
        # Else it would be the first to make room for another.
        assert world.engine.used_at > 0


async def test_a_model_that_answers_piece_by_piece_over_grpc_was_used_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stream(model: Scripted, inputs: Any, parameters: Any) -> Iterator[Any]:
        yield {"y": inputs["x"]}

    monkeypatch.setattr(Scripted, "stream", stream, raising=False)
    async with connected() as (client, world):
        world.engine.used_at = 0
        call = client.stream()
        await call.write(request(1))
        assert (await call.read()).infer_response.outputs
        assert world.engine.used_at > 0


async def test_a_model_that_somebody_still_sends_to_is_in_use() -> None:
    async with serving() as world:
        caller = await half_sent(world, "/v2/models/m/infer")
        world.engine.used_at = 0
        (version,) = world.repository.versions("m")
        assert version.used_at > 0
        caller.writer.close()
        await until(lambda: not world.engine.holders)
        assert version.used_at == 0


async def test_a_body_that_comes_slowly_for_one_model_keeps_no_other() -> None:
    closed = list[str]()

    class Other:
        busy = False

        def close(self) -> None:
            closed.append("other")

    async with serving() as world:
        caller = await half_sent(world, "/v2/models/m/infer")
        engines: list[Any] = [world.engine, Other()]
        closing = asyncio.create_task(loading._close_when_idle(engines))
        await until(lambda: closed)
        assert not closing.done()
        caller.writer.close()
        await closing


async def test_whatever_the_answer_nobody_holds_a_model_after_it() -> None:
    def picky(inputs: Any, outputs: Any) -> list[Any]:
        if inputs["x"][0] < 0:
            raise ValueError("negative")
        return double(inputs, outputs)

    async with serving(picky) as world:
        for path, sent, status in (
            ("/v2/models/m/infer", body(1), 200),
            ("/v2/models/m/infer", body(-1), 500),
            ("/v2/models/m/infer", b"no JSON", 400),
            ("/v2/models/m/infer", b" " * 2000, 413),
            ("/v2/models/n/infer", body(1), 404),
            ("/v2/models/m/generate", b'{"x": [1]}', 200),
            ("/v2/models/m/generate", b'{"x": [-1]}', 500),
            ("/v2/models/m/generate_stream", b'{"x": [-1]}', 500),
            ("/models/m/predict", b'{"y": 1}', 400),
            ("/models/n/predict", b'{"x": 1}', 404),
        ):
            caller = await world.caller()
            caller.send(sent, path)
            assert (await caller.answer()).status == status
        assert world.engine.holders == 0

    async with connected(picky) as (client, world):
        await client.ModelInfer(request(1))
        for message in (request(-1), request(1, id="i" * 2000), request(1, model_version="7")):
            if message.id:
                message.inputs[0].name = "z"
            await code_of(client.ModelInfer(message))
        assert world.engine.holders == 0


async def test_a_call_over_grpc_holds_its_model_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    held = list[int]()
    async with connected() as (client, world):
        check = world.engine.check
        monkeypatch.setattr(
            world.engine,
            "check",
            lambda *args, **more: (held.append(world.engine.holders), check(*args, **more)),
        )
        await client.ModelInfer(request(1))
        assert (held, world.engine.holders) == ([1], 0)


class Owing:
    """A model that was let go, and somebody still waits for its answer."""

    busy = True

    def close(self) -> None:
        pass


async def test_a_model_is_loaded_when_what_was_let_go_for_it_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triple = {1: Location("triple", "1", scale(tmp_path / "triple.onnx", 3))}
    room, owing = loading_of(tmp_path), Owing()
    room._retire([owing])  # pyright: ignore[reportArgumentType] - as much of an engine as is looked at
    preparing = asyncio.create_task(room.prepare(triple))
    assert not (await asyncio.wait([preparing], timeout=1))[0]
    owing.busy = False
    await preparing
    room._retire([Owing()])  # pyright: ignore[reportArgumentType] - the same
    monkeypatch.setattr(loading, "_RETIRING_SECONDS", 0.1)
    async with asyncio.timeout(10):
        await room.prepare(triple)
    for task in room._retiring:
        task.cancel()
    await room.abort()


# Where one comes too late all the same.


async def test_a_closed_model_refuses_at_once() -> None:
    for made in (engine(), short(engine())):
        made.close()
        async with asyncio.timeout(10):
            (answer,) = await infer_all(made, x(1))
        assert isinstance(answer, Refused)
        assert (answer.status, answer.message) == (503, "the model was unloaded")
        assert (runs(made), made.waiting, made.busy) == ([], 0, False)


async def test_what_waits_for_a_run_when_the_model_closes_is_refused() -> None:
    made = engine(max_delay_seconds=30)
    task = asyncio.create_task(made.infer(x(1)))
    await asyncio.sleep(0)
    made.close()
    with pytest.raises(Refused, match="unloaded"):
        await task


async def test_a_batch_that_would_run_again_one_by_one_is_refused_where_the_model_has_closed() -> None:
    def refuses(inputs: Any, outputs: Any) -> list[Any]:
        raise ValueError("no")

    made = engine(refuses)
    tasks = [asyncio.create_task(made.infer(x(value))) for value in (1, 2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    made.close()  # waits for the run, whose end the loop has not seen yet
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert runs(made) == [[1, 2]]
    assert all(isinstance(answer, Refused) for answer in answers)
    assert not any(isinstance(answer, ModelFailedError) for answer in answers)
    assert not made.busy


async def test_a_refusal_for_a_closed_model_is_no_failure_of_the_model() -> None:
    async with serving() as world:
        world.engine.close()
        caller = await world.caller()
        answer = await caller.infer(1)
        assert (answer.status, answer.error) == (503, "the model was unloaded")
        assert (world.count(503), world.count(500)) == (1, 0)
