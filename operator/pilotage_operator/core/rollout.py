"""The rollout's state machine, as a table.

A ModelDeployment has a stable revision, or none yet; and a canary, the revision that rolls out, or none. Each
look at the world finds the first row of TABLE whose guard holds; its effect gives the next status. Nothing
else moves traffic. Rows stand in order of urgency:

1. A rollback once decided is finished: no pause, edit or resolved alert stops it.
2. A first revision has nothing to compare with and nothing to fall back on: it serves as soon as it can.
3. What the user wants now comes before what was wanted: return, supersede, queue behind a bake.
4. A bad canary is taken back before any pause or manual weight is looked at.
5. A step needs pods, then routes, then time, then evidence, in this order.

Invariants: weight rises only on a Pass, a manual weight, or a first deployment; the stable revision's pods are
never fewer than when the last step began until the bake ends; a rejected content starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from pilotage_operator.api.status import (
    ManualWeight,
    StatusModel,
)
from pilotage_operator.core import moves, rollback
from pilotage_operator.core.facts import Facts
from pilotage_operator.core.verdict import Outcome


class State(Enum):
    """What a row may ask for; derived from status, never stored beside it."""

    EMPTY = auto()
    FIRST = auto()
    AT_REST = auto()
    ROLLING = auto()
    BAKING = auto()
    ROLLING_BACK = auto()


@dataclass(frozen=True)
class Row:
    """In these states, when the guard holds, do this."""

    states: frozenset[State]
    name: str
    guard: Callable[[Facts], bool]
    effect: Callable[[Facts], moves.Move]


def state_of(status: StatusModel) -> State:
    if status.rollback and not status.rollback.completed_at:
        return State.ROLLING_BACK
    if status.canary is None:
        return State.AT_REST if status.stable else State.EMPTY
    if status.stable is None:
        return State.FIRST
    return State.BAKING if status.rollout and status.rollout.bake_started_at else State.ROLLING


def decide(facts: Facts) -> moves.Move:
    """The first row that fits."""
    facts = _with_manual_weight(facts)
    state = state_of(facts.status)
    row = next(row for row in TABLE if state in row.states and row.guard(facts))
    move = row.effect(facts)
    # A pod that falters later has the whole deadline again: it was ready once.
    enough = facts.status.canary is not None and facts.enough_pods
    return moves.deadline(move, facts, runs=False) if enough else move


# Guards that need a sentence.


def _with_manual_weight(facts: Facts) -> Facts:
    """Take the SRE's weight into status: it counts for the revision now rolling out, once it changes."""
    if facts.status.rollout is None or facts.status.canary is None:
        return facts
    asked, known = facts.snapshot.deployment.spec.rollout.canary_weight, facts.status.rollout.manual
    if (None if known is None else known.weight) == asked:
        return facts
    manual = None if asked is None else ManualWeight(weight=asked, revision=facts.status.canary.revision)
    rollout = facts.status.rollout
    obeyed = known is not None and known.revision == facts.status.canary.revision
    if manual is None and obeyed:
        rollout = rollout.model_copy(update={"step_index": _step_not_below(facts), "step_started_at": None})
    rollout = rollout.model_copy(update={"manual": manual, "stable_replicas": facts.grown})
    status = moves.change(facts.status, rollout=rollout)
    deployment = facts.snapshot.deployment.model_copy(update={"status": status})
    return Facts(replace(facts.snapshot, deployment=deployment))


def _step_not_below(facts: Facts) -> int:
    """The first step whose weight is not below the current one."""
    steps = facts.rollout.steps
    return next((i for i, step in enumerate(steps) if step.weight >= facts.canary.weight), len(steps))


def _counted_out(facts: Facts) -> bool:
    """Weight is 0 for two scrapes: the figures are final."""
    taken_back = facts.status.rollback
    assert taken_back is not None
    wait = 2 * facts.snapshot.install.scrape_interval_seconds + 1
    return taken_back.traffic_reverted_at is not None and facts.since(taken_back.traffic_reverted_at) >= wait


def _failed(facts: Facts) -> bool:
    return facts.verdict.outcome is Outcome.FAIL


def _model_failed(facts: Facts) -> bool:
    return facts.failure is not None and facts.failure.fault == "Model"


def _bake_over(facts: Facts) -> bool:
    spec = facts.snapshot.deployment.spec.rollout
    over = facts.since(facts.rollout.bake_started_at) >= spec.bake_seconds
    seen = facts.verdict.reason not in moves.BLIND
    return over and facts.routed and facts.enough_pods and seen and not spec.paused


def _always(_: Facts) -> bool:
    return True


def _rows(*states: State) -> Callable[[str, Callable[[Facts], bool], Callable[[Facts], moves.Move]], Row]:
    return lambda name, guard, effect: Row(frozenset(states), name, guard, effect)


_back = _rows(State.ROLLING_BACK)
_empty = _rows(State.EMPTY)
_first = _rows(State.FIRST)
_resting = _rows(State.AT_REST)
_rolling = _rows(State.ROLLING)
_baked = _rows(State.BAKING)
_with_canary = _rows(State.ROLLING, State.BAKING)

TABLE: tuple[Row, ...] = (
    _back("the last scrapes are in", _counted_out, rollback.finish),
    _back("a rollback is under way", _always, rollback.revert),
    _empty("nothing runs yet", _always, moves.start_first),
    _first("a first revision is replaced", lambda f: not f.wants_canary, moves.start_first),
    _first(
        "the first revision is ready", lambda f: f.digest is not None and f.available > 0, moves.first_ready
    ),
    _first("the first revision is not ready", _always, moves.first_waits),
    _resting("the spec is what serves", lambda f: f.wants_stable, moves.rest),
    _resting("the old one fails alike", lambda f: f.innocent is not None, rollback.withdraw_rejection),
    _resting("the spec was rejected", lambda f: f.rejection is not None, rollback.refuse),
    _resting("nothing can route", lambda f: not f.snapshot.features.istio, moves.without_router),
    _resting("the spec is new", _always, moves.start),
    _with_canary("the spec is that of stable", lambda f: f.wants_stable, moves.return_to_stable),
    _with_canary("alerts or counts condemn", _failed, rollback.on_signals),
    _with_canary("the model fails in its pods", _model_failed, rollback.on_pods),
    _rolling("the spec is newer", lambda f: not f.wants_canary, moves.supersede),
    _rolling(
        "the infrastructure fails",
        lambda f: f.failure is not None and not f.enough_pods,
        moves.hold_without_pods,
    ),
    _rolling("an SRE set the weight", lambda f: f.manual_weight is not None, moves.apply_manual_weight),
    _rolling("the rollout is paused", lambda f: f.snapshot.deployment.spec.rollout.paused, moves.pause),
    _rolling("pods are missing", lambda f: not f.enough_pods, moves.wait_for_pods),
    _rolling("all steps are passed", lambda f: f.step is None, moves.route_all),
    _rolling(
        "the step has no weight yet",
        lambda f: f.canary.weight != (f.step and f.step.weight),
        moves.route_step,
    ),
    _rolling("the routes lag", lambda f: not f.routed, moves.wait_for_routes),
    _rolling("the step has its weight", moves.step_unmarked, moves.mark_step),
    _rolling(
        "the step runs",
        lambda f: f.step is not None and f.since(f.rollout.step_started_at) < f.step.hold_seconds,
        moves.hold_time,
    ),
    _rolling(
        "the evidence is of an outage that all share",
        lambda f: f.verdict.reason == "SharedOutage",
        moves.count_anew,
    ),
    _rolling("the evidence is not enough", lambda f: f.verdict.outcome is not Outcome.PASS, moves.hold),
    _rolling("the step passes", _always, moves.pass_step),
    _baked("an SRE set the weight", lambda f: f.manual_weight is not None, moves.leave_bake),
    _baked("the routes lag", lambda f: not f.routed, moves.wait_for_routes),
    _baked("the bake has its weight", moves.step_unmarked, moves.mark_step),
    _baked("the bake is over", _bake_over, moves.end_bake),
    _baked(
        "a newer spec comes",
        lambda f: not f.wants_canary and f.rollout.queued != f.inputs_hash,
        moves.queue,
    ),
    _baked(
        "the newer spec was taken back",
        lambda f: f.wants_canary and f.rollout.queued is not None,
        moves.unqueue,
    ),
    _baked("it bakes", _always, moves.baking),
)
