"""Serving in this process: alone, or as one worker of several."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable

import uvloop

from pilotage_runtime import app, log
from pilotage_runtime.failure import StartFailure, report
from pilotage_runtime.services.metrics import MetricsServer
from pilotage_runtime.services.server import listen
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Exposition, Slot

logger = logging.getLogger(__name__)


def serve_alone(settings: ServeSettings) -> int:
    """Serve with one process, metrics included."""
    loaded = _load(settings)
    if isinstance(loaded, int):
        return loaded
    slot = Slot()
    exposition = Exposition(settings.model_name, [slot])

    async def run() -> None:
        async with MetricsServer(exposition).running(listen(settings.host, settings.metrics_port)):
            listener = listen(settings.host, settings.http_port)
            announce = _announcement(listener)
            await app.server(settings, loaded, slot, announce).serve(sockets=[listener])

    uvloop.run(run())
    return 0


def serve_as_worker(
    settings: ServeSettings, listener: socket.socket, control: socket.socket, slot: Slot
) -> int:
    """Load, tell the supervisor, wait for its word, serve."""
    loaded = _load(settings)
    if isinstance(loaded, int):
        return loaded
    control.sendall(b"loaded\n")
    if control.recv(16) != b"go\n":  # the supervisor is gone, or stopping
        return 0

    def watch_supervisor() -> None:
        # Its end of the socket closes when it is gone, however it went; then nobody would stop this worker.
        asyncio.get_running_loop().add_reader(control, server.stop)

    server = app.server(settings, loaded, slot, watch_supervisor)
    uvloop.run(server.serve(sockets=[listener]))
    return 0


def main() -> int:
    """Run one worker as the supervisor spawns it: descriptors of listener, control socket and slot."""
    log.configure()
    listener, control, slot = (int(argument) for argument in sys.argv[1:4])
    return serve_as_worker(
        ServeSettings(), socket.socket(fileno=listener), socket.socket(fileno=control), Slot(slot)
    )


def _load(settings: ServeSettings) -> app.Loaded | int:
    try:
        return app.load(settings)
    except StartFailure as failure:
        logger.error(  # noqa: TRY400 - the failure is explained, a traceback adds nothing
            "%s", failure.message, extra={"stage": failure.stage, "reason": failure.reason}
        )
        report(failure, settings.termination_log)
        return failure.exit_code


def _announcement(listener: socket.socket) -> Callable[[], None]:
    def announce() -> None:
        host, port = listener.getsockname()[:2]
        logger.info("serving", extra={"host": host, "port": port, "pid": os.getpid()})

    return announce


if __name__ == "__main__":
    sys.exit(main())
