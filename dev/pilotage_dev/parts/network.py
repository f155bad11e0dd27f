"""The machine made ready for a node: the bridge, the pods' cgroup, the kernel's settings remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import bridge, cgroups, kernel, leftovers
from pilotage_dev.part import Part, Tier

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack


def _prepare(stack: Stack) -> None:
    kernel.remember(stack)
    leftovers.claim_rules(stack)
    cgroups.create()
    bridge.create(stack)


def _ready(_: Stack) -> bool:
    return bridge.is_ours()


NETWORK = Part(name="network", tier=Tier.CONTROL_PLANE, prepare=_prepare, ready=_ready)
