"""/metrics on its own port, out of the reach of those who send inference."""

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn

from pilotage_runtime.services.asgi import JSON, Receive, Scope, Send, error_body
from pilotage_runtime.services.listener import config
from pilotage_runtime.telemetry import Exposition

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsApp:
    """GET /metrics and nothing else."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        del receive
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            status, kind, body = 200, _TEXT, self._exposition.text()
        else:
            status, kind, body = 404, JSON, error_body("this port serves GET /metrics only")
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class MetricsServer(uvicorn.Server):
    """Runs beside the server or supervisor that owns the process's signals."""

    def __init__(self, exposition: Exposition) -> None:
        settings = config(MetricsApp(exposition))
        settings.lifespan = "off"
        settings.timeout_graceful_shutdown = 1
        super().__init__(settings)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signals alone."""
        yield

    @contextlib.asynccontextmanager
    async def running(self, listener: socket.socket):  # noqa: ANN201 - contextlib names the type
        """Serve until the block ends: metrics outlive the last request."""
        task = asyncio.create_task(self.serve(sockets=[listener]))
        try:
            yield
        finally:
            self.should_exit = True
            await task
