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
never fewer than at the rollout's start until the bake ends; a rejected content starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from pilotage_operator.api.status import (
    CanaryStatus,
    Evidence,
    ManualWeight,
    Phase,
    Rejected,
    RollbackStatus,
    RolloutStatus,
    StableStatus,
    StatusModel,
)
from pilotage_operator.core import clock
from pilotage_operator.core.facts import Facts
from pilotage_operator.core.revisions import Revision
from pilotage_operator.core.signals import Signals
from pilotage_operator.core.verdict import Outcome, firing_alert

POLL_SECONDS = 1.0
"""While a canary has traffic or is about to: how long a firing alert may go unseen."""
REST_SECONDS = 30.0
"""At rest: how long a firing alert of the stable revision may go unseen."""
_REMEMBERED_REJECTIONS = 10


class State(Enum):
    """What a row may ask for; derived from status, never stored beside it."""

    EMPTY = auto()
    FIRST = auto()
    AT_REST = auto()
    ROLLING = auto()
    BAKING = auto()
    ROLLING_BACK = auto()


@dataclass(frozen=True)
class Event:
    """What users are told, once."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Move:
    """The outcome of one look: the next status, why, and when to look again."""

    status: StatusModel
    phase: Phase
    reason: str
    message: str
    look_again: float | None = None
    event: Event | None = None
    made: Revision | None = None
    """A revision that this move needs and that is not stored yet."""


@dataclass(frozen=True)
class Row:
    """In these states, when the guard holds, do this."""

    states: frozenset[State]
    name: str
    guard: Callable[[Facts], bool]
    effect: Callable[[Facts], Move]


def state_of(status: StatusModel) -> State:
    if status.rollback and not status.rollback.completed_at:
        return State.ROLLING_BACK
    if status.canary is None:
        return State.AT_REST if status.stable else State.EMPTY
    if status.stable is None:
        return State.FIRST
    return State.BAKING if status.rollout and status.rollout.bake_started_at else State.ROLLING


def decide(facts: Facts) -> Move:
    """The first row that fits."""
    facts = _with_manual_weight(facts)
    state = state_of(facts.status)
    row = next(row for row in TABLE if state in row.states and row.guard(facts))
    return row.effect(facts)


# Effects. Each returns a Move; none reads anything but facts.


def _keep(
    facts: Facts, phase: Phase, reason: str, message: str, *, again: float | None = POLL_SECONDS
) -> Move:
    return Move(facts.status, phase, reason, message, again)


def _change(status: StatusModel, **changes: Any) -> StatusModel:
    return status.model_copy(update=changes)


def _set_weight(facts: Facts, weight: int) -> StatusModel:
    canary = facts.canary.model_copy(
        update={
            "weight": weight,
            "traffic_started_at": facts.canary.traffic_started_at or (facts.now if weight else None),
        }
    )
    rollout = facts.rollout.model_copy(update={"step_started_at": None})
    return _change(facts.status, canary=canary, rollout=rollout)


def _start_first(facts: Facts) -> Move:
    wanted = facts.wanted
    status = _change(
        facts.status, canary=CanaryStatus(revision=wanted.name, created_at=facts.now), rollout=None
    )
    message = f"Revision {wanted.name} is the first; it gets all traffic once ready."
    return Move(
        status,
        "Pending",
        "FirstRevision",
        message,
        POLL_SECONDS,
        Event("FirstRevision", message),
        made=wanted,
    )


def _promote(facts: Facts, reason: str, message: str) -> Move:
    canary = facts.canary
    stable = StableStatus(
        revision=canary.revision,
        model_digest=canary.model_digest or facts.digest,
        runtime_image=canary.runtime_image,
        ready_replicas=canary.ready_replicas,
    )
    status = _change(facts.status, stable=stable, canary=None, rollout=None)
    return Move(status, "Stable", reason, message, POLL_SECONDS, Event(reason, message))


def _first_ready(facts: Facts) -> Move:
    return _promote(facts, "Serving", f"Revision {facts.canary.revision} is ready and serves all traffic.")


def _end_bake(facts: Facts) -> Move:
    return _promote(facts, "Promoted", f"Revision {facts.canary.revision} baked and is stable now.")


def _first_waits(facts: Facts) -> Move:
    failure = facts.failure
    if failure and failure.fault == "Model":
        message = f"Revision {facts.canary.revision} failed: {failure}"
        known = facts.status.phase == "Failed"
        event = None if known else Event("RevisionFailed", message, warning=True)
        return Move(facts.status, "Failed", failure.reason, message, 10 * POLL_SECONDS, event)
    if failure:
        return _keep(facts, "Pending", failure.reason, f"Waiting: {failure}", again=5 * POLL_SECONDS)
    return _keep(facts, "Pending", "PodsStarting", f"Waiting for pods of {facts.canary.revision}.")


def _rest(facts: Facts) -> Move:
    assert facts.status.stable is not None
    message = f"Revision {facts.status.stable.revision} serves all traffic."
    return Move(facts.status, "Stable", "Serving", message, REST_SECONDS)


def _refuse(facts: Facts) -> Move:
    assert facts.rejection is not None
    assert facts.status.stable is not None
    message = (
        f"Revision {facts.rejection.revision} was rejected: {facts.rejection.reason}"
        f" Revision {facts.status.stable.revision} serves. Apply other content,"
        " or set spec.rollout.retryToken to a new value to try the same again."
    )
    return Move(facts.status, "RolledBack", "RolledBack", message, REST_SECONDS)


def _without_router(facts: Facts) -> Move:
    message = (
        "The cluster serves no Istio API, so a new revision cannot get a share of traffic: it waits, and the"
        " stable revision serves by its Service. Install Istio's CRDs to go on."
    )
    return _keep(facts, "Holding", "RouterAbsent", message, again=REST_SECONDS)


def _start(facts: Facts) -> Move:
    wanted, stable, spec = facts.wanted, facts.status.stable, facts.snapshot.deployment.spec
    assert stable is not None
    ignored = spec.rollout.canary_weight
    rollout = RolloutStatus(
        id=f"{wanted.name}-{facts.snapshot.deployment.metadata.generation}",
        steps=spec.rollout.steps,
        stable_replicas=max(1, facts.snapshot.replicas(stable.revision), spec.scaling.replicas or 1),
        manual=None if ignored is None else ManualWeight(weight=ignored, revision=stable.revision),
        resumed_at=facts.now,
    )
    canary = CanaryStatus(revision=wanted.name, created_at=facts.now)
    status = _change(facts.status, canary=canary, rollout=rollout)
    message = f"Revision {wanted.name} rolls out beside {stable.revision}."
    if ignored is not None:
        message += (
            f" spec.rollout.canaryWeight {ignored} was set before it and is ignored: set it anew to use it."
        )
    return Move(
        status,
        "Progressing",
        "RolloutStarted",
        message,
        POLL_SECONDS,
        Event("RolloutStarted", message),
        made=wanted,
    )


def _return_to_stable(facts: Facts) -> Move:
    assert facts.status.stable is not None
    stable = facts.status.stable.revision
    message = f"The spec is that of {stable} again: it takes all traffic, {facts.canary.revision} goes."
    status = _change(facts.status, canary=None, rollout=None)
    return Move(status, "Stable", "Returned", message, POLL_SECONDS, Event("Returned", message))


def _supersede(facts: Facts) -> Move:
    message = f"A newer spec supersedes {facts.canary.revision}: its traffic goes back first."
    if facts.canary.weight or facts.applied_weight:
        return Move(_set_weight(facts, 0), "Progressing", "Superseding", message, POLL_SECONDS)
    status = _change(facts.status, canary=None, rollout=None)
    return Move(status, "Progressing", "Superseded", message, POLL_SECONDS, Event("Superseded", message))


def _queue(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(update={"queued": facts.inputs_hash})
    message = f"A newer spec waits until {facts.canary.revision} has baked."
    return Move(
        _change(facts.status, rollout=rollout),
        "Baking",
        "SpecQueued",
        message,
        POLL_SECONDS,
        Event("SpecQueued", message),
    )


def _roll_back(facts: Facts, reason: str, message: str, evidence: Evidence) -> Move:
    assert facts.status.stable is not None
    rollback = RollbackStatus(
        evidence=evidence,
        decided_at=facts.now,
        from_=facts.canary.revision,
        to=facts.status.stable.revision,
    )
    stored = facts.snapshot.revision(facts.canary.revision)
    rejection = Rejected(
        revision=facts.canary.revision,
        inputs_hash=stored.inputs_hash if stored else facts.inputs_hash,
        retry_token=facts.snapshot.deployment.spec.rollout.retry_token,
        reason=message,
        at=facts.now,
    )
    status = _change(
        _set_weight(facts, 0),
        rollback=rollback,
        rejected=[*facts.status.rejected, rejection][-_REMEMBERED_REJECTIONS:],
    )
    told = f"{facts.canary.revision} is taken back to {rollback.to}: {message}"
    return Move(status, "RollingBack", reason, told, POLL_SECONDS, Event("RollingBack", told, warning=True))


def _roll_back_on_signals(facts: Facts) -> Move:
    assert facts.verdict.evidence is not None
    return _roll_back(facts, facts.verdict.reason, facts.verdict.message, facts.verdict.evidence)


def _roll_back_on_pods(facts: Facts) -> Move:
    failure = facts.failure
    assert failure is not None
    evidence = Evidence(signal="pods", observed_at=facts.now, detail=str(failure))
    return _roll_back(facts, failure.reason, str(failure), evidence)


def _revert(facts: Facts) -> Move:
    rollback = facts.status.rollback
    assert rollback is not None
    message = f"Traffic goes back to {rollback.to}."
    if facts.applied_weight > 0:
        return _keep(facts, "RollingBack", "Reverting", message)
    if rollback.traffic_reverted_at is None:
        reverted = rollback.model_copy(update={"traffic_reverted_at": facts.now})
        status = _change(facts.status, rollback=reverted)
        return Move(status, "RollingBack", "Reverted", message, POLL_SECONDS)
    return _keep(facts, "RollingBack", "Counting", f"{message} Waiting for the last scrapes.")


def _finish_rollback(facts: Facts) -> Move:
    rollback, evidence = facts.status.rollback, _final_evidence(facts)
    assert rollback is not None
    done = rollback.model_copy(update={"completed_at": facts.now, "evidence": evidence})
    status = _change(facts.status, rollback=done, canary=None, rollout=None)
    counted = ""
    if evidence.failed_requests is not None:
        counted = f" {evidence.failed_requests} of {evidence.requests} requests were bad."
    stable = "" if evidence.stable_value is None else f", {rollback.to} had {evidence.stable_value:.4g}"
    what = evidence.detail or (
        f"{evidence.alert or evidence.signal}: {evidence.value} against {evidence.threshold}{stable}."
    )
    message = f"{rollback.from_} was taken back to {rollback.to}. {what}{counted}"
    return Move(
        status, "RolledBack", "RolledBack", message, POLL_SECONDS, Event("RolledBack", message, warning=True)
    )


def _final_evidence(facts: Facts) -> Evidence:
    """The evidence of the decision, with the counts now final and the alert if it fired meanwhile."""
    assert facts.status.rollback is not None
    evidence, signals = facts.status.rollback.evidence, facts.snapshot.signals
    if not isinstance(signals, Signals):
        return evidence
    slo = evidence.signal if evidence.signal in signals.counts else "availability"
    counts = signals.totals.get(slo, {}).get(facts.canary.revision, signals.of(slo, facts.canary.revision))
    changes: dict[str, Any] = {
        "requests": max(round(counts.requests), evidence.requests or 0),
        "failed_requests": max(round(counts.bad), evidence.failed_requests or 0),
    }
    rest = signals.others(slo, facts.canary.revision)
    if evidence.stable_value is None and rest.requests:
        changes["stable_value"] = round(rest.share, 6)
    fired = firing_alert(signals, facts.canary.revision)
    if evidence.alert is None and fired and fired.slo == evidence.signal:
        changes |= {"alert": fired.name, "query": fired.query, "threshold": fired.threshold}
    return evidence.model_copy(update=changes)


def _hold_without_pods(facts: Facts) -> Move:
    """An infrastructure failure rejects nothing: weight to 0, wait, go on when it is over."""
    message = f"Waiting: {facts.failure}"
    rollout = facts.rollout.model_copy(update={"resumed_at": facts.now})
    if facts.canary.weight == 0:
        # The clock is stopped by the last stamp before the outage ends, to the coarse second of a look.
        stopped = facts.since(facts.rollout.resumed_at) > 30
        status = _change(facts.status, rollout=rollout) if stopped else facts.status
        return Move(status, "Holding", "InfrastructureFailure", message, 5 * POLL_SECONDS)
    status = _set_weight(facts, 0)
    status = _change(status, rollout=rollout.model_copy(update={"step_started_at": None}))
    event = Event("InfrastructureFailure", message, warning=True)
    return Move(status, "Holding", "InfrastructureFailure", message, POLL_SECONDS, event)


def _apply_manual_weight(facts: Facts) -> Move:
    weight = facts.manual_weight
    assert weight is not None
    if weight > facts.canary.weight and not facts.enough_pods:
        return _wait_for_pods(facts)
    message = f"spec.rollout.canaryWeight holds {facts.canary.revision} at {weight}%; remove it to go on."
    if weight != facts.canary.weight:
        event = Event("ManualWeight", message)
        return Move(_set_weight(facts, weight), "Paused", "ManualWeight", message, POLL_SECONDS, event)
    return _mark_step(facts) if _step_unmarked(facts) else _keep(facts, "Paused", "ManualWeight", message)


def _pause(facts: Facts) -> Move:
    message = f"spec.rollout.paused holds {facts.canary.revision} at {facts.canary.weight}%."
    return _keep(facts, "Paused", "Paused", message)


def _wait_for_pods(facts: Facts) -> Move:
    if facts.digest is None:
        message = f"Waiting for the first pod of {facts.canary.revision} to fetch the model."
        return _keep(facts, "Progressing", "DigestPending", message)
    message = f"{facts.available} of {facts.needed} pods of {facts.canary.revision} are ready."
    return _keep(facts, "Progressing", "PodsStarting", message)


def _route_step(facts: Facts) -> Move:
    assert facts.step is not None
    weight = facts.step.weight
    message = f"{facts.canary.revision} gets {weight}% of the traffic (step {facts.rollout.step_index + 1})."
    event = Event("WeightChanged", message)
    return Move(_set_weight(facts, weight), "Progressing", "WeightChanged", message, POLL_SECONDS, event)


def _route_all(facts: Facts) -> Move:
    message = f"{facts.canary.revision} passed all steps and gets all the traffic; {_bake(facts)}"
    event = Event("BakeStarted", message)
    status = _set_weight(facts, 100)
    assert status.rollout is not None
    rollout = status.rollout.model_copy(update={"bake_started_at": facts.now})
    return Move(_change(status, rollout=rollout), "Baking", "BakeStarted", message, POLL_SECONDS, event)


def _bake(facts: Facts) -> str:
    assert facts.status.stable is not None
    seconds = facts.snapshot.deployment.spec.rollout.bake_seconds
    return f"{facts.status.stable.revision} stays warm for {seconds} s."


def _wait_for_routes(facts: Facts) -> Move:
    message = (
        f"The routes give {facts.canary.revision} {facts.applied_weight}%, {facts.canary.weight}% is decided."
    )
    phase: Phase = "Baking" if facts.rollout.bake_started_at else "Progressing"
    return _keep(facts, phase, "Routing", message)


def _mark_step(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(update={"step_started_at": facts.now})
    message = f"{facts.canary.revision} has {facts.canary.weight}% of the traffic; evidence counts from now."
    phase: Phase = "Baking" if rollout.bake_started_at else "Progressing"
    return Move(_change(facts.status, rollout=rollout), phase, "StepStarted", message, POLL_SECONDS)


def _hold_time(facts: Facts) -> Move:
    assert facts.step is not None
    end = clock.later(facts.rollout.step_started_at or facts.now, facts.step.hold_seconds)
    message = f"Step {facts.rollout.step_index + 1} of {len(facts.rollout.steps)} lasts until {end}."
    return _keep(facts, "Progressing", "StepRunning", message)


def _hold(facts: Facts) -> Move:
    return _keep(facts, "Holding", facts.verdict.reason, facts.verdict.message)


def _pass_step(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(
        update={"step_index": facts.rollout.step_index + 1, "step_started_at": None, "resumed_at": facts.now}
    )
    message = f"Step {facts.rollout.step_index + 1} passed: {facts.verdict.message}"
    status = _change(facts.status, rollout=rollout)
    return Move(status, "Progressing", "StepPassed", message, POLL_SECONDS, Event("StepPassed", message))


def _baking(facts: Facts) -> Move:
    seconds = facts.snapshot.deployment.spec.rollout.bake_seconds
    end = clock.later(facts.rollout.bake_started_at or facts.now, seconds)
    if facts.verdict.reason in _BLIND:
        return _keep(facts, "Baking", facts.verdict.reason, f"The bake waits: {facts.verdict.message}")
    message = f"{facts.canary.revision} has all traffic and bakes until {end}."
    if facts.rollout.queued:
        return _keep(facts, "Baking", "SpecQueued", f"{message} A newer spec waits.")
    return _keep(facts, "Baking", "Baking", message)


# Guards that need a sentence.

_BLIND = frozenset({"PrometheusUnreachable", "RulesNotLoaded", "RulesNotEvaluated", "AlertPending"})
"""Reasons for which a bake does not end; few requests at night are none."""


def _with_manual_weight(facts: Facts) -> Facts:
    """Take the SRE's weight into status: it counts for the revision now rolling out, once it changes."""
    if facts.status.rollout is None or facts.status.canary is None:
        return facts
    asked, known = facts.snapshot.deployment.spec.rollout.canary_weight, facts.status.rollout.manual
    if (None if known is None else known.weight) == asked:
        return facts
    manual = None if asked is None else ManualWeight(weight=asked, revision=facts.status.canary.revision)
    rollout = facts.status.rollout
    if manual is None:
        rollout = rollout.model_copy(update={"step_index": _step_not_below(facts), "step_started_at": None})
    status = _change(facts.status, rollout=rollout.model_copy(update={"manual": manual}))
    deployment = facts.snapshot.deployment.model_copy(update={"status": status})
    return Facts(replace(facts.snapshot, deployment=deployment))


def _step_not_below(facts: Facts) -> int:
    """The first step whose weight is not below the current one."""
    steps = facts.rollout.steps
    return next((i for i, step in enumerate(steps) if step.weight >= facts.canary.weight), len(steps))


def _counted_out(facts: Facts) -> bool:
    """Weight is 0 for two scrapes: the figures are final."""
    rollback = facts.status.rollback
    assert rollback is not None
    wait = 2 * facts.snapshot.install.scrape_interval_seconds + 1
    return rollback.traffic_reverted_at is not None and facts.since(rollback.traffic_reverted_at) >= wait


def _step_unmarked(facts: Facts) -> bool:
    return facts.routed and facts.canary.weight > 0 and facts.rollout.step_started_at is None


def _failed(facts: Facts) -> bool:
    return facts.verdict.outcome is Outcome.FAIL


def _model_failed(facts: Facts) -> bool:
    return facts.failure is not None and facts.failure.fault == "Model"


def _bake_over(facts: Facts) -> bool:
    spec = facts.snapshot.deployment.spec.rollout
    over = facts.since(facts.rollout.bake_started_at) >= spec.bake_seconds
    return over and facts.routed and not spec.paused and facts.verdict.reason not in _BLIND


def _always(_: Facts) -> bool:
    return True


def _rows(*states: State) -> Callable[[str, Callable[[Facts], bool], Callable[[Facts], Move]], Row]:
    return lambda name, guard, effect: Row(frozenset(states), name, guard, effect)


_back = _rows(State.ROLLING_BACK)
_empty = _rows(State.EMPTY)
_first = _rows(State.FIRST)
_resting = _rows(State.AT_REST)
_rolling = _rows(State.ROLLING)
_baked = _rows(State.BAKING)
_with_canary = _rows(State.ROLLING, State.BAKING)

TABLE: tuple[Row, ...] = (
    _back("the last scrapes are in", _counted_out, _finish_rollback),
    _back("a rollback is under way", _always, _revert),
    _empty("nothing runs yet", _always, _start_first),
    _first("a first revision is replaced", lambda f: not f.wants_canary, _start_first),
    _first("the first revision is ready", lambda f: f.digest is not None and f.available > 0, _first_ready),
    _first("the first revision is not ready", _always, _first_waits),
    _resting("the spec is what serves", lambda f: f.wants_stable, _rest),
    _resting("the spec was rejected", lambda f: f.rejection is not None, _refuse),
    _resting("nothing can route", lambda f: not f.snapshot.features.istio, _without_router),
    _resting("the spec is new", _always, _start),
    _with_canary("the spec is that of stable", lambda f: f.wants_stable, _return_to_stable),
    _with_canary("alerts or counts condemn", _failed, _roll_back_on_signals),
    _with_canary("the model fails in its pods", _model_failed, _roll_back_on_pods),
    _rolling("the spec is newer", lambda f: not f.wants_canary, _supersede),
    _rolling(
        "the infrastructure fails", lambda f: f.failure is not None and not f.enough_pods, _hold_without_pods
    ),
    _rolling("an SRE set the weight", lambda f: f.manual_weight is not None, _apply_manual_weight),
    _rolling("the rollout is paused", lambda f: f.snapshot.deployment.spec.rollout.paused, _pause),
    _rolling("pods are missing", lambda f: not f.enough_pods, _wait_for_pods),
    _rolling("all steps are passed", lambda f: f.step is None, _route_all),
    _rolling(
        "the step has no weight yet", lambda f: f.canary.weight != (f.step and f.step.weight), _route_step
    ),
    _rolling("the routes lag", lambda f: not f.routed, _wait_for_routes),
    _rolling("the step has its weight", _step_unmarked, _mark_step),
    _rolling(
        "the step runs",
        lambda f: f.step is not None and f.since(f.rollout.step_started_at) < f.step.hold_seconds,
        _hold_time,
    ),
    _rolling("the evidence is not enough", lambda f: f.verdict.outcome is not Outcome.PASS, _hold),
    _rolling("the step passes", _always, _pass_step),
    _baked("the routes lag", lambda f: not f.routed, _wait_for_routes),
    _baked("the bake has its weight", _step_unmarked, _mark_step),
    _baked("the bake is over", _bake_over, _end_bake),
    _baked(
        "a newer spec comes",
        lambda f: not f.wants_canary and f.rollout.queued != f.inputs_hash,
        _queue,
    ),
    _baked("it bakes", _always, _baking),
)
