"""Phase → conditions, so that kubectl wait, Helm and Argo CD neither wait through a bake nor undo it.

Read as kstatus reads them: Reconciling means in progress, Stalled means failed, then Ready decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilotage_operator.api.status import Condition, ConditionStatus, ConditionType, Phase

Told = tuple[ConditionType, ConditionStatus, str, str]
"""type, status, reason, message"""

_TABLE: dict[Phase, tuple[ConditionStatus, ConditionStatus, ConditionStatus]] = {
    # phase: Ready, Reconciling, Stalled
    "Pending": ("False", "True", "False"),
    "Progressing": ("True", "True", "False"),
    "RollingBack": ("True", "True", "False"),
    "Holding": ("True", "False", "False"),
    "Paused": ("True", "False", "False"),
    "Baking": ("True", "False", "False"),
    "Stable": ("True", "False", "False"),
    "RolledBack": ("True", "False", "True"),
    "Failed": ("False", "False", "True"),
}
_MESSAGE_LIMIT = 2000


def phase_conditions(phase: Phase, reason: str, message: str) -> list[Told]:
    """(type, status, reason, message) of the three conditions that the phase decides."""
    ready, reconciling, stalled = _TABLE[phase]
    return [
        ("Ready", ready, reason, message),
        ("Reconciling", reconciling, reason, message),
        (
            "Stalled",
            stalled,
            "RolledBack" if phase == "RolledBack" else reason,
            message if stalled == "True" else "",
        ),
    ]


def merge(
    earlier: Sequence[Condition],
    current: Sequence[Told],
    *,
    generation: int,
    now: str,
) -> list[Condition]:
    """The conditions to write: transition times move only when a status changes; the last word on a type counts."""
    known = {condition.type: condition for condition in earlier}
    merged: list[Condition] = []
    for kind, status, reason, message in {told[0]: told for told in current}.values():
        before = known.get(kind)
        moved = before is None or before.status != status
        merged.append(
            Condition(
                type=kind,
                status=status,
                reason=reason,
                message=message[:_MESSAGE_LIMIT],
                last_transition_time=now if moved or before is None else before.last_transition_time,
                observed_generation=generation,
            )
        )
    return merged
