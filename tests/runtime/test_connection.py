"""When an idle connection is closed, and when not."""

import asyncio
import gc
import http.client
import socket
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from pilotage_runtime.log import AccessLog
from pilotage_runtime.repository import Repository
from pilotage_runtime.services import arrival, connection, farewell
from pilotage_runtime.services.connection import Connection
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.telemetry import Sheet
from tests.runtime.scripted import NOWHERE, body, double, serving

KEEP_ALIVE_SECONDS = 0.3
LARGE = 32 * 2**20  # more than the kernel keeps for a caller
REQUEST = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(LARGE)})
        return
    await asyncio.sleep(float(scope["path"][1:]))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def listening(most: int = 1000) -> AsyncGenerator[tuple[int, ServerState, Held]]:
    config = uvicorn.Config(app, log_config=None, access_log=False)
    config.load()
    config.timeout_keep_alive = KEEP_ALIVE_SECONDS  # pyright: ignore[reportAttributeAccessIssue]
    state = ServerState()
    inference = InferHandler(Repository(Sheet()), AccessLog(NOWHERE), Held(each=most, together=most))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(inference, Lifecycle(), config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    async with server, asyncio.timeout(20):
        yield server.sockets[0].getsockname()[1], state, inference.held


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with listening() as (port, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        yield reader, writer
        writer.close()


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: bytes, times: int = 1
) -> None:
    writer.write(REQUEST % seconds * times)
    for _ in range(times):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(2) == b"ok"


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with connected() as (reader, _):
        assert await reader.read() == b""


async def test_bytes_that_begin_no_request_keep_no_connection_open() -> None:
    async with connected() as (reader, writer):
        writer.write(b"\r\n")
        assert await reader.read() == b""


async def test_the_idle_time_counts_from_the_last_answer() -> None:
    async with connected() as (reader, writer):
        for _ in range(3):
            await asyncio.sleep(KEEP_ALIVE_SECONDS / 2)
            await ask(reader, writer, b"0")
        answered = time.monotonic()
        assert await reader.read() == b""
        # The loop's clock stands still while it works, so a little less than the whole time may be seen.
        assert time.monotonic() - answered > KEEP_ALIVE_SECONDS * 0.9


async def test_a_request_may_take_longer_than_a_connection_may_idle() -> None:
    async with connected() as (reader, writer):
        await ask(reader, writer, b"%.1f" % (KEEP_ALIVE_SECONDS * 2))
        await ask(reader, writer, b"%.1f" % (KEEP_ALIVE_SECONDS * 0.7), times=3)
        assert await reader.read() == b""


async def test_a_head_that_comes_late_and_slowly_is_waited_for() -> None:
    async with connected() as (reader, writer):
        head = REQUEST % b"0"
        await asyncio.sleep(KEEP_ALIVE_SECONDS * 0.7)
        writer.write(head[:10])
        await asyncio.sleep(KEEP_ALIVE_SECONDS)
        writer.write(head[10:])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_head_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    async with connected() as (reader, writer):
        writer.write((REQUEST % b"0")[:10])
        assert await reader.read() == b""


@pytest.mark.parametrize("path", ["/v2/models/m/infer?tried=2", "/v2/models/%6d/versions/1/infer"])
async def test_a_model_is_found_whatever_its_address_carries_and_however_it_is_escaped(path: str) -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.send(body(3), path)
        assert (await caller.answer()).json["outputs"][0]["data"] == [6]


async def test_a_body_is_not_called_slow_while_it_waits_behind_another_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = threading.Event()

    def wait(inputs: Any, outputs: Any) -> list[Any]:
        go.wait()
        return double(inputs, outputs)

    async with serving(wait) as world:
        try:
            monkeypatch.setattr(arrival, "BODY_SECONDS", 0.05)
            caller, second = await world.caller(), body(2)
            caller.send(body(1))
            caller.writer.write(
                b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(second)
            )
            caller.writer.write(second[:-1])
            await until(lambda: world.in_flight == 2)
            (held_up,) = world.state.connections
            assert isinstance(held_up, Connection)
            slow = held_up._arrival
            assert slow is not None
            # Its time has passed, and begun anew.
            passed = slow._until
            await until(lambda: slow._until > passed)
            monkeypatch.setattr(arrival, "BODY_SECONDS", 30)
            passed = slow._until
            await until(lambda: slow._until > passed)
        finally:
            go.set()
        caller.writer.write(second[-1:])
        assert [(await caller.answer()).json["outputs"][0]["data"] for _ in range(2)] == [[2], [4]]


async def test_a_caller_that_takes_nothing_of_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.2)
    async with listening() as (port, state, _):
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(REQUEST % b"large")
            await until(lambda: state.total_requests == 1)
            await until(lambda: not state.connections)


async def test_a_caller_that_takes_its_answer_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.5)
    loop = asyncio.get_running_loop()
    async with listening() as (port, _, _):
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(REQUEST % b"large")
            caller.setblocking(False)
            taken = 0
            while taken < LARGE:
                await asyncio.sleep(0.05)
                piece = await loop.sock_recv(caller, 2**20)
                assert piece, "cut off"
                taken += len(piece)


async def test_a_caller_that_takes_next_to_nothing_of_its_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(connection, "UNREAD_BYTES", LARGE // 2)
    loop = asyncio.get_running_loop()
    async with listening(LARGE) as (port, state, held):
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(REQUEST % b"large")
            caller.setblocking(False)
            await until(lambda: held.size > 0)
            taken = 0
            while state.connections:
                await asyncio.sleep(0.02)
                with suppress(ConnectionError):
                    taken += len(await loop.sock_recv(caller, 2**18))
        assert taken < LARGE // 2
        assert held.size == 0


async def test_answers_that_nobody_takes_leave_no_room_for_large_bodies() -> None:
    async with listening(LARGE // 4) as (port, state, held):
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(REQUEST % b"large")
            await until(lambda: state.total_requests == 1)
            assert held.size > held.most
            assert await posted(port, 100) == 404
            assert await posted(port, 100_000) == 429
        await until(lambda: held.size == 0)
        assert await posted(port, 100_000) == 404


async def test_of_answers_that_nobody_takes_the_oldest_is_cut_off_when_they_are_too_much() -> None:
    async with listening(LARGE + LARGE // 4) as (port, state, held):
        silent: list[socket.socket] = []
        try:
            for answered in (1, 2, 3):
                silent.append(socket.create_connection(("127.0.0.1", port)))
                silent[-1].sendall(REQUEST % b"large")
                await until(lambda answered=answered: state.total_requests == answered)
                await until(lambda: len(state.connections) == 1)
            assert LARGE // 2 < held.size < held.most
            assert await asyncio.to_thread(received, silent[2]) > LARGE
            assert await asyncio.to_thread(received, silent[1]) < LARGE
        finally:
            for caller in silent:
                caller.close()
        await until(lambda: held.size == 0)


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/models/m/predict", "/v2/repository/index"])
async def test_who_sends_all_of_a_body_that_is_refused_sees_the_answer(path: str) -> None:
    def sent_whole() -> tuple[int, bytes]:
        caller = http.client.HTTPConnection("127.0.0.1", world.port, timeout=20)
        caller.request("POST", path, bytes(LARGE))
        answer = caller.getresponse()
        return answer.status, answer.read()

    async with serving() as world:
        status, body = await asyncio.to_thread(sent_whole)
        assert status == 413
        assert b"bytes" in body
        await until(lambda: not world.state.connections)


async def test_what_comes_behind_a_refused_request_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewell, "FAREWELL_SECONDS", 0.2)
    async with serving() as world:
        for refused in (
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n" + b" " * 2000,
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n"
            + b" " * 2000 + b"\r\n0\r\n\r\n",
            b"no request\r\n\r\n",
        ):  # fmt: skip
            caller = await world.caller()
            caller.writer.write(refused + REQUEST % b"v2")
            assert (await caller.answer()).status in {400, 413}
            caller.writer.write(REQUEST % b"v2" * 100)
            assert await caller.reader.read() == b""
            # One that says nothing more, and does not go either, is not waited for.
            await until(lambda: not world.state.connections)


async def test_who_is_refused_in_the_middle_of_its_body_is_told_at_once_that_nothing_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(farewell, "FAREWELL_SECONDS", 600)
    async with serving() as world:
        caller = await world.caller()
        caller.writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n{")
        assert (await caller.answer()).status == 413
        assert await caller.reader.read() == b""


async def test_who_sends_on_for_ever_behind_a_refusal_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewell, "FAREWELL_SECONDS", 60)
    monkeypatch.setattr(farewell, "FAREWELL_BYTES", 2**20)
    async with serving() as world:
        caller = await world.caller()
        caller.writer.write(
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
        )
        assert (await caller.answer()).status == 413
        with suppress(ConnectionError):
            while world.state.connections:
                caller.writer.write(bytes(2**16))
                await caller.writer.drain()


async def test_a_connection_that_is_left_leaves_nothing_behind() -> None:
    async with listening() as (port, state, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await ask(reader, writer, b"0")
        (left,) = map(weakref.ref, state.connections)
        gc.disable()
        try:
            writer.close()
            await until(lambda: left() is None)
        finally:
            gc.enable()


async def posted(port: int, size: int) -> int:
    """Ask a model that is not there for an inference with a body of this size."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
    writer.write(b" " * size)
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


def received(caller: socket.socket) -> int:
    """Read until all is read, or the connection is cut off."""
    taken = 0
    caller.settimeout(0.5)
    with suppress(OSError):
        while piece := caller.recv(2**20):
            taken += len(piece)
    return taken


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - of uvicorn's state nobody tells
        await asyncio.sleep(0.01)
