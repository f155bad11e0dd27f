"""Whether another model fits into memory, and who would have to go for it."""

from collections.abc import Sequence
from typing import NamedTuple

from pilotage_runtime.errors import Refused

# A loaded model is about as large as its files, and a little.
GROWTH = 1.2
# Of a worker's share of the container's memory; the rest is for requests.
SHARE = 0.9


class Loaded(NamedTuple):
    """A model that is there, and how long nobody has used it."""

    model: str
    size: int
    idle_seconds: float


def evictions(
    model: str, need: int, resident: int, budget: int | None, loaded: Sequence[Loaded], *, evict: bool
) -> list[str]:
    """Name the models to unload so that `need` bytes fit, the longest unused first; raise Refused (503) otherwise."""
    if budget is None or resident + need <= budget:
        return []
    chosen = list[str]()
    free = budget - resident
    if evict:
        for candidate in sorted(loaded, key=lambda one: -one.idle_seconds):
            if candidate.model != model:
                chosen.append(candidate.model)
                free += candidate.size
            if free >= need:
                return chosen
    mib = 2**20
    raise Refused(
        f"model '{model}' needs about {need / mib:.0f} MiB, of which {max(0, budget - resident) / mib:.0f} are free in "
        f"a worker's budget of {budget / mib:.0f}"
        + ("" if evict else "; unload another, or let the longest unused go (PILOTAGE_EVICT_MODELS)"),
        503,
        (b"retry-after", b"10"),
    )
