"""What a row of the rollout's table does: each effect reads facts and returns a Move, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pilotage_operator.api.status import (
    CanaryStatus,
    ManualWeight,
    Phase,
    RolloutStatus,
    StableStatus,
    StatusModel,
)
from pilotage_operator.core import clock
from pilotage_operator.core.facts import Facts
from pilotage_operator.core.revisions import Revision

POLL_SECONDS = 1.0
"""While a canary has traffic or is about to: how long a firing alert may go unseen."""
EVENT_SECONDS = 5.0
"""While only pods are waited for, whose events call for a look: how long a lost event may go unseen."""
_LONG_POLL_SECONDS = 5.0
"""The same for a step that lasts for hours: each look counts its requests from its start."""
_LONG_AFTER_SECONDS = 3600
REST_SECONDS = 30.0
"""At rest: how long a firing alert of the stable revision may go unseen."""

BLIND = frozenset(
    {"PrometheusUnreachable", "RulesNotLoaded", "RulesNotEvaluated", "AlertPending", "AlertUnconfirmed"}
)
"""Reasons for which a bake does not end; few requests at night are none."""


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


def step_unmarked(facts: Facts) -> bool:
    return facts.routed and facts.canary.weight > 0 and facts.rollout.step_started_at is None


def keep(facts: Facts, phase: Phase, reason: str, message: str, *, again: float | None = None) -> Move:
    rollout = facts.status.rollout
    started = rollout.step_started_at if rollout else None
    long = started is not None and facts.since(started) > _LONG_AFTER_SECONDS
    return Move(facts.status, phase, reason, message, again or (_LONG_POLL_SECONDS if long else POLL_SECONDS))


def deadline(move: Move, facts: Facts, *, runs: bool) -> Move:
    """Start or stop the clock of progressDeadlineSeconds; it stands still in the status, so it is written once."""
    canary = move.status.canary
    if canary is None or (canary.progressing_since is not None) == runs:
        return move
    canary = canary.model_copy(update={"progressing_since": facts.now if runs else None})
    return replace(move, status=change(move.status, canary=canary))


def change(status: StatusModel, **changes: Any) -> StatusModel:
    return status.model_copy(update=changes)


def set_weight(facts: Facts, weight: int) -> StatusModel:
    canary = facts.canary.model_copy(
        update={
            "weight": weight,
            "traffic_started_at": facts.canary.traffic_started_at or (facts.now if weight else None),
        }
    )
    rollout = facts.rollout.model_copy(update={"step_started_at": None})
    return change(facts.status, canary=canary, rollout=rollout)


def start_first(facts: Facts) -> Move:
    wanted = facts.wanted
    status = change(
        facts.status,
        canary=CanaryStatus(revision=wanted.name, created_at=facts.now, progressing_since=facts.now),
        rollout=None,
    )
    message = f"Revision {wanted.name} is the first; it gets all traffic once ready.{_unpinned(wanted)}"
    return Move(
        status,
        "Pending",
        "FirstRevision",
        message,
        POLL_SECONDS,
        Event("FirstRevision", message),
    )


def _unpinned(wanted: Revision) -> str:
    """A warning for a URI behind which the content may change."""
    if wanted.given_digest:
        return ""
    return (
        " spec.model.digest is not given: what its first pod fetches is pinned, and pods that later find other"
        " content behind the URI are refused."
    )


def _promote(facts: Facts, reason: str, message: str) -> Move:
    canary = facts.canary
    stable = StableStatus(
        revision=canary.revision,
        model_digest=canary.model_digest or facts.digest,
        runtime_image=canary.runtime_image,
        ready_replicas=canary.ready_replicas,
    )
    status = change(facts.status, stable=stable, canary=None, rollout=None)
    return Move(status, "Stable", reason, message, POLL_SECONDS, Event(reason, message))


def first_ready(facts: Facts) -> Move:
    return _promote(facts, "Serving", f"Revision {facts.canary.revision} is ready and serves all traffic.")


def end_bake(facts: Facts) -> Move:
    return _promote(facts, "Promoted", f"Revision {facts.canary.revision} baked and is stable now.")


def first_waits(facts: Facts) -> Move:
    failure = facts.failure
    if failure and failure.fault == "Model":
        message = f"Revision {facts.canary.revision} failed: {failure}"
        known = facts.status.phase == "Failed"
        event = None if known else Event("RevisionFailed", message, warning=True)
        return Move(facts.status, "Failed", failure.reason, message, 2 * EVENT_SECONDS, event)
    if failure:
        waits = keep(facts, "Pending", failure.reason, f"Waiting: {failure}", again=EVENT_SECONDS)
        return deadline(waits, facts, runs=False)
    message = f"Waiting for pods of {facts.canary.revision}.{_fetching(facts, 'The first has')}"
    waits = keep(facts, "Pending", "PodsStarting", message, again=EVENT_SECONDS)
    return deadline(waits, facts, runs=True)


def rest(facts: Facts) -> Move:
    assert facts.status.stable is not None
    message, failure = f"Revision {facts.status.stable.revision} serves all traffic.", facts.stable_failure
    if failure is None:
        return Move(facts.status, "Stable", "Serving", message, REST_SECONDS)
    message = f"{message} A pod of it does not serve: {failure}"
    known = any(condition.reason == failure.reason for condition in facts.status.conditions)
    event = None if known else Event(failure.reason, message, warning=True)
    return Move(facts.status, "Stable", failure.reason, message, REST_SECONDS, event)


def without_router(facts: Facts) -> Move:
    message = (
        "The cluster serves no Istio API, so a new revision cannot get a share of traffic: it waits, and the"
        " stable revision serves by its Service. Install Istio's CRDs to go on."
    )
    return keep(facts, "Holding", "RouterAbsent", message, again=REST_SECONDS)


def start(facts: Facts) -> Move:
    wanted, stable, spec = facts.wanted, facts.status.stable, facts.snapshot.deployment.spec
    assert stable is not None
    ignored = spec.rollout.canary_weight
    rollout = RolloutStatus(
        id=f"{wanted.name}-{facts.snapshot.deployment.metadata.generation}",
        steps=spec.rollout.steps,
        stable_replicas=max(1, facts.snapshot.replicas(stable.revision), spec.scaling.replicas or 1),
        manual=None if ignored is None else ManualWeight(weight=ignored, revision=stable.revision),
    )
    canary = CanaryStatus(revision=wanted.name, created_at=facts.now, progressing_since=facts.now)
    status = change(facts.status, canary=canary, rollout=rollout)
    message = f"Revision {wanted.name} rolls out beside {stable.revision}.{_unpinned(wanted)}"
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
    )


def return_to_stable(facts: Facts) -> Move:
    assert facts.status.stable is not None
    stable = facts.status.stable.revision
    message = f"The spec is that of {stable} again: it takes all traffic, {facts.canary.revision} goes."
    status = change(facts.status, canary=None, rollout=None)
    return Move(status, "Stable", "Returned", message, POLL_SECONDS, Event("Returned", message))


def supersede(facts: Facts) -> Move:
    message = f"A newer spec supersedes {facts.canary.revision}: its traffic goes back first."
    if facts.canary.weight or facts.applied_weight:
        return Move(set_weight(facts, 0), "Progressing", "Superseding", message, POLL_SECONDS)
    status = change(facts.status, canary=None, rollout=None)
    return Move(status, "Progressing", "Superseded", message, POLL_SECONDS, Event("Superseded", message))


def queue(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(update={"queued": facts.inputs_hash})
    message = f"A newer spec waits until {facts.canary.revision} has baked."
    return Move(
        change(facts.status, rollout=rollout),
        "Baking",
        "SpecQueued",
        message,
        POLL_SECONDS,
        Event("SpecQueued", message),
    )


def unqueue(facts: Facts) -> Move:
    status = change(facts.status, rollout=facts.rollout.model_copy(update={"queued": None}))
    message = f"The spec is that of {facts.canary.revision} again: nothing waits any more."
    return Move(status, "Baking", "SpecUnqueued", message, POLL_SECONDS)


def leave_bake(facts: Facts) -> Move:
    """Back to the steps, which obey a manual weight; the old revision is still warm."""
    rollout = facts.rollout.model_copy(update={"bake_started_at": None})
    message = f"spec.rollout.canaryWeight ends the bake of {facts.canary.revision}; it begins anew from 100%."
    status = change(facts.status, rollout=rollout)
    return Move(status, "Paused", "BakeLeft", message, POLL_SECONDS, Event("BakeLeft", message))


def hold_without_pods(facts: Facts) -> Move:
    """An infrastructure failure rejects nothing: weight to 0, wait, go on when it is over."""
    message = f"Waiting: {facts.failure}"
    known = facts.rollout.reason == "InfrastructureFailure"
    event = None if known else Event("InfrastructureFailure", message, warning=True)
    status = set_weight(facts, 0) if facts.canary.weight else facts.status
    move = Move(status, "Holding", "InfrastructureFailure", message, EVENT_SECONDS, event)
    return deadline(move, facts, runs=False)


def apply_manual_weight(facts: Facts) -> Move:
    weight = facts.manual_weight
    assert weight is not None
    if weight > facts.canary.weight and not facts.enough_pods:
        return wait_for_pods(facts)
    message = f"spec.rollout.canaryWeight holds {facts.canary.revision} at {weight}%; remove it to go on."
    if weight != facts.canary.weight:
        event = Event("ManualWeight", message)
        return Move(set_weight(facts, weight), "Paused", "ManualWeight", message, POLL_SECONDS, event)
    return mark_step(facts) if step_unmarked(facts) else keep(facts, "Paused", "ManualWeight", message)


def pause(facts: Facts) -> Move:
    if step_unmarked(facts):
        return mark_step(facts)
    message = f"spec.rollout.paused holds {facts.canary.revision} at {facts.canary.weight}%."
    return deadline(keep(facts, "Paused", "Paused", message), facts, runs=False)


def wait_for_pods(facts: Facts) -> Move:
    again = POLL_SECONDS if facts.canary.weight else EVENT_SECONDS
    if facts.digest is None:
        message = f"Waiting for the first pod of {facts.canary.revision} to fetch the model."
        message += _fetching(facts, "It has")
        waits = keep(facts, "Progressing", "DigestPending", message, again=again)
        return deadline(waits, facts, runs=True)
    message = f"{facts.available} of {facts.needed} pods of {facts.canary.revision} are ready."
    if facts.refused:
        return keep(facts, "Holding", facts.refused.reason, f"{message} {facts.refused}", again=again)
    message += _fetching(facts, "The first has")
    waits = keep(facts, "Progressing", "PodsStarting", message, again=again)
    return deadline(waits, facts, runs=True)


def _fetching(facts: Facts, who_has: str) -> str:
    """Since when the first pod has been fetching, and how far it is."""
    pod = facts.first_fetch
    if pod is None or pod.fetching_since is None:
        return ""
    far = f": {pod.fetched}" if pod.fetched else ""
    return f" {who_has} been fetching since {clock.stamp(pod.fetching_since)}{far}."


def route_step(facts: Facts) -> Move:
    assert facts.step is not None
    weight = facts.step.weight
    message = f"{facts.canary.revision} gets {weight}% of the traffic (step {facts.rollout.step_index + 1})."
    event = Event("WeightChanged", message)
    return Move(set_weight(facts, weight), "Progressing", "WeightChanged", message, POLL_SECONDS, event)


def route_all(facts: Facts) -> Move:
    message = f"{facts.canary.revision} passed all steps and gets all the traffic; {_bake(facts)}"
    event = Event("BakeStarted", message)
    status = set_weight(facts, 100)
    assert status.rollout is not None
    rollout = status.rollout.model_copy(update={"bake_started_at": facts.now})
    return Move(change(status, rollout=rollout), "Baking", "BakeStarted", message, POLL_SECONDS, event)


def _bake(facts: Facts) -> str:
    assert facts.status.stable is not None
    seconds = facts.snapshot.deployment.spec.rollout.bake_seconds
    return f"{facts.status.stable.revision} stays warm for {seconds} s."


def wait_for_routes(facts: Facts) -> Move:
    message = (
        f"The routes give {facts.canary.revision} {facts.applied_weight}%, {facts.canary.weight}% is decided."
    )
    phase: Phase = "Baking" if facts.rollout.bake_started_at else "Progressing"
    return keep(facts, phase, "Routing", message)


def mark_step(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(update={"step_started_at": facts.now})
    message = f"{facts.canary.revision} has {facts.canary.weight}% of the traffic; evidence counts from now."
    phase: Phase = "Baking" if rollout.bake_started_at else "Progressing"
    return Move(change(facts.status, rollout=rollout), phase, "StepStarted", message, POLL_SECONDS)


def hold_time(facts: Facts) -> Move:
    assert facts.step is not None
    end = clock.later(facts.rollout.step_started_at or facts.now, facts.step.hold_seconds)
    message = f"Step {facts.rollout.step_index + 1} of {len(facts.rollout.steps)} lasts until {end}."
    return keep(facts, "Progressing", "StepRunning", message)


def hold(facts: Facts) -> Move:
    return keep(facts, "Holding", facts.verdict.reason, facts.verdict.message)


def count_anew(facts: Facts) -> Move:
    """What an outage did to all would weigh on this step for ever: the step begins again."""
    rollout = facts.rollout.model_copy(update={"step_started_at": facts.now})
    message = f"A shared outage, so step {facts.rollout.step_index + 1} begins anew. {facts.verdict.message}"
    status = change(facts.status, rollout=rollout)
    return Move(status, "Holding", "SharedOutage", message, POLL_SECONDS)


def pass_step(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(
        update={
            "step_index": facts.rollout.step_index + 1,
            "step_started_at": None,
            "stable_replicas": facts.grown,
        }
    )
    message = f"Step {facts.rollout.step_index + 1} passed: {facts.verdict.message}"
    status = change(facts.status, rollout=rollout)
    return Move(status, "Progressing", "StepPassed", message, POLL_SECONDS, Event("StepPassed", message))


def baking(facts: Facts) -> Move:
    seconds = facts.snapshot.deployment.spec.rollout.bake_seconds
    end = clock.later(facts.rollout.bake_started_at or facts.now, seconds)
    if facts.verdict.reason in BLIND:
        return keep(facts, "Baking", facts.verdict.reason, f"The bake waits: {facts.verdict.message}")
    if not facts.enough_pods:
        message = (
            f"The bake waits: {facts.available} of {facts.needed} pods of {facts.canary.revision} are ready."
        )
        waits = keep(facts, "Baking", "PodsStarting", message)
        return deadline(waits, facts, runs=facts.failure is None)
    if facts.snapshot.deployment.spec.rollout.paused:
        message = f"{facts.canary.revision} has all traffic; spec.rollout.paused keeps its bake open."
        return keep(facts, "Baking", "Paused", message)
    message = f"{facts.canary.revision} has all traffic and bakes until {end}."
    if facts.rollout.queued:
        return keep(facts, "Baking", "SpecQueued", f"{message} A newer spec waits.")
    return keep(facts, "Baking", "Baking", message)
