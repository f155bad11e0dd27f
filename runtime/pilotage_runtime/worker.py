"""Serving in this process: alone, or as one worker of several."""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import uvloop

from pilotage_runtime import app, channel, log
from pilotage_runtime.catalog import Location
from pilotage_runtime.channel import Channel
from pilotage_runtime.conductor import Conductor
from pilotage_runtime.errors import Refused
from pilotage_runtime.failure import EXIT_MODEL, StartFailure, report
from pilotage_runtime.fetched import model_root
from pilotage_runtime.loading import Loading, tell
from pilotage_runtime.repository import Repository
from pilotage_runtime.roster import Roster
from pilotage_runtime.services.listener import CannotListenError, listen_for
from pilotage_runtime.services.metrics import MetricsServer
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Exposition, Sheet
from pilotage_runtime.trial import Trials

# For threads of models to end by themselves, and models to be freed, when everybody has been answered.
_LAST_SECONDS = 5

logger = logging.getLogger(__name__)


def serve_alone(settings: ServeSettings) -> int:
    """Serve with one process, metrics included."""
    _limit_address_space(settings)
    try:
        listener, metrics = listen_for(settings)
    except CannotListenError as error:
        logger.error("%s", error)  # noqa: TRY400 - a traceback adds nothing
        return EXIT_MODEL
    sheet = Sheet()
    repository = Repository(sheet)
    loading = Loading(settings, repository)
    try:
        roster = Roster(model_root(settings.model_dir), settings.model_name)
        loading.load_all(roster.wanted)
    except StartFailure as failure:
        return _failed(failure, settings)
    exposition = Exposition(roster.labels, [sheet])

    async def run() -> None:
        conductor = Conductor(settings, roster, lambda: [loading])
        async with MetricsServer(exposition).running(metrics):
            server = app.server(
                settings,
                repository,
                conductor,
                on_started=_announcement(listener),
                on_answered=_end_without_threads_that_stay,
            )
            await server.serve(sockets=[listener])

    uvloop.run(run())
    return 0


def serve_as_worker(
    settings: ServeSettings,
    listener: socket.socket,
    control: socket.socket,
    sheet: Sheet,
    trials: Trials,
) -> int:
    """Load what the supervisor names, tell it, wait for its word, serve."""
    _limit_address_space(settings)
    repository = Repository(sheet)
    loading = Loading(settings, repository, trials)
    # Again for as long as what is wanted changes meanwhile; nothing more where the supervisor is gone, or stopping.
    while (line := _line(control)) != b"go\n":
        if not line.endswith(b"\n"):
            return 0
        try:
            loading.load_all(
                {
                    int(number): Location(model, version, Path(root))
                    for number, model, version, root in orjson.loads(line)["models"]
                }
            )
        except StartFailure as failure:
            return _failed(failure, settings)
        control.sendall(b"loaded\n")

    async def run() -> None:
        reader, writer = await asyncio.open_connection(sock=control, limit=channel.LIMIT_BYTES)
        supervisor = Channel(reader, writer, loading.handle)
        server = app.server(
            settings,
            repository,
            _Remote(supervisor),
            on_started=lambda: None,
            on_answered=_end_without_threads_that_stay,
        )

        async def listen_to_supervisor() -> None:
            await supervisor.run()
            # Its end closes when it is gone, however it went; then nobody would stop this worker.
            server.stop()

        listening = asyncio.create_task(listen_to_supervisor())
        await server.serve(sockets=[listener])
        listening.cancel()

    uvloop.run(run())
    return 0


class _Remote:
    """The supervisor's conductor, seen from a worker."""

    def __init__(self, supervisor: Channel) -> None:
        self._supervisor = supervisor

    async def load(self, model: str) -> None:
        """Ask for it."""
        _raise(await self._supervisor.handle({"do": "load", "model": model}))

    async def unload(self, model: str) -> None:
        """Ask for it."""
        _raise(await self._supervisor.handle({"do": "unload", "model": model}))


def _raise(answer: Mapping[str, Any]) -> None:
    if "error" in answer:
        raise Refused(answer["error"], int(answer.get("status", 503)))


def _line(control: socket.socket) -> bytes:
    """Read one line and not a byte more: what follows is the channel's."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = control.recv(1)
        if not byte:
            break
        line += byte
    return bytes(line)


def _limit_address_space(settings: ServeSettings) -> None:
    if settings.address_space_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (settings.address_space_bytes, settings.address_space_bytes))


def main() -> int:
    """Run one worker as the supervisor spawns it: descriptors of listener, control socket, slot and trials."""
    log.configure()
    # Until the server takes it: no exception out of what happens to run, which may be the model.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    listener, control, sheet, trials = (int(argument) for argument in sys.argv[1:5])
    return serve_as_worker(
        ServeSettings(),
        socket.socket(fileno=listener),
        socket.socket(fileno=control),
        Sheet(sheet),
        Trials(trials),
    )


def _end_without_threads_that_stay() -> None:
    """See to it that this process ends: Python waits for threads, and a model's may never come back."""

    def end() -> None:
        logger.warning("ends without waiting for a model that still runs or loads")
        os._exit(0)

    timer = threading.Timer(_LAST_SECONDS, end)
    timer.daemon = True
    timer.start()


def _failed(failure: StartFailure, settings: ServeSettings) -> int:
    tell(failure)
    report(failure, settings.termination_log)
    return failure.exit_code


def _announcement(listener: socket.socket) -> Callable[[], None]:
    def announce() -> None:
        host, port = listener.getsockname()[:2]
        logger.info("serving", extra={"host": host, "port": port, "pid": os.getpid()})

    return announce


if __name__ == "__main__":
    sys.exit(main())
