"""Callers that mean no good, against a real server: it refuses in order, keeps nothing, and serves the others."""

import asyncio
import contextlib
import gzip
import resource
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from pilotage_runtime.services import listener
from tests.runtime.conftest import Server, Servers, eventually
from tests.runtime.test_http import request

CONNECTIONS = 10_000
# A connection's objects in Python take about 10 KiB; more would be what it keeps of its requests.
KIB_A_CONNECTION = 24
GROWTH_MIB = 64
BODY = orjson.dumps(request())


@pytest.fixture(scope="module")
def server(models: Path, serve_for_module: Servers) -> Server:
    server = serve_for_module(models / "iris" / "1", "iris", max_body_bytes=4 * 2**20)
    for _ in range(50):  # what grows once has grown
        assert server.infer(request()).status_code == 200
    return server


@pytest.fixture(autouse=True)
def _no_failure(server: Server) -> Iterator[None]:
    yield
    assert server.infer(request()).status_code == 200
    assert server.metric("inference_requests_total", code="500") == 0
    eventually(lambda: server.metric("inference_requests_in_flight") == 0)
    assert "Traceback" not in server.log()


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < CONNECTIONS + 500:
        pytest.skip(f"this machine allows {before[1]} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def resident_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def head(*headers: str, path: str = "/v2/models/iris/infer", length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", *headers]
    if length is not None:
        lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connections(server: Server, count: int) -> AsyncGenerator[list[Connection]]:
    opened: list[Connection] = []
    try:
        async with asyncio.timeout(60):
            while len(opened) < count:
                opened += await asyncio.gather(
                    *(
                        asyncio.open_connection("127.0.0.1", server.port)
                        for _ in range(min(500, count - len(opened)))
                    )
                )
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()
        await asyncio.sleep(0.1)  # for the loop to do it


async def status(connection: Connection) -> int:
    async with asyncio.timeout(20):
        first = await connection[0].readline()
    return int(first.split()[1])


async def answered_meanwhile(server: Server) -> float:
    """Ask as anybody would, and tell how long the slowest answer took."""

    def ask() -> float:
        slowest = 0.0
        for _ in range(20):
            began = time.monotonic()
            assert server.infer(request()).status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    return await asyncio.to_thread(ask)


async def test_ten_thousand_connections_idle_and_active(server: Server, descriptors: None) -> None:
    before = resident_mib(server)
    async with connections(server, CONNECTIONS) as opened:
        assert await answered_meanwhile(server) < 5
        asking = opened[::10]
        for _, writer in asking:
            writer.write(head(length=len(BODY)) + BODY)
        # All at once are more than its queue holds; it says so.
        answers = set(await asyncio.gather(*map(status, asking)))
        assert 200 in answers
        assert answers <= {200, 429}
        assert resident_mib(server) - before < CONNECTIONS * KIB_A_CONNECTION / 1024
    eventually(lambda: server.metric("inference_requests_in_flight") == 0)
    after = resident_mib(server)
    async with connections(server, CONNECTIONS):
        pass
    assert await answered_meanwhile(server) < 5
    # The second time nothing is added to what the first has left.
    assert resident_mib(server) - after < GROWTH_MIB


async def test_slow_heads_and_slow_bodies_hold_up_nobody(server: Server) -> None:
    before = resident_mib(server)
    async with connections(server, 1000) as opened:
        for at, (_, writer) in enumerate(opened):
            whole = head(length=len(BODY)) + BODY
            writer.write(whole[: 20 if at % 2 else -20])
        for _ in range(5):
            for _, writer in opened[::2]:
                writer.write(b" ")
            assert await answered_meanwhile(server) < 5
        assert resident_mib(server) - before < GROWTH_MIB
    eventually(lambda: server.metric("inference_requests_in_flight") == 0)


async def test_half_closed_connections_end(server: Server) -> None:
    async with connections(server, 200) as opened:
        for at, (_, writer) in enumerate(opened):
            whole = head(length=len(BODY)) + BODY
            writer.write(whole[: (0, 20, len(whole) - 20, len(whole))[at % 4]])
            writer.write_eof()
        async with asyncio.timeout(20):
            for reader, _ in opened:
                with contextlib.suppress(ConnectionError):
                    assert (await reader.read())[9:12] in (b"", b"200", b"400")


@pytest.mark.parametrize("path", ["/v2/models/iris/infer", "/predict", "/v2/repository/index"])
async def test_a_bomb_unpacks_no_further_than_the_cap(server: Server, path: str) -> None:
    bomb = gzip.compress(bytes(512 * 2**20), 9)
    before = resident_mib(server)
    async with connections(server, 4) as opened:
        for _, writer in opened:
            writer.write(head("content-encoding: gzip", path=path, length=len(bomb)) + bomb)
        assert {await status(connection) for connection in opened} <= {400, 413, 415}
    assert resident_mib(server) - before < GROWTH_MIB


@pytest.mark.parametrize(
    "document",
    [
        {"shape": [1], "data": ["a" * 10**6] + [""] * 10**6},
        {"shape": [2**62] * 10**5, "data": [1]},
        {"shape": [1], "data": [0] * 10**6},
        {"shape": [1], "data": [[0]] * 10**6},
        {"shape": [1], "datatype": "BYTES", "data": ["a" * 10**6] + [""] * 10**6},
    ],
    ids=["one long text", "a shape of very many sizes", "very many numbers", "very many lists", "long BYTES"],
)
async def test_what_looks_small_and_is_large_is_refused_at_once(server: Server, document: dict) -> None:
    tensor = {"name": "X", "datatype": "FP32", **document}
    body = orjson.dumps({"inputs": [tensor]})
    before, began = resident_mib(server), time.monotonic()
    async with connections(server, 1) as opened:
        opened[0][1].write(head(length=len(body)) + body)
        assert await status(opened[0]) == 400
    assert time.monotonic() - began < 5
    assert resident_mib(server) - before < 3 * GROWTH_MIB


def test_beyond_its_descriptors_it_refuses_and_goes_on(models: Path, serve: Servers) -> None:
    server = serve.start(models / "iris" / "1", "iris")
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (600, 600))  # long before it listens
    server.wait_ready()
    assert server.infer(request()).status_code == 200
    assert b"Max open files            600 " in Path(f"/proc/{server.process.pid}/limits").read_bytes()
    opened = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(800)]
    answers = [connection.recv(300) for connection in opened[500:]]
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
    assert b"the most that it takes" in answers[0]
    # What has a connection keeps it, and whoever scrapes sees it.
    assert server.infer(request()).status_code == 200
    assert server.metric("inference_requests_total", code="500") == 0
    for connection in opened:
        connection.close()
    eventually(lambda: new_connection_is_answered(server))
    assert "Too many open files" not in server.log()


def new_connection_is_answered(server: Server) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(head(length=len(BODY)) + BODY)
        return connection.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("limits", "raised", "allowed"),
    [
        ((1024, 20_000), (20_000, 20_000), 19_744),
        ((1024, 1024), None, 768),
        ((300, 300), None, 150),
        ((1024, resource.RLIM_INFINITY), (2**17, resource.RLIM_INFINITY), 2**17 - 256),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, 2**17 - 256),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    raised: tuple[int, int] | None,
    allowed: int,
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(listener.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(listener.resource, "setrlimit", lambda _, value: seen.append(value))
    assert listener.connections_allowed() == allowed
    assert seen == ([raised] if raised else [])
