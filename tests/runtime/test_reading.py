"""Bodies that FastAPI serves: they are part of what callers may hold together."""

import orjson
import pytest

from tests.runtime.scripted import Caller, World, body, serving
from tests.runtime.test_infer import until

PATHS = ("/v2/models/m/generate", "/v2/models/m/generate_stream", "/v2/repository/index")


def asked(size: int) -> bytes:
    return orjson.dumps({"x": [1.0, 2.0]}).ljust(size)


async def beginning(world: World, path: str, size: int, *, of: int = 1000) -> Caller:
    """A caller that sends the beginning of a body, and has been heard."""
    caller = await world.caller()
    before = world.handler.held.size
    caller.writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), of))
    caller.writer.write(asked(of)[:size])
    await until(lambda: world.handler.held.size == before + size)
    return caller


@pytest.mark.parametrize("path", PATHS)
async def test_the_body_that_brings_the_sum_too_high_is_refused(path: str) -> None:
    async with serving(max_body_bytes=1000, max_buffered_bytes=2500) as world:
        slow = [await beginning(world, path, 800) for _ in range(3)]
        late = await world.caller()
        late.writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" % path.encode())
        late.writer.write(asked(1000)[:900])
        answer = await late.answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.error.startswith("busy: unanswered requests")
        assert world.handler.held.size == 2400
        for caller in slow:
            caller.writer.close()
        await until(lambda: world.handler.held.size == 0)


@pytest.mark.parametrize("path", ["/v2/models/m/infer", *PATHS[:2]])
async def test_a_body_that_may_be_so_large_is_taken_though_all_together_should_have_less(path: str) -> None:
    sent = {"/v2/models/m/infer": body(1)}.get(path, asked(1)).ljust(100_000)
    async with serving(max_body_bytes=200_000, max_buffered_bytes=1000) as world:
        caller = await world.caller()
        caller.send(sent, path)
        assert (await caller.reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_is_too_large_is_the_last_of_its_connection(path: str) -> None:
    async with serving(max_body_bytes=1000) as world:
        caller = await world.caller()
        caller.writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" % path.encode())
        caller.writer.write(b" " * 1500)
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await caller.reader.read() == b""


async def test_who_sends_a_body_for_fastapi_slowly_keeps_no_inference_out() -> None:
    async with serving(max_body_bytes=1000, max_buffered_bytes=2450) as world:
        slow = [await beginning(world, PATHS[0], 800) for _ in range(3)]
        assert (await (await world.caller()).infer(1)).status == 200
        # Who began first of those that hold most has gone; that is enough for the other.
        assert (await slow[0].answer()).status == 429
        for caller in slow[1:]:
            caller.writer.write(asked(1000)[800:])
        await until(lambda: world.handler.held.size == 0)


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_was_answered_is_held_no_more(path: str) -> None:
    async with serving(max_body_bytes=1000, max_buffered_bytes=2500) as world:
        for whole in (asked(900), b"{", b"[" + b" " * 2000):
            caller = await world.caller()
            caller.send(whole, path)
            assert (await caller.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 ")
        await until(lambda: world.handler.held.size == 0)


async def test_a_deadline_ends_the_wait_for_a_body_as_before() -> None:
    async with serving(max_body_bytes=1000) as world:
        caller = await world.caller()
        caller.writer.write(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n" % PATHS[0].encode()
            + b"x-envoy-expected-rq-timeout-ms: 50\r\n\r\n{"
        )
        assert (await caller.answer()).status == 504
        await until(lambda: world.handler.held.size == 0)
        assert (world.count(504), world.count(499), world.in_flight) == (1, 0, 0)
