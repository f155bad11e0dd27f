"""Which versions of which models are wanted, kept by the process that decides: the supervisor, or the only one."""

from collections.abc import Mapping
from pathlib import Path

from pilotage_runtime import catalog
from pilotage_runtime.catalog import Location
from pilotage_runtime.telemetry import MAX_SLOTS, UNKNOWN_MODEL, ModelLabels

# Requests to no model are counted here.
UNKNOWN_NUMBER = 0


class Roster:
    """The wanted versions by number; a version keeps its number for ever, so that it goes on in its old counters."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._numbers: dict[tuple[str, str], int] = {}
        self.wanted: dict[int, Location] = {}
        # Counts the changes: a version whose files have changed is wanted by the same name as before.
        self.generation = 0
        locations = catalog.discover(root, name)
        # One model alone is loaded once and stays.
        self.is_repository = all(location.root != root for location in locations)
        self._versions_of = name if all(one.root == root / one.version for one in locations) else None
        for location in locations:
            self.wanted[self._number(location)] = location

    def find(self, model: str) -> dict[int, Location]:
        """Look which versions of a model the folder holds now, by number."""
        if self._versions_of is None:
            locations = catalog.find(self._root, model)
        else:
            locations = catalog.discover(self._root, model) if model == self._versions_of else []
        return {self._number(location): location for location in locations}

    def versions(self, model: str) -> dict[int, Location]:
        """Give the versions of a model that are wanted, by number."""
        return {number: location for number, location in self.wanted.items() if location.model == model}

    def replace(self, model: str, versions: Mapping[int, Location]) -> None:
        """Want these versions of a model and no others."""
        kept = {number: location for number, location in self.wanted.items() if location.model != model}
        self.wanted = {**kept, **versions}
        self.generation += 1

    def labels(self) -> Mapping[int, ModelLabels]:
        """Name the models whose numbers are in the sheets."""
        models = {number: ModelLabels(of.model, of.version) for number, of in self.wanted.items()}
        return {UNKNOWN_NUMBER: ModelLabels(UNKNOWN_MODEL, ""), **models}

    def _number(self, location: Location) -> int:
        key = (location.model, location.version)
        if key not in self._numbers:
            if len(self._numbers) + 1 >= MAX_SLOTS:
                raise ValueError(f"one process counts at most {MAX_SLOTS - 1} versions in its life")
            self._numbers[key] = len(self._numbers) + 1
        return self._numbers[key]
