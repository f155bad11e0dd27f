"""What a row of the rollout's table does: each effect reads facts and returns a Move, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from pilotage_operator.core.verdict import firing_alert, in_doubt

POLL_SECONDS = 1.0
"""While a canary has traffic or is about to: how long a firing alert may go unseen."""
_LONG_POLL_SECONDS = 5.0
"""The same for a step that lasts for hours: each look counts its requests from its start."""
_LONG_AFTER_SECONDS = 3600
REST_SECONDS = 30.0
"""At rest: how long a firing alert of the stable revision may go unseen."""
_DOUBT_POLL_SECONDS = 5.0
"""After a rollback out of the bake, while the old revision is watched for the same fault."""
_REMEMBERED_REJECTIONS = 10

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
    made: Revision | None = None
    """A revision that this move needs and that is not stored yet."""


def step_unmarked(facts: Facts) -> bool:
    return facts.routed and facts.canary.weight > 0 and facts.rollout.step_started_at is None


def _keep(facts: Facts, phase: Phase, reason: str, message: str, *, again: float | None = None) -> Move:
    rollout = facts.status.rollout
    started = rollout.step_started_at if rollout else None
    long = started is not None and facts.since(started) > _LONG_AFTER_SECONDS
    return Move(facts.status, phase, reason, message, again or (_LONG_POLL_SECONDS if long else POLL_SECONDS))


def _deadline(move: Move, facts: Facts, *, runs: bool) -> Move:
    """Start or stop the clock of progressDeadlineSeconds; it stands still in the status, so it is written once."""
    canary = move.status.canary
    if canary is None or (canary.progressing_since is not None) == runs:
        return move
    canary = canary.model_copy(update={"progressing_since": facts.now if runs else None})
    return replace(move, status=change(move.status, canary=canary))


def change(status: StatusModel, **changes: Any) -> StatusModel:
    return status.model_copy(update=changes)


def _set_weight(facts: Facts, weight: int) -> StatusModel:
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
        made=wanted,
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
        return Move(facts.status, "Failed", failure.reason, message, 10 * POLL_SECONDS, event)
    if failure:
        waits = _keep(facts, "Pending", failure.reason, f"Waiting: {failure}", again=5 * POLL_SECONDS)
        return _deadline(waits, facts, runs=False)
    waits = _keep(facts, "Pending", "PodsStarting", f"Waiting for pods of {facts.canary.revision}.")
    return _deadline(waits, facts, runs=True)


def rest(facts: Facts) -> Move:
    assert facts.status.stable is not None
    message, failure = f"Revision {facts.status.stable.revision} serves all traffic.", facts.stable_failure
    if failure is None:
        return Move(facts.status, "Stable", "Serving", message, REST_SECONDS)
    message = f"{message} A pod of it does not serve: {failure}"
    known = any(condition.reason == failure.reason for condition in facts.status.conditions)
    event = None if known else Event(failure.reason, message, warning=True)
    return Move(facts.status, "Stable", failure.reason, message, REST_SECONDS, event)


def refuse(facts: Facts) -> Move:
    assert facts.rejection is not None
    assert facts.status.stable is not None
    message = (
        f"Revision {facts.rejection.revision} was rejected: {facts.rejection.reason}"
        f" Revision {facts.status.stable.revision} serves. Apply other content,"
        " or set spec.rollout.retryToken to a new value to try the same again."
    )
    rollback = facts.status.rollback
    doubted = rollback is not None and in_doubt(rollback, facts.snapshot.now)
    again = _DOUBT_POLL_SECONDS if doubted else REST_SECONDS
    return Move(facts.status, "RolledBack", "RolledBack", message, again)


def withdraw_rejection(facts: Facts) -> Move:
    """A fault that the old revision shows as well was not the new one's: it gets another try, under a new name."""
    rejection, seen = facts.rejection, facts.innocent
    assert rejection is not None
    assert seen is not None
    assert facts.status.rollback is not None
    message = (
        f"{facts.status.rollback.to} fails alike since it took over again: {seen.bad:.0f} of"
        f" {seen.requests:.0f} requests were bad. {rejection.revision} is not to blame and will be tried again."
    )
    withdrawn = [
        r.model_copy(update={"withdrawn_at": facts.now}) if r is rejection else r
        for r in facts.status.rejected
    ]
    status = change(facts.status, rejected=withdrawn)
    event = Event("RejectionWithdrawn", message, warning=True)
    return Move(status, "Stable", "RejectionWithdrawn", message, POLL_SECONDS, event)


def without_router(facts: Facts) -> Move:
    message = (
        "The cluster serves no Istio API, so a new revision cannot get a share of traffic: it waits, and the"
        " stable revision serves by its Service. Install Istio's CRDs to go on."
    )
    return _keep(facts, "Holding", "RouterAbsent", message, again=REST_SECONDS)


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
        made=wanted,
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
        return Move(_set_weight(facts, 0), "Progressing", "Superseding", message, POLL_SECONDS)
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


def _roll_back(facts: Facts, reason: str, message: str, evidence: Evidence) -> Move:
    assert facts.status.stable is not None
    rollback = RollbackStatus(
        evidence=evidence,
        decided_at=facts.now,
        from_=facts.canary.revision,
        to=facts.status.stable.revision,
        during=facts.status.phase,
    )
    stored = facts.snapshot.revision(facts.canary.revision)
    rejection = Rejected(
        revision=facts.canary.revision,
        inputs_hash=stored.inputs_hash if stored else facts.inputs_hash,
        retry_token=facts.snapshot.deployment.spec.rollout.retry_token,
        reason=message,
        at=facts.now,
    )
    status = change(
        _set_weight(facts, 0),
        rollback=rollback,
        rejected=[*facts.status.rejected, rejection][-_REMEMBERED_REJECTIONS:],
    )
    told = f"{facts.canary.revision} is taken back to {rollback.to}: {message}"
    return Move(status, "RollingBack", reason, told, POLL_SECONDS, Event("RollingBack", told, warning=True))


def roll_back_on_signals(facts: Facts) -> Move:
    assert facts.verdict.evidence is not None
    return _roll_back(facts, facts.verdict.reason, facts.verdict.message, facts.verdict.evidence)


def roll_back_on_pods(facts: Facts) -> Move:
    failure = facts.failure
    assert failure is not None
    evidence = Evidence(signal="pods", observed_at=facts.now, detail=str(failure))
    return _roll_back(facts, failure.reason, str(failure), evidence)


def revert(facts: Facts) -> Move:
    rollback = facts.status.rollback
    assert rollback is not None
    message = f"Traffic goes back to {rollback.to}."
    if facts.applied_weight > 0:
        return _keep(facts, "RollingBack", "Reverting", message)
    if rollback.traffic_reverted_at is None:
        reverted = rollback.model_copy(update={"traffic_reverted_at": facts.now})
        status = change(facts.status, rollback=reverted)
        return Move(status, "RollingBack", "Reverted", message, POLL_SECONDS)
    return _keep(facts, "RollingBack", "Counting", f"{message} Waiting for the last scrapes.")


def finish_rollback(facts: Facts) -> Move:
    rollback, evidence = facts.status.rollback, _final_evidence(facts)
    assert rollback is not None
    done = rollback.model_copy(update={"completed_at": facts.now, "evidence": evidence})
    status = change(facts.status, rollback=done, canary=None, rollout=None)
    counted = ""
    if evidence.failed_requests is not None:
        counted = f" {evidence.failed_requests} of {evidence.requests} requests were bad."
    stable = "" if evidence.stable_value is None else f", {rollback.to} had {evidence.stable_value:.4g}"
    what = evidence.detail or (
        f"{evidence.alert or evidence.signal}: {evidence.value or 0:.4g} against {evidence.threshold or 0:.4g}{stable}."
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
    counts = signals.of(slo, facts.canary.revision)
    changes: dict[str, Any] = {"window_seconds": round(signals.window_seconds)}
    if counts.requests:
        changes |= {"requests": round(counts.requests), "failed_requests": round(counts.bad)}
    rest = signals.others(slo, facts.canary.revision)
    if evidence.stable_value is None and rest.requests and evidence.signal == slo:
        changes["stable_value"] = round(rest.share, 6)
    fired = firing_alert(signals, facts.canary.revision)
    if evidence.alert is None and fired and fired.slo == evidence.signal:
        changes |= {"alert": fired.name, "query": fired.query, "threshold": fired.threshold}
    return evidence.model_copy(update=changes)


def hold_without_pods(facts: Facts) -> Move:
    """An infrastructure failure rejects nothing: weight to 0, wait, go on when it is over."""
    message = f"Waiting: {facts.failure}"
    known = facts.rollout.reason == "InfrastructureFailure"
    event = None if known else Event("InfrastructureFailure", message, warning=True)
    status = _set_weight(facts, 0) if facts.canary.weight else facts.status
    move = Move(status, "Holding", "InfrastructureFailure", message, 5 * POLL_SECONDS, event)
    return _deadline(move, facts, runs=False)


def apply_manual_weight(facts: Facts) -> Move:
    weight = facts.manual_weight
    assert weight is not None
    if weight > facts.canary.weight and not facts.enough_pods:
        return wait_for_pods(facts)
    message = f"spec.rollout.canaryWeight holds {facts.canary.revision} at {weight}%; remove it to go on."
    if weight != facts.canary.weight:
        event = Event("ManualWeight", message)
        return Move(_set_weight(facts, weight), "Paused", "ManualWeight", message, POLL_SECONDS, event)
    return mark_step(facts) if step_unmarked(facts) else _keep(facts, "Paused", "ManualWeight", message)


def pause(facts: Facts) -> Move:
    if step_unmarked(facts):
        return mark_step(facts)
    message = f"spec.rollout.paused holds {facts.canary.revision} at {facts.canary.weight}%."
    return _deadline(_keep(facts, "Paused", "Paused", message), facts, runs=False)


def wait_for_pods(facts: Facts) -> Move:
    if facts.digest is None:
        message = f"Waiting for the first pod of {facts.canary.revision} to fetch the model."
        return _deadline(_keep(facts, "Progressing", "DigestPending", message), facts, runs=True)
    message = f"{facts.available} of {facts.needed} pods of {facts.canary.revision} are ready."
    if facts.refused:
        return _keep(facts, "Holding", facts.refused.reason, f"{message} {facts.refused}")
    return _deadline(_keep(facts, "Progressing", "PodsStarting", message), facts, runs=True)


def route_step(facts: Facts) -> Move:
    assert facts.step is not None
    weight = facts.step.weight
    message = f"{facts.canary.revision} gets {weight}% of the traffic (step {facts.rollout.step_index + 1})."
    event = Event("WeightChanged", message)
    return Move(_set_weight(facts, weight), "Progressing", "WeightChanged", message, POLL_SECONDS, event)


def route_all(facts: Facts) -> Move:
    message = f"{facts.canary.revision} passed all steps and gets all the traffic; {_bake(facts)}"
    event = Event("BakeStarted", message)
    status = _set_weight(facts, 100)
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
    return _keep(facts, phase, "Routing", message)


def mark_step(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(update={"step_started_at": facts.now})
    message = f"{facts.canary.revision} has {facts.canary.weight}% of the traffic; evidence counts from now."
    phase: Phase = "Baking" if rollout.bake_started_at else "Progressing"
    return Move(change(facts.status, rollout=rollout), phase, "StepStarted", message, POLL_SECONDS)


def hold_time(facts: Facts) -> Move:
    assert facts.step is not None
    end = clock.later(facts.rollout.step_started_at or facts.now, facts.step.hold_seconds)
    message = f"Step {facts.rollout.step_index + 1} of {len(facts.rollout.steps)} lasts until {end}."
    return _keep(facts, "Progressing", "StepRunning", message)


def hold(facts: Facts) -> Move:
    return _keep(facts, "Holding", facts.verdict.reason, facts.verdict.message)


def count_anew(facts: Facts) -> Move:
    """What an outage did to all would weigh on this step for ever: the step begins again."""
    rollout = facts.rollout.model_copy(update={"step_started_at": facts.now})
    message = f"A shared outage, so step {facts.rollout.step_index + 1} begins anew. {facts.verdict.message}"
    status = change(facts.status, rollout=rollout)
    return Move(status, "Holding", "SharedOutage", message, POLL_SECONDS)


def pass_step(facts: Facts) -> Move:
    rollout = facts.rollout.model_copy(
        update={"step_index": facts.rollout.step_index + 1, "step_started_at": None}
    )
    canary = facts.canary.model_copy(update={"progressing_since": facts.now})
    message = f"Step {facts.rollout.step_index + 1} passed: {facts.verdict.message}"
    status = change(facts.status, rollout=rollout, canary=canary)
    return Move(status, "Progressing", "StepPassed", message, POLL_SECONDS, Event("StepPassed", message))


def baking(facts: Facts) -> Move:
    seconds = facts.snapshot.deployment.spec.rollout.bake_seconds
    end = clock.later(facts.rollout.bake_started_at or facts.now, seconds)
    if facts.verdict.reason in BLIND:
        return _keep(facts, "Baking", facts.verdict.reason, f"The bake waits: {facts.verdict.message}")
    if not facts.enough_pods:
        message = (
            f"The bake waits: {facts.available} of {facts.needed} pods of {facts.canary.revision} are ready."
        )
        return _keep(facts, "Baking", "PodsStarting", message)
    if facts.snapshot.deployment.spec.rollout.paused:
        message = f"{facts.canary.revision} has all traffic; spec.rollout.paused keeps its bake open."
        return _keep(facts, "Baking", "Paused", message)
    message = f"{facts.canary.revision} has all traffic and bakes until {end}."
    if facts.rollout.queued:
        return _keep(facts, "Baking", "SpecQueued", f"{message} A newer spec waits.")
    return _keep(facts, "Baking", "Baking", message)
