"""A part of the stack, declared: what it needs first, how it starts, when it is ready, how it stops."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotage_dev.process import Command
    from pilotage_dev.stack import Stack


class Tier(enum.IntEnum):
    """How much of the stack: each holds the one before."""

    CONTROL_PLANE = 1
    NODE = 2
    ALL = 3


Address = tuple[str, int]


def _nothing(_: Stack) -> None:
    """Do nothing: the part has nothing to prepare, or nothing to undo."""


def _no_ports(_: Stack) -> tuple[Address, ...]:
    return ()


@dataclass(frozen=True)
class Part:
    """One part. Without a command it is objects in the cluster or settings of the machine only."""

    name: str
    tier: Tier
    ready: Callable[[Stack], bool]
    after: tuple[str, ...] = ()
    prepare: Callable[[Stack], None] = _nothing
    command: Callable[[Stack], Command] | None = None
    ports: Callable[[Stack], tuple[Address, ...]] = _no_ports
    stop: Callable[[Stack], None] = _nothing  # before its process is asked to end
    within: float = 60  # seconds in which it has to be ready
    grace: float = 5  # seconds it may take to end


class OrderError(ValueError):
    """The parts need each other in a circle, or one that is not there."""


def in_order(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the parts so that each comes after those it needs."""
    known = {part.name for part in parts}
    for part in parts:
        if unknown := set(part.after) - known:
            raise OrderError(f"{part.name} comes after {', '.join(sorted(unknown))}, which is no part here")
    ordered: list[Part] = []
    waiting = list(parts)
    while waiting:
        placed = {part.name for part in ordered}
        free = [part for part in waiting if placed.issuperset(part.after)]
        if not free:
            raise OrderError(f"these parts wait for each other: {', '.join(part.name for part in waiting)}")
        ordered += free
        waiting = [part for part in waiting if part not in free]
    return tuple(ordered)
