"""Which versions of which models are wanted, kept by the process that decides: the supervisor, or the only one.

A version keeps its number for ever, so that it goes on in its old counters; it has none before it is first wanted, so
that loads that fail use none up.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pilotage_runtime import catalog
from pilotage_runtime.catalog import Location
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.telemetry import MAX_SLOTS, UNKNOWN_MODEL, ModelLabels

# Requests to no model are counted here.
UNKNOWN_NUMBER = 0


class Roster:
    """The wanted versions by number."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._numbers: dict[tuple[str, str], int] = {}
        # Counts the changes: a version whose files have changed is wanted by the same name as before.
        self.generation = 0
        locations = catalog.discover(root, name)
        # One model alone is loaded once and stays.
        self.is_repository = all(location.root != root for location in locations)
        self._versions_of = name if all(one.root == root / one.version for one in locations) else None
        self.wanted = self._numbered(locations)
        self._keep(self.wanted)

    def find(self, model: str) -> dict[int, Location]:
        """Look which versions of a model the folder holds now, by number; raise StartFailure where there are too many.

        Numbers of new versions are only theirs once they are wanted.
        """
        if self._versions_of is None:
            locations = catalog.find(self._root, model)
        else:
            locations = catalog.discover(self._root, model) if model == self._versions_of else []
        return self._numbered(locations)

    def versions(self, model: str) -> dict[int, Location]:
        """Give the versions of a model that are wanted, by number."""
        return {number: location for number, location in self.wanted.items() if location.model == model}

    def replace(self, model: str, versions: Mapping[int, Location]) -> None:
        """Want these versions of a model and no others."""
        kept = {number: location for number, location in self.wanted.items() if location.model != model}
        self.wanted = {**kept, **versions}
        self.generation += 1
        self._keep(versions)

    @property
    def numbers(self) -> list[int]:
        """List the numbers of all that was ever wanted, and of what is asked of no model."""
        return [UNKNOWN_NUMBER, *self._numbers.values()]

    def labels(self) -> Mapping[int, ModelLabels]:
        """Name the models whose numbers are in the sheets."""
        models = {number: ModelLabels(of.model, of.version) for number, of in self.wanted.items()}
        return {UNKNOWN_NUMBER: ModelLabels(UNKNOWN_MODEL, ""), **models}

    def _numbered(self, locations: Sequence[Location]) -> dict[int, Location]:
        new = [location for location in locations if location[:2] not in self._numbers]
        used, most = len(self._numbers), MAX_SLOTS - 1
        if used + len(new) > most:
            raise StartFailure(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                f"{len(new)} new versions came; one server counts at most {most} versions in its life, "
                f"and {used} of these are used up",
            )
        numbers = self._numbers | {location[:2]: used + nth for nth, location in enumerate(new, 1)}
        return {numbers[location[:2]]: location for location in locations}

    def _keep(self, versions: Mapping[int, Location]) -> None:
        for number, location in versions.items():
            self._numbers[location[:2]] = number
