"""Whatever bytes come on a connection, in whatever pieces."""

import asyncio
import re
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from pilotage_runtime.catalog import Location
from pilotage_runtime.log import AccessLog
from pilotage_runtime.repository import Repository, State, Version
from pilotage_runtime.services import admin
from pilotage_runtime.services.connection import Connection
from pilotage_runtime.services.edge import Edge
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.telemetry import CODES, Sheet
from tests.runtime import scripted

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_TURNS = 30  # of the loop; what is answered at all is answered by then, for no run leaves this thread
_MAX_BODY_BYTES = 2000


class _Transport(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closing = False
        self.ended = False

    def write(self, data: Any) -> None:
        assert not self.closing, "written behind the end"
        assert not self.ended, "written behind the end"
        self.written += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _Short(list[float]):
    """Predictions that no run changes: none takes long enough for a thread."""

    def __getitem__(self, _: Any) -> Any:
        return 0.0


class _World:
    """A server without a port."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        sheet = Sheet()
        self.engine = scripted.engine(sheet=sheet)
        self.engine._seconds = _Short(self.engine._seconds)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        repository = Repository(sheet)
        repository.put(Version(Location("m", "1", Path()), 1, State.READY, engine=self.engine))
        self.unknown = repository.unknown
        self.lifecycle = Lifecycle()
        log = AccessLog(scripted.NOWHERE)
        held = Held(each=_MAX_BODY_BYTES, together=10 * _MAX_BODY_BYTES)
        self.handler = InferHandler(repository, log, held)
        app: Any = Edge(admin.build(repository, self.lifecycle, held), self.lifecycle, log)
        self.config = uvicorn.Config(app, log_config=None, access_log=False)
        self.config.load()

    def talk(self, pieces: list[bytes]) -> bytes:
        """Send pieces on a new connection, leave, and give what came back."""
        return self.loop.run_until_complete(self._talk(pieces))

    async def _talk(self, pieces: list[bytes]) -> bytes:
        state = ServerState()
        connection = Connection(
            self.handler, self.lifecycle, config=self.config, server_state=state, app_state={}
        )
        transport = _Transport()
        connection.connection_made(transport)
        for piece in pieces:
            if transport.closing:
                break
            connection.data_received(piece)
            await self._turns(state)
        connection.connection_lost(None)
        await self._turns(state)
        assert not state.tasks, "a request goes on without its connection"
        assert not state.connections
        return transport.written

    @staticmethod
    async def _turns(state: ServerState) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(_TURNS):
            if not state.tasks:
                return
            await asyncio.sleep(0)

    def failures(self) -> float:
        """How many answers of 500 were counted."""
        at = CODES.index(500)
        return self.engine.slot.values[at] + self.unknown.values[at]


_world: _World | None = None


def connection(data: bytes) -> None:
    """Bytes on a connection, cut into pieces of the size that the first byte says (0: in one)."""
    global _world  # noqa: PLW0603 - one server for all of a run's connections, as in reality
    world = _world = _world or _World()
    size = data[0] if data else 0
    data = data[1:]
    pieces = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    written = world.talk([piece for piece in pieces if piece])
    assert world.engine.slot.in_flight == world.unknown.in_flight == 0, "a request is counted in for ever"
    assert world.handler.held.size == 0, "a body is kept"
    assert world.failures() == 0, "500 is counted"
    if written:
        assert written.startswith(b"HTTP/1.1 "), written[:100]
    statuses = {int(status) for status in _STATUS.findall(written)}
    assert not statuses & {500, 502}, written
    answer = world.talk([b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 72\r\n\r\n" + _GOOD])
    assert answer.startswith(b"HTTP/1.1 200 "), answer


_GOOD = scripted.body(1.0).ljust(72)
