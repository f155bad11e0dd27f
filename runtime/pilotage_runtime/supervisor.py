"""Several workers on one port: this process owns socket, signals and /metrics, and imports no model library.

Workers are spawned, never forked, so that no library starts with another process's threads and locks.
All of them load before any accepts. One that dies is started anew after a pause, and goes on counting in
its predecessor's sheet; one that keeps dying ends them all, for the pod's status to show it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import uvloop

from pilotage_runtime import channel
from pilotage_runtime.channel import Channel
from pilotage_runtime.conductor import Conductor
from pilotage_runtime.errors import Refused
from pilotage_runtime.failure import EXIT_MODEL, Reason, Stage, StartFailure, report
from pilotage_runtime.fetched import model_root
from pilotage_runtime.roster import Roster
from pilotage_runtime.services.listener import CannotListenError, listen_for
from pilotage_runtime.services.metrics import MetricsServer
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Exposition, Sheet

MAX_CRASHES = 5
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0
_HEALTHY_SECONDS = 60.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Place:
    """One worker's place: it outlives the processes that take it."""

    index: int
    sheet_descriptor: int
    process: asyncio.subprocess.Process | None = None
    loaded: bool = False  # its first worker has loaded: from then on one that dies is started anew
    outdated: bool = False  # what its worker was told to load is not what is wanted now
    not_started: OSError | None = None  # why there was no process at all


def serve(settings: ServeSettings) -> int:
    """Supervise until SIGTERM or until the workers give up."""
    try:
        supervisor = Supervisor(settings)
    except StartFailure as failure:  # the folder, before any worker has seen it
        logger.error("%s", failure.message, extra={"stage": failure.stage, "reason": failure.reason})  # noqa: TRY400
        report(failure, settings.termination_log)
        return failure.exit_code
    except CannotListenError as error:
        logger.error("%s", error)  # noqa: TRY400 - a traceback adds nothing
        return EXIT_MODEL
    return uvloop.run(supervisor.run())


class Supervisor:
    """Starts, watches and stops the workers."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._stopped_status = 0
        self._all_loaded = asyncio.Barrier(settings.workers)
        self._roster = Roster(model_root(settings.model_dir), settings.model_name)
        self._members: dict[int, Channel] = {}
        self._conductor = Conductor(settings, self._roster, lambda: list(self._members.values()))
        self._places = [_Place(index, os.memfd_create(f"sheet-{index}")) for index in range(settings.workers)]
        self._trials = os.memfd_create("trials")
        self._sheets = [Sheet(place.sheet_descriptor) for place in self._places]
        self._listener, self._metrics = listen_for(settings)

    async def run(self) -> int:
        """Run all places until they end; give the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        exposition = Exposition(self._roster.labels, self._sheets)
        async with MetricsServer(exposition).running(self._metrics):
            tasks = [asyncio.create_task(self._keep(place)) for place in self._places]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            status = max(task.result() for task in done)
            if not self._stopping.is_set():
                self._stop(signal.SIGTERM)
            # A place still at the barrier would wait there for the one that failed.
            await self._all_loaded.abort()
            await asyncio.wait(tasks)
        return status

    async def _keep(self, place: _Place) -> int:
        """Keep one worker running; return only when all should stop."""
        crashes = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_worker(place)
            # Here, for its successor may not have all models that it had, and these may come back.
            self._sheets[place.index].ended(self._roster.numbers)
            if self._stopping.is_set():
                break
            if not place.loaded:
                return self._never_loaded(place, status)
            if place.outdated:
                place.outdated = False
                continue
            crashes = 1 if time.monotonic() - started > _HEALTHY_SECONDS else crashes + 1
            if crashes >= MAX_CRASHES:
                return self._gave_up(place, status)
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (crashes - 1), _LONGEST_PAUSE_SECONDS)
            logger.error(
                "worker could not be started: %s" if place.not_started else "worker died",
                *([place.not_started] if place.not_started else ()),
                extra={"worker": place.index, "status": status, "restart_in_seconds": pause},
            )
            await self._pause(pause)
            await self._conductor.agree()
        return self._stopped_status

    async def _run_worker(self, place: _Place) -> int:
        place.not_started = None
        try:
            process, ours = await self._started(place)
        except OSError as error:
            # No process, descriptor or memory is left for it: no reason to end those that serve.
            place.not_started = error
            return EXIT_MODEL
        place.process = process
        if self._stopping.is_set():  # it began too late to be told with the others
            _send(process, signal.SIGTERM)
        reader, writer = await asyncio.open_connection(sock=ours, limit=channel.LIMIT_BYTES)
        try:
            while True:
                wanted, generation = self._roster.wanted, self._roster.generation
                models = [
                    [number, model, version, str(root)] for number, (model, version, root) in wanted.items()
                ]
                writer.write(orjson.dumps({"models": models}) + b"\n")
                loaded = await reader.readline() == b"loaded\n"
                if loaded and not place.loaded:
                    place.loaded = True
                    await self._all_loaded.wait()
                if generation == self._roster.generation:
                    break
                # Changed while it loaded, it would serve what is gone. It loads what is new, and not all again: where
                # changes come faster than a worker starts, it would never serve.
                if not loaded:  # perhaps for that very reason
                    place.outdated = True
                    _send(process, signal.SIGTERM)
                    return await process.wait()
            if loaded:
                writer.write(b"go\n")
                member = self._members[place.index] = Channel(reader, writer, self._asked)
                logger.info("worker serves", extra={"worker": place.index, "pid": process.pid})
                try:
                    await member.run()
                finally:  # it hears nothing any more, though it may take a while to end
                    self._members.pop(place.index, None)
                    # Where only the channel broke it would serve on, without the changes that the others take.
                    writer.close()
            return await process.wait()
        except (asyncio.BrokenBarrierError, ConnectionError):  # ended while it loaded
            return await process.wait()
        finally:
            place.process = None
            writer.close()

    async def _started(self, place: _Place) -> tuple[asyncio.subprocess.Process, socket.socket]:
        """Start a worker; give its process, and our end of its channel."""
        ours, theirs = socket.socketpair()
        descriptors = (self._listener.fileno(), theirs.fileno(), place.sheet_descriptor, self._trials)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "pilotage_runtime.worker",
                    *(str(descriptor) for descriptor in descriptors),
                    pass_fds=descriptors,
                    start_new_session=True,  # a terminal's Ctrl-C is for this process, which tells the workers
                )
            except OSError:
                ours.close()
                raise
        return process, ours

    async def _asked(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Load or unload for a worker that was asked to."""
        try:
            step = self._conductor.load if message["do"] == "load" else self._conductor.unload
            await step(message["model"])
        except Refused as refused:
            return {"error": refused.message, "status": refused.status}
        return {}

    def _stop(self, number: int) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        if number == signal.SIGINT and not self._members:  # a person gave up waiting for it
            self._stopped_status = 128 + number
        # Kept open here, the port would go on taking connections that nobody accepts.
        self._listener.close()
        for place in self._places:
            if place.process is not None:
                # Python takes SIGINT for an exception until the worker serves and so has a way to stop.
                serves = place.index in self._members
                _send(place.process, number if serves else signal.SIGTERM)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    def _never_loaded(self, place: _Place, status: int) -> int:
        if place.not_started:
            self._report(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                f"worker {place.index} could not be started: {place.not_started}",
            )
        elif status < 0:  # it could not say why itself
            self._report(
                Stage.LOAD, Reason.LOAD_FAILED, f"the model's first load was ended by {_signal_name(status)}"
            )
        return status if status > 0 else EXIT_MODEL

    def _gave_up(self, place: _Place, status: int) -> int:
        how = f"by {_signal_name(status)}" if status < 0 else f"by exit status {status}"
        if place.not_started:
            how = f"because it could not be started: {place.not_started}"
        self._report(
            Stage.SERVE,
            Reason.WORKERS_CRASHED,
            f"worker {place.index} died {MAX_CRASHES} times, at last {how}, each time within "
            f"{_HEALTHY_SECONDS:.0f} s of its start",
        )
        return EXIT_MODEL

    def _report(self, stage: Stage, reason: Reason, message: str) -> None:
        failure = StartFailure(stage, reason, message)
        logger.error("%s", message, extra={"stage": stage, "reason": reason})
        report(failure, self._settings.termination_log)


def _send(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself, and was not waited for yet
        process.send_signal(number)


def _signal_name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
