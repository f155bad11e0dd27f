"""Size before traffic: how many pods each revision needs for the weight it has or is about to get."""

from __future__ import annotations

from math import ceil

from pilotage_operator.api.scaling import ScalingSpec
from pilotage_operator.api.status import StatusModel


def wanted_weight(status: StatusModel) -> int:
    """The weight that the canary is to have next; its pods must be ready before the routes move."""
    canary, rollout = status.canary, status.rollout
    if canary is None:
        return 0
    if rollout is None or status.stable is None:
        return 100
    if rollout.manual and rollout.manual.revision == canary.revision:
        return max(canary.weight, rollout.manual.weight)
    if rollout.step_index >= len(rollout.steps):
        return 100
    return max(canary.weight, rollout.steps[rollout.step_index].weight)


def canary_size(status: StatusModel, scaling: ScalingSpec) -> int:
    """Pods that the canary needs for its wanted weight; at least one."""
    if status.rollout is None or status.stable is None:
        return scaling.minimum
    return max(1, ceil(stable_size(status, scaling) * wanted_weight(status) / 100))


def stable_size(status: StatusModel, scaling: ScalingSpec) -> int:
    """Pods that the stable revision keeps until the bake has ended: as many as when a step began, or as asked for."""
    if status.rollout is None:
        return scaling.minimum
    return max(scaling.minimum, status.rollout.stable_replicas)
