"""Loads and unloads models on all workers, or on none; one change at a time."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from pilotage_runtime import budget, memory
from pilotage_runtime.catalog import Location
from pilotage_runtime.errors import Refused
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.roster import Roster
from pilotage_runtime.settings import ServeSettings

_ANSWER_SECONDS = 5

logger = logging.getLogger(__name__)


class Member(Protocol):
    """One process that serves."""

    async def handle(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Let it take a step; `error` in the answer says that it could not, as where the process has died."""
        ...


class Conductor:
    """Decides for all members.

    A change that was asked for goes on to its end, or is undone as a whole, though its caller no longer waits.
    """

    def __init__(
        self, settings: ServeSettings, roster: Roster, members: Callable[[], Sequence[Member]]
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._members = members
        self._one_at_a_time = asyncio.Lock()
        self._changes = set[asyncio.Task[None]]()

    async def load(self, model: str) -> None:
        """Serve what the repository's folder holds of a model now; raise Refused where that cannot be."""
        await self._whole(self._load(model))

    async def unload(self, model: str) -> None:
        """Stop serving a model; requests under way are answered."""
        await self._whole(self._unload(model))

    async def agree(self) -> None:
        """Load on all members what has changed on disk: one that starts anew would serve it beside others that do not."""
        # What is changed now, or by a member that does not answer, holds up no start.
        if self._one_at_a_time.locked():
            return
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    asked = [member.handle({"do": "changed"}) for member in self._members()]
                    answers = await asyncio.gather(*asked)
            except TimeoutError:
                return
            for model in sorted({model for answer in answers for model in answer.get("changed", ())}):
                logger.info("loading what has changed on disk", extra={"model": model})
                try:
                    await self._replace(model, self._roster.versions(model))
                except _Failed as failed:
                    logger.error("cannot be loaded: %s", failed, extra={"model": model})  # noqa: TRY400 - told by who failed

    async def _whole(self, change: Coroutine[Any, Any, None]) -> None:
        """Make a change in a task of its own, which a caller that leaves does not cancel."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _load(self, model: str) -> None:
        async with self._one_at_a_time:
            if not self._roster.is_repository:
                raise Refused("this server was started with one model, not with a repository of models", 409)
            try:
                versions = self._roster.find(model)
            except StartFailure as failure:
                raise Refused(failure.message) from failure
            if not versions:
                raise Refused(f"the repository holds no model '{model[:100]}'", 404)
            evicted: dict[str, Mapping[int, Location]] = {}
            try:
                for other in await self._evictions(model, versions):
                    logger.info("unloading the longest unused", extra={"model": other, "room_for": model})
                    evicted[other] = self._roster.versions(other)
                    await self._replace(other, {})
                await self._replace(model, versions)
            except _Failed as failed:
                await self._put_back(evicted, model)
                raise Refused(f"model '{model}' cannot be loaded: {failed}") from failed
            except Exception:
                await self._put_back(evicted, model)
                raise

    async def _unload(self, model: str) -> None:
        async with self._one_at_a_time:
            if not any(location.model == model for location in self._roster.wanted.values()):
                raise Refused(f"model '{model[:100]}' is not loaded", 404)
            try:
                await self._replace(model, {})
            except _Failed as failed:
                raise Refused(f"model '{model[:100]}' cannot be unloaded now: {failed}", 503) from failed

    async def _put_back(self, evicted: Mapping[str, Mapping[int, Location]], model: str) -> None:
        """Load again what made room for a model that cannot be loaded."""
        for other, versions in evicted.items():
            logger.info("loading again what had made room", extra={"model": other, "room_for": model})
            kept: dict[int, Location] = {}
            # One by one: a version that cannot be loaded, as perhaps never since the start, stops no other.
            for number, location in versions.items():
                try:
                    await self._replace(other, {**kept, number: location})
                except _Failed as failed:
                    logger.error(  # noqa: TRY400 - told by who failed, with what it knows
                        "cannot be loaded again: %s",
                        failed,
                        extra={"model": other, "version": location.version},
                    )
                else:
                    kept[number] = location

    async def _replace(self, model: str, versions: Mapping[int, Location]) -> None:
        """Serve exactly these versions of a model; undone on all members if it fails on one."""
        listed = [[number, location.version, str(location.root)] for number, location in versions.items()]
        message = {"model": model, "versions": listed}
        asked = list[Member]()
        try:
            loaded = await self._prepare(message, asked)
        except BaseException:
            await asyncio.gather(*(member.handle({"do": "abort"}) for member in asked))
            raise
        # Nothing else has run since the last look at who is there: one that comes up from here on has loaded for
        # an older generation, which its supervisor sees. Not where nothing has changed: loads that are asked for again
        # and again would keep it from ever coming up.
        if loaded or not asked or versions != self._roster.versions(model):
            self._roster.replace(model, versions)
        await asyncio.gather(*(member.handle({"do": "commit", **message}) for member in asked))
        logger.info(
            "repository changed",
            extra={"model": model, "versions": [one.version for one in versions.values()]},
        )

    async def _prepare(self, message: Mapping[str, Any], asked: list[Member]) -> bool:
        """Let all members load, and note who was asked; whether there was anything to load. Raise _Failed if one cannot."""
        loaded = False
        # A load may take minutes: a worker that has come up meanwhile is asked as well.
        while new := [member for member in self._members() if member not in asked]:
            asked += new
            answers = await asyncio.gather(*(member.handle({"do": "prepare", **message}) for member in new))
            errors = [answer["error"] for answer in answers if "error" in answer]
            if errors:
                raise _Failed(errors[0])
            loaded |= any(answer["loaded"] for answer in answers)
        return loaded

    async def _evictions(self, model: str, versions: Mapping[int, Location]) -> list[str]:
        limit = self._settings.memory_budget_bytes
        if limit is None:
            container = memory.limit()
            limit = int(container * budget.SHARE / self._settings.workers) if container else None
        if limit is None:
            return []
        need = int(sum(_size(location) for location in versions.values()) * budget.GROWTH)
        usages = [
            usage
            for member in self._members()
            if "error" not in (usage := await member.handle({"do": "usage"}))
        ]
        if not usages:
            return []
        fullest = max(usages, key=lambda usage: usage["resident"])
        # Used lately by any worker is used lately.
        idle: dict[str, float] = {}
        for usage in usages:
            for name, _, seconds in usage["loaded"]:
                idle[name] = min(seconds, idle.get(name, seconds))
        loaded = [budget.Loaded(name, size, idle[name]) for name, size, _ in fullest["loaded"]]
        present = sum(one.size for one in loaded if one.model == model)
        return budget.evictions(
            model,
            max(0, need - present),
            fullest["resident"],
            limit,
            loaded,
            evict=self._settings.evict_models,
        )


class _Failed(Exception):  # noqa: N818 - told on as a refusal
    """A member could not prepare."""


def _size(location: Location) -> int:
    root = location.root
    files = [root] if root.is_file() else root.rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())
