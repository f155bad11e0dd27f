"""Each phase's conditions, read in the order in which kstatus (Helm, Argo CD, Flux, kubectl) reads them."""

from __future__ import annotations

from typing import get_args

import pytest

from pilotage_operator.api.status import Condition, Phase
from pilotage_operator.core.conditions import Told, merge, phase_conditions

CURRENT, IN_PROGRESS, FAILED = "Current", "InProgress", "Failed"
TABLE = {
    # phase: Ready, Reconciling, Stalled, and what a tool that waits makes of it
    "Pending": ("False", "True", "False", IN_PROGRESS),
    "Progressing": ("True", "True", "False", IN_PROGRESS),
    "RollingBack": ("True", "True", "False", IN_PROGRESS),
    "Holding": ("True", "False", "False", CURRENT),
    "Paused": ("True", "False", "False", CURRENT),
    "Baking": ("True", "False", "False", CURRENT),
    "Stable": ("True", "False", "False", CURRENT),
    "RolledBack": ("True", "False", "True", FAILED),
    "Failed": ("False", "False", "True", FAILED),
}


def as_kstatus_reads(conditions: list[Condition], *, generation: int) -> str:
    """The rules of kstatus for a custom resource: an old generation first, then the conditions in order."""
    if any(condition.observed_generation != generation for condition in conditions):
        return IN_PROGRESS
    by_type = {condition.type: condition.status for condition in conditions}
    if by_type.get("Reconciling") == "True":
        return IN_PROGRESS
    if by_type.get("Stalled") == "True":
        return FAILED
    return CURRENT if by_type.get("Ready", "True") == "True" else IN_PROGRESS


def written(phase: Phase, *, earlier: list[Condition] | None = None, now: str = "t1") -> list[Condition]:
    return merge(earlier or [], phase_conditions(phase, "Why", "Because."), generation=7, now=now)


def test_the_table_knows_every_phase() -> None:
    assert set(TABLE) == set(get_args(Phase))


@pytest.mark.parametrize("phase", TABLE)
def test_the_conditions_of_a_phase_and_what_tools_make_of_them(phase: Phase) -> None:
    *statuses, read = TABLE[phase]
    conditions = written(phase)
    assert [c.type for c in conditions] == ["Ready", "Reconciling", "Stalled"]
    assert [c.status for c in conditions] == statuses
    assert as_kstatus_reads(conditions, generation=7) == read


@pytest.mark.parametrize("phase", TABLE)
def test_a_spec_that_nobody_has_looked_at_yet_is_in_progress(phase: Phase) -> None:
    assert as_kstatus_reads(written(phase), generation=8) == IN_PROGRESS


@pytest.mark.parametrize("phase", TABLE)
def test_a_phase_never_says_reconciling_and_stalled_at_once(phase: Phase) -> None:
    """kstatus takes the first that it meets: both at once would depend on their order."""
    statuses = {c.type: c.status for c in written(phase)}
    assert (statuses["Reconciling"], statuses["Stalled"]) != ("True", "True")


def test_a_rolled_back_deployment_says_so_and_still_serves() -> None:
    ready, _, stalled = written("RolledBack")
    assert (ready.status, stalled.reason, stalled.message) == ("True", "RolledBack", "Because.")


def test_a_holding_deployment_says_why() -> None:
    ready, *_ = written("Holding")
    assert (ready.reason, ready.message) == ("Why", "Because.")


def test_transition_times_move_only_with_the_status() -> None:
    progressing = written("Progressing", now="t1")
    baking = written("Baking", earlier=progressing, now="t2")
    assert [c.last_transition_time for c in baking] == ["t1", "t2", "t1"]
    assert written("Baking", earlier=baking, now="t3") == baking


def test_a_reason_alone_is_no_transition() -> None:
    first: list[Told] = [("Ready", "True", "One", "one")]
    second: list[Told] = [("Ready", "True", "Two", "two")]
    before = merge([], first, generation=1, now="t1")
    after = merge(before, second, generation=2, now="t2")
    assert (after[0].reason, after[0].last_transition_time, after[0].observed_generation) == ("Two", "t1", 2)


def test_a_long_message_is_cut() -> None:
    told: list[Told] = [("Ready", "True", "Why", "x" * 50_000)]
    assert len(merge([], told, generation=1, now="t1")[0].message) == 2000
