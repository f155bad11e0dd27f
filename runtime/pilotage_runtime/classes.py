"""Which class a model predicted for each row: the likeliest by its probabilities, or else the label it answered."""

from collections import Counter
from collections.abc import Iterable
from math import isnan

import numpy as np

from pilotage_runtime.contract import Contract
from pilotage_runtime.telemetry import Slot

_SMALL = 64  # elements below which a Python loop beats numpy's call overhead


class Classes:
    """Counts a model's predictions by class."""

    def __init__(self, contract: Contract, slot: Slot) -> None:
        self._slot = slot
        probability = contract.probability
        stated = probability or contract.label
        self.output = stated.name if stated is not None else None
        self._labels = stated.labels if stated is not None else ()
        self._from_probabilities = probability is not None
        width = probability.shape[1] if probability is not None else -1
        # The positive class alone stands for two.
        size = 2 if width == 1 else width
        names = self._labels or [str(at) for at in range(size)]
        # Known from the start, so that a class which was never predicted is seen at 0.
        self._places = slot.classes.places(names)

    def count(self, value: np.ndarray) -> None:
        """Count the rows of an output that is named `output`; what is no number is of no class."""
        if not self._from_probabilities:
            self._count_labels(value.ravel().tolist())
        elif value.ndim == 2 and value.size:
            self._count_places(_likeliest(value))

    def _count_places(self, likeliest: Iterable[tuple[int, int]]) -> None:
        places = self._places
        for at, rows in likeliest:
            while at >= len(places):  # a width that the contract leaves open
                places.append(self._slot.classes.place(str(len(places))))
            self._slot.classified(places[at], rows)

    def _count_labels(self, labels: list[object]) -> None:
        known = self._labels
        for label, rows in ((labels[0], 1),) if len(labels) == 1 else Counter(labels).items():
            if isinstance(label, bytes):
                name = label.decode("utf-8", "replace")
            elif isinstance(label, int) and 0 <= label < len(known):
                name = known[label]
            else:
                name = str(label)
            self._slot.classified(self._slot.classes.place(name), rows)


def _likeliest(value: np.ndarray) -> Iterable[tuple[int, int]]:
    """Give the classes that are the likeliest of some rows, and of how many."""
    if value.size <= _SMALL:
        rows = value.tolist()
        found = (
            [int(row[0] >= 0.5) for row in rows if not isnan(row[0])]
            if value.shape[1] == 1
            else [row.index(max(row)) for row in rows if not isnan(sum(row))]
        )
        return ((found[0], 1),) if len(found) == 1 else Counter(found).items()
    unknown = np.isnan(value)
    numbers = value[~unknown.any(axis=1)] if unknown.any() else value
    best = numbers[:, 0] >= 0.5 if value.shape[1] == 1 else numbers.argmax(axis=1)
    counts = np.bincount(best)
    return [(at, int(counts[at])) for at in np.flatnonzero(counts).tolist()]
