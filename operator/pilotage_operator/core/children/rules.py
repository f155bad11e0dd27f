"""The SLO rules of a ModelDeployment: static, and without a notion of who is stable or canary.

Every revision is compared with the others of its ModelDeployment by a one-sided two-proportion z-test. An
alert with the label `pilotage_action: rollback` moves traffic only if its revision is the one that the
operator is rolling out. A rule fires on significance, never on a count alone: five bad requests are the
least that can tell a fault from bad luck.

Burn-rate factors: Google SRE Workbook, chapter 5 (14.4 spends 2 % of a 30-day budget in an hour).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotage_operator.api.slo import SLOSpec
from pilotage_operator.core import names
from pilotage_operator.core.objectives import (
    FAST_BURN,
    LEAST_BAD_REQUESTS,
    LIVENESS,
    SIGNIFICANT_Z,
    Objective,
    objectives,
    over,
)

SLOW_BURN = 6.0


def prometheus_rule(
    owner: str, namespace: str, *, slo: SLOSpec, interval_seconds: int, labels: Mapping[str, str]
) -> dict[str, Any]:
    """`interval_seconds` is the scrape interval: rules look as often as there is something new to see."""
    selector = f'namespace="{namespace}", modeldeployment="{owner}"'
    held_to = objectives(slo)
    # A window needs several scrapes; with rare ones the two windows are one.
    windows = sorted({max(60, 4 * interval_seconds), max(300, 4 * interval_seconds)})
    comparison = [
        rule
        for objective in held_to
        for window in windows
        for rule in _comparison(objective, selector, f"{window}s")
    ]
    comparison.append(_unscraped(selector, interval_seconds))
    budgets = [
        rule for objective in held_to if objective.slo != "requests" for rule in _burn(objective, selector)
    ]
    groups: list[dict[str, Any]] = [
        {
            "name": names.rule_group(namespace, owner),
            "interval": f"{interval_seconds}s",
            "rules": comparison,
        }
    ]
    if budgets:
        groups.append(
            {"name": f"{names.rule_group(namespace, owner)}-budget", "interval": "60s", "rules": budgets}
        )
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": owner, "labels": {**labels, **names.labels(owner)}},
        "spec": {"groups": groups},
    }


def _comparison(objective: Objective, selector: str, window: str) -> list[dict[str, Any]]:
    labels, growth = {"slo": objective.slo, "window": window}, over("increase", window)
    mine = f'{{{selector}, slo="{objective.slo}", window="{window}"}}'
    requests, bad = f"pilotage:requests:increase{mine}", f"pilotage:bad_requests:increase{mine}"
    other_requests, other_bad = (
        f"pilotage:other_requests:increase{mine}",
        f"pilotage:other_bad_requests:increase{mine}",
    )
    pooled = f"(({bad} + {other_bad}) / ({requests} + {other_requests}))"
    z = (
        f"({bad} / {requests} - {other_bad} / {other_requests})"
        f" / sqrt({pooled} * (1 - {pooled}) * (1 / {requests} + 1 / {other_requests}))"
    )
    significant = f"pilotage:bad_requests:z{mine} > {SIGNIFICANT_Z:g}"
    if objective.slo != "requests":
        significant += f" or {other_requests} < 1"
    return [
        _record("pilotage:requests:increase", objective.requests(selector, growth), labels),
        _record("pilotage:bad_requests:increase", objective.bad_requests(selector, growth), labels),
        _record("pilotage:other_requests:increase", _others(requests), labels),
        _record("pilotage:other_bad_requests:increase", _others(bad), labels),
        _record("pilotage:bad_requests:z", z, labels),
        {
            "alert": objective.alert,
            "expr": (
                f"{bad} / {requests} > {objective.threshold:g}"
                f" and {bad} >= {LEAST_BAD_REQUESTS}"
                f" and ({significant})"
            ),
            # The series carry slo and window too; said here, no two rules of the group look the same.
            "labels": {"severity": "page", "pilotage_action": "rollback", **labels},
            "annotations": {
                "summary": f"Revision {{{{ $labels.revision }}}} {objective.summary}.",
                "description": f"{{{{ $value | humanizePercentage }}}} of its requests in {window} were bad;"
                f" {objective.threshold * 100:g}% is the most before it is taken back.",
                "threshold": f"{objective.threshold:g}",
            },
        },
    ]


def _others(series: str) -> str:
    """The same figure of all the other revisions together, on each revision's own labels."""
    group = "namespace, modeldeployment, slo, window"
    return f"-({series} - on ({group}) group_left () sum by ({group}) ({series}))"


def _unscraped(selector: str, interval_seconds: int) -> dict[str, Any]:
    by = "namespace, modeldeployment, revision"
    # A window still holds the last samples of a pod that is no target any more: `up` itself does not.
    missed = f"up{{{selector}}} == 0 and max_over_time(up{{{selector}}}[{2 * interval_seconds + 1}s]) == 0"
    served_before = f"max_over_time(up{{{selector}}}[10m]) == 1"
    whole = "namespace, modeldeployment"
    all_silent = (
        f"max by ({whole}) (max_over_time(up{{{selector}}}[{2 * interval_seconds + 1}s])) == 0"
        f" and count by ({whole}) (count by ({by}) (up{{{selector}}})) > 1"
    )
    return {
        "alert": "PilotageRevisionGone",
        # All of several revisions at once: then it is the network or Prometheus, and no revision's fault.
        "expr": f"count by ({by}) ({missed} and {served_before}) == count by ({by}) (up{{{selector}}})"
        f" unless on (namespace, modeldeployment) ({all_silent})",
        "labels": {"severity": "page", "pilotage_action": "rollback", "slo": LIVENESS},
        "annotations": {
            "summary": "No pod of revision {{ $labels.revision }} answered its last two scrapes.",
            "description": "{{ $value }} pods that answered before are silent now.",
            "threshold": "0",
        },
    }


def _burn(objective: Objective, selector: str) -> list[dict[str, Any]]:
    def share(window: str) -> str:
        rate = over("rate", window)
        return f"({objective.bad_requests(selector, rate)}) / ({objective.requests(selector, rate)})"

    def alert(severity: str, factor: float, long: str, short: str) -> dict[str, Any]:
        limit = objective.limit(factor)
        return {
            "alert": "PilotageErrorBudgetBurn",
            # Where few ask, a single bad answer is a large share: it wakes nobody.
            "expr": f"{share(long)} > {limit:g} and {share(short)} > {limit:g}"
            f" and ({objective.bad_requests(selector, over('increase', long))}) >= {LEAST_BAD_REQUESTS}",
            "labels": {"severity": severity, "slo": objective.slo, "window": long},
            "annotations": {
                "summary": f"Revision {{{{ $labels.revision }}}} burns its {objective.slo} budget"
                f" {factor:g} times too fast.",
                "description": f"{{{{ $value | humanizePercentage }}}} of its requests in {long} were bad.",
                "threshold": f"{limit:g}",
            },
        }

    return [alert("page", FAST_BURN, "1h", "5m"), alert("ticket", SLOW_BURN, "6h", "30m")]


def _record(name: str, expr: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"record": name, "expr": expr, "labels": labels}
