"""Alerts and counts → Pass, Fail or Unknown, with the evidence.

Counts gate a step, significance decides a rollback. Alerts of other revisions block nothing. No answer, no
rules, no requests: Unknown, which holds; silence is never a Pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import floor

from pilotage_operator.api.status import Evidence, RollbackStatus, StatusModel
from pilotage_operator.core import clock
from pilotage_operator.core.objectives import LEAST_BAD_REQUESTS, LIVENESS, Objective
from pilotage_operator.core.signals import Alert, Counts, Outage, Signals
from pilotage_operator.core.significance import worse_than_budget, worse_than_others

_STALE_AFTER_INTERVALS = 4
_IN_DOUBT_SECONDS = 300
"""After a rollback out of the bake: how long the old revision is watched for the same fault."""


class Outcome(StrEnum):
    """What may happen next: go on, take back, or wait."""

    PASS = "Pass"  # noqa: S105 - an outcome, no password
    FAIL = "Fail"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Verdict:
    """An outcome with the reason that log, Event and condition share."""

    outcome: Outcome
    reason: str
    message: str
    evidence: Evidence | None = None


def evidence_since(status: StatusModel, now: datetime) -> str | None:
    """The moment from which requests are counted: nothing older is evidence of what is decided next."""
    rollback, rollout = status.rollback, status.rollout
    if rollback and not rollback.completed_at:
        return status.canary.traffic_started_at if status.canary else None
    if rollout:
        return rollout.step_started_at
    return rollback.traffic_reverted_at if rollback and in_doubt(rollback, now) else None


def in_doubt(rollback: RollbackStatus, now: datetime) -> bool:
    """Whether the old revision may still show that the fault was not the new one's.

    While a revision bakes there is no other to compare it with: an outage of all looks like a fault of its own.
    """
    after = clock.seconds_between(rollback.traffic_reverted_at, now) if rollback.traffic_reverted_at else 0
    return rollback.during == "Baking" and after < _IN_DOUBT_SECONDS


def burns_too(
    signals: Signals, stable: str, evidence: Evidence, held_to: Sequence[Objective]
) -> Counts | None:
    """What the old revision answered since it took over again, if that is no better than what condemned the new."""
    objective = next((o for o in held_to if o.slo == evidence.signal), None)
    if objective is None:
        return None
    now, before = (
        signals.of(objective.slo, stable),
        Counts(evidence.requests or 0, evidence.failed_requests or 0),
    )
    bad = now.share > objective.threshold and worse_than_budget(now, objective.budget)
    return now if bad and not worse_than_others(before, now) else None


def judge(
    signals: Signals | Outage | None,
    *,
    canary: str,
    held_to: Sequence[Objective],
    least_requests: int,
    interval_seconds: int,
    alone: bool,
) -> Verdict:
    """Judge a revision; `alone` while it takes all traffic, when only the objective can be compared with."""
    match signals:
        case None:
            return Verdict(Outcome.UNKNOWN, "NoTraffic", "No traffic was sent to the new revision yet.")
        case Outage():
            return Verdict(Outcome.UNKNOWN, "PrometheusUnreachable", signals.message)
        case Signals():
            pass
    doubts: list[Verdict] = []
    for alert in firing_alerts(signals, canary):
        doubt = _doubt(signals, alert, held_to, alone=alone)
        if doubt is None:
            evidence = evidence_of(signals, canary, held_to, alert=alert)
            return Verdict(Outcome.FAIL, "AlertFiring", _told(alert, evidence), evidence)
        doubts.append(doubt)
    for objective in held_to:
        if _significantly_bad(signals, canary, objective, alone=alone):
            evidence = evidence_of(signals, canary, held_to, objective=objective)
            return Verdict(Outcome.FAIL, "SignificantlyWorse", _counted(objective, evidence), evidence)
    if doubts:
        return doubts[0]
    if not signals.rules_loaded:
        return Verdict(
            Outcome.UNKNOWN,
            "RulesNotLoaded",
            "Prometheus does not have this ModelDeployment's rules: does its ruleSelector match the chart's"
            " monitoring.labels?",
        )
    if _stale(signals, interval_seconds):
        return Verdict(Outcome.UNKNOWN, "RulesNotEvaluated", "Prometheus stopped evaluating the rules.")
    pending = next((a for a in signals.alerts if a.revision == canary and a.may_act), None)
    if pending:
        return Verdict(Outcome.UNKNOWN, "AlertPending", f"{pending.name} is pending.")
    seen = floor(max((counts.requests for counts in _of_all(signals, canary, held_to)), default=0) + 0.01)
    if seen < least_requests:
        return Verdict(Outcome.UNKNOWN, "TooFewRequests", _patience(seen, least_requests, signals))
    missed = (_missed(signals, canary, objective, alone=alone) for objective in held_to)
    within = Verdict(Outcome.PASS, "ObjectivesMet", f"{seen} requests within the objectives.")
    return next(filter(None, missed), within)


def firing_alerts(signals: Signals, revision: str) -> list[Alert]:
    """The alerts to act on, worst first."""
    acting = [a for a in signals.alerts if a.revision == revision and a.may_act and a.firing]
    return sorted(acting, key=lambda alert: (alert.value, alert.name), reverse=True)


def evidence_of(
    signals: Signals,
    revision: str,
    held_to: Sequence[Objective],
    *,
    alert: Alert | None = None,
    objective: Objective | None = None,
) -> Evidence:
    """What was seen when the decision fell, in figures that can be asked of Prometheus again."""
    slo = alert.slo if alert else objective.slo if objective else held_to[0].slo
    measured = objective or next((o for o in held_to if o.slo == slo), None)
    mine, rest = signals.of(slo, revision), signals.others(slo, revision)
    return Evidence(
        signal=slo,
        alert=alert.name if alert else None,
        query=alert.query if alert else None,
        value=_rounded(alert.value if alert else mine.share),
        threshold=alert.threshold if alert else measured.budget if measured else None,
        stable_value=_rounded(rest.share) if rest.requests else None,
        requests=round(mine.requests),
        failed_requests=round(mine.bad),
        window_seconds=round(signals.window_seconds),
        observed_at=clock.stamp(signals.observed_at),
    )


def _doubt(signals: Signals, alert: Alert, held_to: Sequence[Objective], *, alone: bool) -> Verdict | None:
    """Why a firing alert is not believed, if it is not.

    Its window reaches back beyond this step: into an outage that all shared, or into the days of an earlier
    ModelDeployment that had this name and this content. An alert that counts no requests is believed.
    """
    if alert.slo == LIVENESS:
        return None
    if all(alert.slo != objective.slo for objective in held_to):
        message = f"{alert.name} fires for {alert.slo}, to which spec.slo holds nothing any more."
        return Verdict(Outcome.UNKNOWN, "AlertUnconfirmed", message)
    seen = signals.of(alert.slo, alert.revision)
    if seen.bad < LEAST_BAD_REQUESTS:
        message = f"{alert.name} fires, but only {seen.bad:.0f} bad requests are of this step's time."
        return Verdict(Outcome.UNKNOWN, "AlertUnconfirmed", message)
    if _shared(signals, alert.revision, alert.slo, alone=alone):
        message = f"{alert.name} fires, but the other revisions are as bad in the same time."
        return Verdict(Outcome.UNKNOWN, "SharedOutage", message)
    return None


def _missed(signals: Signals, revision: str, objective: Objective, *, alone: bool) -> Verdict | None:
    """An objective that is not kept, though not significantly; 4xx are the callers' fault until others accept them."""
    mine, rest = signals.of(objective.slo, revision), signals.others(objective.slo, revision)
    if objective.slo == "requests" or mine.share <= objective.budget:
        return None
    if rest.share > objective.budget and _shared(signals, revision, objective.slo, alone=alone):
        message = (
            f"{objective.slo}: {mine.share:.2%} of the requests were bad, and {rest.share:.2%} elsewhere."
        )
        return Verdict(Outcome.UNKNOWN, "SharedOutage", message)
    message = (
        f"{objective.slo}: {mine.bad:.0f} of {mine.requests:.0f} requests were bad,"
        f" more than {objective.budget * 100:g}% but not yet significant."
    )
    return Verdict(Outcome.UNKNOWN, "ObjectiveMissed", message)


def _shared(signals: Signals, revision: str, slo: str, *, alone: bool) -> bool:
    """Whether the others are as bad in the very time of this step.

    The rules compare a young canary's whole life with the last minutes of the others, in which an outage that
    hits all of them weighs less.
    """
    mine, rest = signals.of(slo, revision), signals.others(slo, revision)
    comparable = not alone and mine.bad >= LEAST_BAD_REQUESTS and rest.requests >= 1
    return comparable and not worse_than_others(mine, rest)


def _significantly_bad(signals: Signals, revision: str, objective: Objective, *, alone: bool) -> bool:
    mine, rest = signals.of(objective.slo, revision), signals.others(objective.slo, revision)
    if mine.share <= objective.threshold:
        return False
    if rest.requests >= 1 and not alone:
        return worse_than_others(mine, rest)
    # With nobody to compare with, a 4xx may be the clients' fault as well as the model's.
    return objective.slo != "requests" and worse_than_budget(mine, objective.budget)


def _stale(signals: Signals, interval_seconds: int) -> bool:
    if signals.rules_evaluated_at is None:
        return True
    return signals.observed_at - signals.rules_evaluated_at > timedelta(
        seconds=_STALE_AFTER_INTERVALS * interval_seconds
    )


def _of_all(signals: Signals, revision: str, held_to: Sequence[Objective]) -> list[Counts]:
    return [signals.of(objective.slo, revision) for objective in held_to]


def _patience(seen: int, wanted: int, signals: Signals) -> str:
    if seen == 0 or signals.window_seconds <= 0:
        return f"0 of {wanted} requests seen."
    minutes = (wanted - seen) / (seen / signals.window_seconds) / 60
    left = f"{minutes:.0f} min" if minutes >= 1.5 else f"{minutes * 60:.0f} s"
    return f"{seen} of {wanted} requests, about {left} at this rate."


def _told(alert: Alert, evidence: Evidence) -> str:
    return (
        f"{alert.name} fires: {alert.slo} {alert.value:.4g} against a threshold of {alert.threshold:.4g}"
        f"{_beside(evidence)}."
    )


def _counted(objective: Objective, evidence: Evidence) -> str:
    return (
        f"{evidence.failed_requests} of {evidence.requests} requests were bad by {objective.slo},"
        f" more than chance explains{_beside(evidence)}."
    )


def _beside(evidence: Evidence) -> str:
    return "" if evidence.stable_value is None else f" (the other revision: {evidence.stable_value:.4g})"


def _rounded(value: float) -> float:
    return round(value, 6)
