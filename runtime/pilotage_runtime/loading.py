"""Loading and unloading in this process while it serves, in steps that several processes can take together.

`prepare` loads beside what serves and changes nothing that callers see; `commit` shows it, `abort` forgets it.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilotage_runtime import app, memory
from pilotage_runtime.catalog import Location
from pilotage_runtime.engine import Engine
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.repository import Repository, State, Version
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.trial import Trials

_IDLE_CHECK_SECONDS = 0.02
_RETIRING_SECONDS = 10

logger = logging.getLogger(__name__)


class Loading:
    """What this process does when the one that decides says so."""

    def __init__(self, settings: ServeSettings, repository: Repository, trials: Trials | None = None) -> None:
        self._settings = settings
        self._repository = repository
        self._trials = trials or Trials()
        self._prepared: dict[int, Version] = {}
        self._retiring = set[asyncio.Task[None]]()

    def load_all(self, wanted: Mapping[int, Location]) -> None:
        """Load before serving begins; one that fails does not stop the others, unless all do: then StartFailure.

        What an earlier call has loaded stays where it is still wanted in that form.
        """
        failures = list[StartFailure]()
        for version in self._repository.all():
            if version.number not in wanted or not _serves(version, version.location):
                self._repository.remove(version.number)
                if version.engine is not None:
                    version.engine.close()
        for number, location in wanted.items():
            if self._repository.by_number(number) is not None:
                continue
            version = self._load(number, location)
            if isinstance(version, StartFailure):
                failures.append(version)
                if len(wanted) > 1:
                    tell(version, location)
                reason = f"{version.reason}: {version.message}"
                version = Version(location, number, State.UNAVAILABLE, reason)
            else:
                self._repository.slot(number).start(version.load_seconds)
            self._repository.put(version)
        if failures and len(failures) == len(wanted):
            raise failures[0]
        app.settle()

    async def handle(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Take one step, and tell how it went: what it found, or `error` with a sentence."""
        model = str(message.get("model", ""))
        wanted = {
            int(number): Location(model, version, Path(root))
            for number, version, root in message.get("versions", ())
        }
        match message["do"]:
            case "usage":
                return self.usage()
            case "changed":
                return {"changed": await self.changed()}
            case "prepare":
                try:
                    await self.prepare(wanted)
                except StartFailure as failure:
                    return {"error": f"{failure.reason}: {failure.message}"}
                return {"loaded": len(self._prepared)}
            case "commit":
                self.commit(model, wanted)
            case "abort":
                await self.abort()
            case unknown:
                raise ValueError(f"unknown step {unknown}")
        return {}

    def usage(self) -> dict[str, Any]:
        """Tell how much memory is in use, and since when nobody has used each model."""
        now = time.perf_counter()
        return {
            "resident": memory.resident(),
            "loaded": [
                [
                    model,
                    sum(version.size for version in ready),
                    now - max(version.used_at for version in ready),
                ]
                for model in self._repository.names()
                if (ready := [one for one in self._repository.versions(model) if one.engine is not None])
            ],
        }

    async def changed(self) -> list[str]:
        """List the models whose files are no longer those that are served."""
        served = [
            (model, one.location.root, one.stamp)
            for model in self._repository.names()
            for one in self._repository.versions(model)
            if one.state is State.READY
        ]
        # In a thread, for it looks at every file.
        return await asyncio.to_thread(
            lambda: sorted({model for model, root, seen in served if seen != stamp(root)})
        )

    async def prepare(self, wanted: Mapping[int, Location]) -> None:
        """Load what is not there in its present form; raise StartFailure, and keep what was loaded for `abort`."""
        for number, location in wanted.items():
            present = self._repository.by_number(number)
            if present is not None and _serves(present, location):
                continue
            # The memory of what was let go is for this one; it is free once the last that it owes has its answer.
            if self._retiring:
                await asyncio.wait(self._retiring, timeout=_RETIRING_SECONDS)
            version = await asyncio.to_thread(self._load, number, location)
            if isinstance(version, StartFailure):
                tell(version, location)
                raise version
            self._prepared[number] = version

    def commit(self, model: str, wanted: Mapping[int, Location]) -> None:
        """Serve what was prepared and what was kept, and let the rest of the model go."""
        old = {version.number: version.engine for version in self._repository.versions(model)}
        for number in old.keys() - wanted.keys():
            self._repository.remove(number)
        prepared = {number: self._prepared.pop(number) for number in wanted if number in self._prepared}
        for number, version in prepared.items():
            slot = self._repository.slot(number)
            if slot.loaded:
                slot.loaded_in(version.load_seconds)
            else:
                slot.start(version.load_seconds)
            self._repository.put(version)
        replaced = [old.get(number) for number in (*prepared, *(old.keys() - wanted.keys()))]
        self._retire([engine for engine in replaced if engine is not None])

    async def abort(self) -> None:
        """Forget what was prepared."""
        engines = [version.engine for version in self._prepared.values() if version.engine is not None]
        self._prepared = {}
        for engine in engines:
            await asyncio.to_thread(engine.close)
        app.settle()

    def _load(self, number: int, location: Location) -> Version | StartFailure:
        started = time.perf_counter()
        seen = stamp(location.root)
        if not self._repository.slot(number).loaded:
            self._repository.sheet.empty(number)
        try:
            engine = app.load(location, self._settings, self._repository.slot(number), self._trials)
        except StartFailure as failure:
            return failure
        except Exception as error:
            logger.exception("unexpected failure while loading")
            return StartFailure(Stage.LOAD, Reason.LOAD_FAILED, f"{type(error).__name__}: {error}")
        return Version(
            location,
            number,
            State.READY,
            engine=engine,
            stamp=seen,
            load_seconds=time.perf_counter() - started,
        )

    def _retire(self, engines: list[Engine]) -> None:
        if engines:
            task = asyncio.create_task(_close_when_idle(engines))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)


async def _close_when_idle(engines: list[Engine]) -> None:
    """Free engines that nobody new can reach, each once it has answered whom it owes."""
    # Together: the slow caller of one keeps no other in memory.
    await asyncio.gather(*(_close(engine) for engine in engines))
    engines.clear()
    app.settle()


async def _close(engine: Engine) -> None:
    while engine.busy:  # noqa: ASYNC110 - the end of a run has no event that outlives it
        await asyncio.sleep(_IDLE_CHECK_SECONDS)
    await asyncio.to_thread(engine.close)


def _serves(version: Version, location: Location) -> bool:
    return version.state is State.READY and version.stamp == stamp(location.root)


def stamp(root: Path) -> tuple[int, int]:
    """Give what changes when a model's files do: their size in all, and the latest change."""
    files = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    states = [path.stat() for path in files]
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)


def tell(failure: StartFailure, location: Location | None = None) -> None:
    """Log why a model cannot be served."""
    named = {"model": location.model, "version": location.version} if location else {}
    logger.error("%s", failure.message, extra={"stage": failure.stage, "reason": failure.reason, **named})
