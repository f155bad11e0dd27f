"""What alerts and counts say together of the revision that rolls out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from pilotage_operator.api.slo import SLOSpec
from pilotage_operator.core.objectives import objectives
from pilotage_operator.core.signals import Alert, Counts, Signals
from pilotage_operator.core.verdict import Outcome, Verdict, judge

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CANARY, STABLE = "fraud-2", "fraud-1"
SLO = SLOSpec.model_validate({"latency": {"thresholdMilliseconds": 500, "objectivePercent": 99}})
FIRING = Alert("PilotageRevisionFailing", CANARY, "availability", True, True, 0.3, 0.0144, "q")
GONE = Alert("PilotageRevisionGone", CANARY, "liveness", True, True, 1, 0, "q")


def seen(
    canary: tuple[int, int],
    stable: tuple[int, int],
    *alerts: Alert,
    slo: SLOSpec = SLO,
    alone: bool = False,
    **changes: Any,
) -> Verdict:
    counts = {CANARY: Counts(*canary), STABLE: Counts(*stable)}
    signals = Signals(
        observed_at=NOW,
        rules_evaluated_at=NOW,
        alerts=alerts,
        **{"counts": {"availability": counts}, "window_seconds": 30, **changes},
    )
    return judge(
        signals,
        canary=CANARY,
        held_to=objectives(slo),
        least_requests=20,
        interval_seconds=5,
        alone=alone,
    )


def test_an_alert_with_bad_requests_in_the_steps_own_time_condemns() -> None:
    verdict = seen((100, 30), (900, 0), FIRING)
    assert (verdict.outcome, verdict.reason) == (Outcome.FAIL, "AlertFiring")
    assert verdict.evidence is not None
    assert (verdict.evidence.requests, verdict.evidence.failed_requests) == (100, 30)


@pytest.mark.parametrize("alone", [True, False])
def test_an_alert_that_speaks_of_an_earlier_time_holds(alone: bool) -> None:
    verdict = seen((100, 4), (900, 0), FIRING, alone=alone)
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "AlertUnconfirmed")


def test_an_alert_before_the_step_counts_anything_speaks_of_another_time() -> None:
    verdict = seen((0, 0), (0, 0), FIRING, window_seconds=0, counts={})
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "AlertUnconfirmed")


def test_a_doubtful_alert_keeps_no_other_evidence_from_condemning() -> None:
    """Latency is as bad everywhere; that every second request fails is this revision's own doing."""
    slow = Alert("PilotageRevisionSlow", CANARY, "latency", True, True, 0.9, 0.144, "q")
    counts = {
        "availability": {CANARY: Counts(100, 50), STABLE: Counts(900, 0)},
        "latency": {CANARY: Counts(100, 90), STABLE: Counts(900, 810)},
    }
    assert seen((0, 0), (0, 0), slow, counts=counts).reason == "SignificantlyWorse"
    verdict = seen((0, 0), (0, 0), slow, FIRING, counts=counts)
    assert verdict.reason == "AlertFiring"
    assert verdict.evidence is not None
    assert verdict.evidence.alert == "PilotageRevisionFailing"


def test_an_alert_for_an_objective_that_the_spec_has_no_more_holds() -> None:
    """Prometheus goes on with the old rules for a while."""
    slow = Alert("PilotageRevisionSlow", CANARY, "latency", True, True, 0.9, 0.144, "q")
    verdict = seen((100, 0), (900, 0), slow, slo=SLOSpec())
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "AlertUnconfirmed")


def test_silent_pods_condemn_without_any_count() -> None:
    assert seen((100, 0), (900, 0), GONE).outcome is Outcome.FAIL


def test_an_outage_that_all_share_holds_with_and_without_an_alert() -> None:
    for alerts in ([FIRING], []):
        verdict = seen((100, 30), (900, 270), *alerts)
        assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "SharedOutage")


def test_a_missed_objective_beside_others_that_meet_it_is_no_outage() -> None:
    verdict = seen((100, 1), (900, 0))
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "ObjectiveMissed")


def test_an_alert_of_another_revision_blocks_nothing() -> None:
    others = Alert("PilotageRevisionFailing", STABLE, "availability", True, True, 0.3, 0.0144, "q")
    assert seen((100, 0), (900, 30), others).outcome is Outcome.PASS


@pytest.mark.parametrize(("percent", "threshold"), [(99.9, 0.0144), (99, 0.144), (90, 0.25), (50, 0.5)])
def test_the_threshold_is_never_below_what_the_objective_allows(percent: float, threshold: float) -> None:
    slo = SLOSpec.model_validate({"availability": {"objectivePercent": percent}})
    assert objectives(slo)[0].threshold == pytest.approx(threshold)
