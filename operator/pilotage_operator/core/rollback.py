"""What taking a revision back does: decided once, finished whatever comes, its figures final, its content remembered."""

from __future__ import annotations

from typing import Any

from pilotage_operator.api.status import Evidence, Rejected, RollbackStatus
from pilotage_operator.core.facts import Facts
from pilotage_operator.core.moves import POLL_SECONDS, REST_SECONDS, Event, Move, change, keep, set_weight
from pilotage_operator.core.objectives import LIVENESS
from pilotage_operator.core.signals import Signals
from pilotage_operator.core.verdict import firing_alerts, in_doubt

_DOUBT_POLL_SECONDS = 5.0
"""After a rollback out of the bake, while the old revision is watched for the same fault."""
_REMEMBERED_REJECTIONS = 10
_PODS = "pods"
"""The signal of a rollback for what the pods say of themselves."""


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
        set_weight(facts, 0),
        rollback=rollback,
        rejected=[*facts.status.rejected, rejection][-_REMEMBERED_REJECTIONS:],
    )
    told = f"{facts.canary.revision} is taken back to {rollback.to}: {message}"
    return Move(status, "RollingBack", reason, told, POLL_SECONDS, Event("RollingBack", told, warning=True))


def on_signals(facts: Facts) -> Move:
    assert facts.verdict.evidence is not None
    return _roll_back(facts, facts.verdict.reason, facts.verdict.message, facts.verdict.evidence)


def on_pods(facts: Facts) -> Move:
    failure = facts.failure
    assert failure is not None
    evidence = Evidence(signal=_PODS, observed_at=facts.now, detail=str(failure))
    return _roll_back(facts, failure.reason, str(failure), evidence)


def revert(facts: Facts) -> Move:
    rollback = facts.status.rollback
    assert rollback is not None
    message = f"Traffic goes back to {rollback.to}."
    if facts.applied_weight > 0:
        return keep(facts, "RollingBack", "Reverting", message)
    if rollback.traffic_reverted_at is None:
        reverted = rollback.model_copy(update={"traffic_reverted_at": facts.now})
        status = change(facts.status, rollback=reverted)
        return Move(status, "RollingBack", "Reverted", message, POLL_SECONDS)
    return keep(facts, "RollingBack", "Counting", f"{message} Waiting for the last scrapes.")


def finish(facts: Facts) -> Move:
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
    # What counts no requests itself is told with those that failed.
    slo = "availability" if evidence.signal in {LIVENESS, _PODS} else evidence.signal
    counts = signals.of(slo, facts.canary.revision)
    changes: dict[str, Any] = {}
    if counts.requests:
        changes |= {"requests": round(counts.requests), "failed_requests": round(counts.bad)}
        changes |= {"window_seconds": round(signals.window_seconds)}
    rest = signals.others(slo, facts.canary.revision)
    if evidence.stable_value is None and rest.requests and evidence.signal == slo:
        changes["stable_value"] = round(rest.share, 6)
    fired = next((a for a in firing_alerts(signals, facts.canary.revision) if a.slo == evidence.signal), None)
    if evidence.alert is None and fired:
        changes |= {"alert": fired.name, "query": fired.query, "threshold": fired.threshold}
    return evidence.model_copy(update=changes)


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
