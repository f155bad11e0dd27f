"""Serving in this process: alone, or as one worker of several."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson
import uvloop

from pilotage_runtime import app, catalog, log
from pilotage_runtime.catalog import Location, numbered
from pilotage_runtime.failure import StartFailure, report
from pilotage_runtime.fetched import model_root
from pilotage_runtime.repository import Repository, State, Version
from pilotage_runtime.services.listener import listen
from pilotage_runtime.services.metrics import MetricsServer
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Exposition, Sheet

logger = logging.getLogger(__name__)


def serve_alone(settings: ServeSettings) -> int:
    """Serve with one process, metrics included."""
    sheet = Sheet()
    repository = Repository(sheet)
    try:
        _load(
            settings,
            numbered(catalog.discover(model_root(settings.model_dir), settings.model_name)),
            repository,
        )
    except StartFailure as failure:
        return _failed(failure, settings)
    exposition = Exposition(repository.labels, [sheet])

    async def run() -> None:
        async with MetricsServer(exposition).running(listen(settings.host, settings.metrics_port)):
            listener = listen(settings.host, settings.http_port)
            await app.server(settings, repository, _announcement(listener)).serve(sockets=[listener])

    uvloop.run(run())
    return 0


def serve_as_worker(
    settings: ServeSettings, listener: socket.socket, control: socket.socket, sheet: Sheet
) -> int:
    """Load what the supervisor names, tell it, wait for its word, serve."""
    reader = control.makefile("rb")
    models = orjson.loads(reader.readline())["models"]
    wanted = {int(number): Location(model, version, Path(root)) for number, model, version, root in models}
    repository = Repository(sheet)
    try:
        _load(settings, wanted, repository)
    except StartFailure as failure:
        return _failed(failure, settings)
    control.sendall(b"loaded\n")
    if reader.readline() != b"go\n":  # the supervisor is gone, or stopping
        return 0

    def watch_supervisor() -> None:
        # Its end of the socket closes when it is gone, however it went; then nobody would stop this worker.
        asyncio.get_running_loop().add_reader(control, server.stop)

    server = app.server(settings, repository, watch_supervisor)
    uvloop.run(server.serve(sockets=[listener]))
    return 0


def main() -> int:
    """Run one worker as the supervisor spawns it: descriptors of listener, control socket and slot."""
    log.configure()
    listener, control, sheet = (int(argument) for argument in sys.argv[1:4])
    return serve_as_worker(
        ServeSettings(), socket.socket(fileno=listener), socket.socket(fileno=control), Sheet(sheet)
    )


def _load(settings: ServeSettings, wanted: Mapping[int, Location], repository: Repository) -> None:
    """Load all models; one that fails does not stop the others, unless it is the only one."""
    failures = list[StartFailure]()
    for number, location in wanted.items():
        version = Version(location, number)
        try:
            version.engine = app.load(location, settings, repository.slot(number))
        except StartFailure as failure:
            version.state, version.reason = State.UNAVAILABLE, f"{failure.reason}: {failure.message}"
            failures.append(failure)
            if len(wanted) > 1:
                _tell(failure, location)
        else:
            version.state = State.READY
        repository.put(version)
    if len(failures) == len(wanted):
        raise failures[0]
    app.settle()


def _failed(failure: StartFailure, settings: ServeSettings) -> int:
    _tell(failure)
    report(failure, settings.termination_log)
    return failure.exit_code


def _tell(failure: StartFailure, location: Location | None = None) -> None:
    named = {"model": location.model, "version": location.version} if location else {}
    logger.error("%s", failure.message, extra={"stage": failure.stage, "reason": failure.reason, **named})


def _announcement(listener: socket.socket) -> Callable[[], None]:
    def announce() -> None:
        host, port = listener.getsockname()[:2]
        logger.info("serving", extra={"host": host, "port": port, "pid": os.getpid()})

    return announce


if __name__ == "__main__":
    sys.exit(main())
