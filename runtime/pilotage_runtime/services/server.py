"""A uvicorn server that drains: after SIGTERM it is not ready, yet serves until callers have moved on."""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import uvicorn

from pilotage_runtime.log import FLUSH_SECONDS, AccessLog
from pilotage_runtime.services.asgi import ASGIApp
from pilotage_runtime.services.connection import Connection
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.services.listener import config, connections_allowed, several

logger = logging.getLogger(__name__)


class Beside(Protocol):
    """A server of another protocol, which starts and ends with this one."""

    async def start(self) -> None:
        """Listen."""
        ...

    async def stop(self) -> None:
        """Take nothing new, and finish what is in flight."""
        ...


class DrainingServer(uvicorn.Server):
    """Ready → SIGTERM → not ready but accepting for `drain_seconds` → in-flight finished → stopped."""

    def __init__(
        self,
        app: ASGIApp,
        inference: InferHandler,
        lifecycle: Lifecycle,
        *,
        drain_seconds: float,
        access_log: AccessLog,
        on_started: Callable[[], None],
        beside: Sequence[Beside] = (),
        after: Sequence[Beside] = (),
        on_stopped: Sequence[Callable[[], None]] = (),
    ) -> None:
        super().__init__(
            config(app, functools.partial(Connection, inference, lifecycle, most=connections_allowed()))
        )
        self._lifecycle = lifecycle
        self._drain_seconds = drain_seconds
        self._access_log = access_log
        self._on_started = on_started
        self._beside = beside
        self._after = after
        self._on_stopped = on_stopped

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then say so."""
        for server in (*self._after, *self._beside):
            await server.start()
        await super().startup([ear for listener in sockets or () for ear in several(listener)])
        self._flush()
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and finish what is in flight."""
        # Together: each may have its last requests to finish.
        await asyncio.gather(super().shutdown(sockets), *(server.stop() for server in self._beside))
        self._access_log.flush()
        # What takes something from every answer ends with the last of them.
        for server in self._after:
            await server.stop()
        for close in self._on_stopped:
            close()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """SIGTERM drains, SIGINT (a person at a terminal) stops at once."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    def _drain(self) -> None:
        if self._lifecycle.draining:
            return
        self._lifecycle.draining = True
        logger.info("draining", extra={"seconds": self._drain_seconds})
        asyncio.get_running_loop().call_later(self._drain_seconds, self.stop)

    def stop(self) -> None:
        """Stop listening now, and finish what is in flight."""
        self._lifecycle.draining = True
        self.should_exit = True

    def _flush(self) -> None:
        self._access_log.flush()
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)
