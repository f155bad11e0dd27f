"""A model that does what a test says, behind the real connection, in this process."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from uvicorn.server import ServerState

from pilotage_runtime.batching import Entry
from pilotage_runtime.catalog import Location
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.engine import Engine, Limits
from pilotage_runtime.log import AccessLog
from pilotage_runtime.repository import Repository, State, Version
from pilotage_runtime.services import admin
from pilotage_runtime.services.connection import Connection
from pilotage_runtime.services.edge import Edge
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.telemetry import CODES, Sheet

NOWHERE = os.open(os.devnull, os.O_WRONLY)  # for logs that no test looks at

Run = Callable[[Mapping[str, Any], Sequence[str]], list[Any]]


def double(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
    del outputs
    return [inputs["x"] * 2]


def contract(**changes: Any) -> Contract:
    output = {"name": "y", "datatype": "FP32", "shape": (-1,), **changes}
    return Contract(inputs=(TensorSpec("x", "FP32", (-1,), ("N",)),), outputs=(TensorSpec(**output),))


class Scripted:
    """A model that does what the test says."""

    platform = "scripted"

    def __init__(self, described: Contract, run: Run) -> None:
        self._contract = described
        self._run = run
        self.threads: list[int] = []
        self.runs: list[list[Any]] = []

    def contract(self) -> Contract:
        return self._contract

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        self.threads.append(threading.get_ident())
        self.runs.append(next(iter(inputs.values())).tolist())
        return self._run(inputs, outputs)

    def close(self) -> None:
        pass


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


@dataclass
class Caller:
    """One connection to the server under test."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, body: bytes, path: str = "/v2/models/m/infer", **headers: str) -> None:
        named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        length = "" if "transfer_encoding" in headers else f"content-length: {len(body)}\r\n"
        self.writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\n{length}{named}\r\n".encode() + body)

    async def answer(self) -> Answered:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Answered(int(head[0].split()[1]), headers, body)

    async def infer(self, *values: float, **headers: str) -> Answered:
        self.send(body(*values), **headers)
        return await self.answer()


def body(*values: float, **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": list(values)}
    return orjson.dumps({"inputs": [tensor], **more})


@dataclass
class World:
    """The server around one scripted model."""

    model: Scripted
    engine: Engine
    repository: Repository
    lifecycle: Lifecycle
    state: ServerState
    handler: InferHandler
    port: int = 0
    callers: list[Caller] = field(default_factory=list)

    def count(self, code: int) -> float:
        return self.engine.slot.values[CODES.index(code)]

    @property
    def in_flight(self) -> int:
        return self.engine.slot.in_flight

    async def caller(self) -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        self.callers.append(caller)
        return caller


def engine(
    run: Run = double, described: Contract | None = None, sheet: Sheet | None = None, **limits: Any
) -> Engine:
    described = described or contract()
    slot = (sheet or Sheet()).slot(1)
    slot.start(0)
    made = Engine("m", "1", Scripted(described, run), described, limits=Limits(**limits), slot=slot)
    made.unbatched = None
    return made


@asynccontextmanager
async def serving(
    run: Run = double,
    described: Contract | None = None,
    *,
    seconds: float = 0.01,
    max_body_bytes: int = 1000,
    max_buffered_bytes: int = 100_000,
    keep_alive_seconds: float = 90,
    **limits: Any,
) -> AsyncGenerator[World]:
    """Serve a model whose runs are predicted to take so many seconds: by default they go to a thread."""
    sheet = Sheet()
    model = engine(run, described, sheet, **limits)
    model._seconds = [seconds] * len(model._seconds)
    repository = Repository(sheet)
    version = Version(Location("m", "1", Path()), 1, State.READY, engine=model)
    repository.put(version)
    lifecycle = Lifecycle()
    log = AccessLog(NOWHERE)
    held = Held(each=max_body_bytes, together=max_buffered_bytes)
    handler = InferHandler(repository, log, held)
    config = uvicorn.Config(
        Edge(admin.build(repository, lifecycle, held), lifecycle, log), log_config=None, access_log=False
    )
    config.load()
    config.timeout_keep_alive = keep_alive_seconds  # pyright: ignore[reportAttributeAccessIssue]
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(handler, lifecycle, config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    world = World(model._model, model, repository, lifecycle, state, handler)  # pyright: ignore[reportArgumentType]
    world.port = server.sockets[0].getsockname()[1]
    try:
        async with server, asyncio.timeout(30):
            yield world
            for caller in world.callers:
                caller.writer.close()
    finally:
        # A test that failed may have left its model waiting for a word that never comes.
        model._batcher._pool.shutdown(wait=False, cancel_futures=True)


class Unheard(Entry):
    """A request whose answer nobody looks at."""

    __slots__ = ()

    def __init__(self, rows: int, *, unseen: bool = False) -> None:
        super().__init__({}, (), rows, None)
        self.unseen = unseen

    def succeeded(self, specs: Sequence[TensorSpec], values: Sequence[Any]) -> None:
        pass

    def failed(self, error: Exception) -> None:
        pass
