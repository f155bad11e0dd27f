"""How far a fetch is, by the end of its container's log: a stranger's text, until it is read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

LOG_LINES = 3
"""At the end of a log: the line of progress may have others behind it, such as that of the unpacking."""
LOG_BYTES = 4096
_TOLD_BY = ("downloading", "downloaded")
_MOST_BYTES = 2**60
_UNITS = ((2**30, "GiB"), (2**20, "MiB"))


@dataclass(frozen=True)
class Fetched:
    """What has arrived of a model, in bytes."""

    done: int
    total: int | None = None
    """Absent where the store does not say."""

    def __str__(self) -> str:
        size, unit = next((u for u in _UNITS if (self.total or self.done) >= u[0]), _UNITS[-1])
        done = f"{self.done / size:.1f}"
        return f"{done} {unit} so far" if self.total is None else f"{done} of {self.total / size:.1f} {unit}"


def fetched_in(log: bytes) -> Fetched | None:
    """Read the last line of progress; None where there is none that can be believed."""
    for line in reversed(log.splitlines()):
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict) and told.get("message") in _TOLD_BY:
            return _fetched(told)
    return None


def _fetched(told: Mapping[str, Any]) -> Fetched | None:
    done, total = told.get("bytes"), told.get("of")
    if not _is_size(done) or not (total is None or (_is_size(total) and done <= total)):
        return None
    return Fetched(done, total)


def _is_size(value: Any) -> TypeGuard[int]:
    # By its type: True is an int as well.
    return type(value) is int and 0 <= value <= _MOST_BYTES
