"""The models of one process, by name and version, and what state each is in."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from pilotage_runtime.catalog import Location
from pilotage_runtime.contract import Contract
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import Refused
from pilotage_runtime.telemetry import Sheet, Slot

logger = logging.getLogger(__name__)


class State(StrEnum):
    """A version's state, in the protocol's words."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(slots=True)
class Version:
    """One version of a model."""

    location: Location
    number: int  # of its slot in every worker's sheet
    state: State = State.LOADING
    reason: str = ""
    engine: Engine | None = None
    stamp: tuple[int, int] = (0, 0)  # bytes of its files in all, and when one last changed
    load_seconds: float = 0

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return self.stamp[0]

    @property
    def used_at(self) -> float:
        """When somebody last asked, by time.perf_counter; now, while somebody is owed an answer."""
        if self.engine is None:
            return 0
        return time.perf_counter() if self.engine.busy else self.engine.used_at


class Repository:
    """Answers who serves a path; changed only by what loads and unloads."""

    def __init__(self, sheet: Sheet) -> None:
        self.routes: dict[str, Engine] = {}
        self._versions: dict[str, dict[str, Version]] = {}
        self.sheet = sheet
        # Where requests to paths of no model are counted: where there is but one model, against that.
        self.unknown = sheet.slot(0)

    def slot(self, number: int) -> Slot:
        """Give the slot that a version counts in."""
        return self.sheet.slot(number)

    def put(self, version: Version) -> None:
        """Note a version, or its new state."""
        self._versions.setdefault(version.location.model, {})[version.location.version] = version
        self._route()

    def by_number(self, number: int) -> Version | None:
        """Give the version that counts in that slot."""
        for versions in self._versions.values():
            for version in versions.values():
                if version.number == number:
                    return version
        return None

    def remove(self, number: int) -> None:
        """Forget a version."""
        version = self.by_number(number)
        if version is not None:
            of_model = self._versions[version.location.model]
            del of_model[version.location.version]
            if not of_model:
                del self._versions[version.location.model]
            self._route()

    def contracts(self) -> list[Contract]:
        """List what the models that are ready take and give."""
        return [engine.contract for engine in self.routes.values()]

    def names(self) -> list[str]:
        """List the models, those that failed included."""
        return sorted(self._versions)

    def all(self) -> list[Version]:
        """List every version of every model."""
        return [version for versions in self._versions.values() for version in versions.values()]

    def versions(self, model: str) -> list[Version]:
        """List a model's versions, the oldest first."""
        return sorted(
            self._versions.get(model, {}).values(), key=lambda version: int(version.location.version)
        )

    def default(self, model: str) -> Version | None:
        """Give the version that answers where none is named: the latest that is ready."""
        ready = [version for version in self.versions(model) if version.state is State.READY]
        return ready[-1] if ready else None

    def find(self, model: str, version: str | None = None) -> Version:
        """Give a version that is there, ready or not; raise Refused (404) otherwise."""
        versions = self.versions(model)
        if version is None:
            if chosen := self.default(model):
                return chosen
            if versions:
                return versions[-1]
        for candidate in versions:
            if candidate.location.version == version:
                return candidate
        if not versions:
            raise Refused(f"model '{model[:100]}' is unknown; served are {_few(self.names())}", 404)
        known = _few(one.location.version for one in versions)
        raise Refused(f"model '{model}' has no version '{(version or '')[:60]}'; it has {known}", 404)

    def engine(self, model: str, version: str | None = None) -> Engine:
        """Give what runs a version; raise Refused, 404 where it is unknown and 503 where it is not ready."""
        found = self.find(model, version)
        if found.engine is None or found.state is not State.READY:
            raise Refused(
                f"model '{model}' version {found.location.version} is {found.state}"
                f"{f': {found.reason}' if found.reason else ''}",
                503,
            )
        return found.engine

    def not_served(self, path: str) -> Refused:
        """Say why nothing answers an inference at this path."""
        parts = path.split("/")
        match parts:
            case ["", "v2", "models", model, "infer"]:
                version = None
            case ["", "v2", "models", model, "versions", version, "infer"]:
                pass
            case _:
                return Refused(
                    f"{path[:200]} is not served here; inference is at /v2/models/MODEL/infer", 404
                )
        try:
            self.engine(model, version)
        except Refused as refused:
            return refused
        return Refused(f"{path[:200]} is not served here", 404)

    def ready(self) -> bool:
        """Whether there is anything to serve."""
        return bool(self.routes)

    def close(self) -> None:
        """Free every model."""
        engines = set(self.routes.values())
        self.routes.clear()
        for engine in engines:
            engine.close()

    def _route(self) -> None:
        routes: dict[str, Engine] = {}
        for model in self._versions:
            default = self.default(model)
            if default is not None and default.engine is not None:
                routes[f"/v2/models/{model}/infer"] = default.engine
            for version in self.versions(model):
                if version.state is State.READY and version.engine is not None:
                    routes[f"/v2/models/{model}/versions/{version.location.version}/infer"] = version.engine
        self.routes = routes
        engines = set(routes.values())
        if len(self._versions) == 1 and engines:
            self.unknown = next(iter(engines)).slot
        else:
            self.unknown = self.sheet.slot(0)
            if not self.unknown.loaded:
                self.unknown.start(0)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return (", ".join(names[:8]) + (", …" if len(names) > 8 else "")) or "none"
