"""Renders metrics.md from the metrics and rules themselves; `--write` renews the page, `--check` compares it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from pilotage_operator.adapters import telemetry as operator
from pilotage_operator.api import rendered
from pilotage_operator.api.slo import LatencySLO, SLOSpec
from pilotage_operator.core.children.rules import prometheus_rule
from pilotage_operator.core.objectives import objectives
from pilotage_runtime import telemetry as runtime

PAGE = Path(__file__).with_suffix(".md")
_SLO = SLOSpec(latency=LatencySLO(threshold_milliseconds=500))
_SELECTOR = re.compile(r'namespace="N", modeldeployment="M"(, slo="\w+", window="\w+")?')

RULES = {
    "pilotage:requests:increase": "requests that a revision answered in the window",
    "pilotage:bad_requests:increase": "how many of them were bad by the label `slo`: `availability` 5xx and 429, `latency` later"
    " than the threshold, `requests` the other 4xx",
    "pilotage:other_requests:increase": "requests that all other revisions of the same ModelDeployment answered",
    "pilotage:other_bad_requests:increase": "how many of those were bad",
    "pilotage:bad_requests:z": "by how many standard deviations the revision's bad share is above the others' (pooled"
    " two-proportion z-test)",
}
ALERTS = {
    "PilotageRevisionFailing": "too large a share of 5xx and 429, at least 5 of them, and significantly more than the other"
    " revisions; without requests to others, the share alone",
    "PilotageRevisionSlow": "the same for answers later than `spec.slo.latency.thresholdMilliseconds`; only with that"
    " objective",
    "PilotageRevisionRefusing": "the same for the other 4xx, but never without other revisions to compare with",
    "PilotageRevisionGone": "every pod of the revision failed its last two scrapes, and each answered one in the last"
    " 10 minutes",
    "PilotageErrorBudgetBurn": "a revision spends an error budget too fast in a long and in a short window; `page`:"
    " 14.4 times over 1h and 5m, `ticket`: 6 times over 6h and 30m",
}

_PAGE = """\
<!-- Rendered by `make docs` from the metrics and rules in the code. -->
# Reference: metrics, rules and alerts

## Of a model's pods

Served at `:9090/metrics` of each pod. The scrape adds `namespace`, `pod` and `container`, and from the pod's labels
`modeldeployment` and `revision`. Only requests to `…/infer` are counted, not probes and metadata.

| metric | type | labels | meaning |
|---|---|---|---|
{runtime}

Codes {codes} are there at 0 once the model is loaded, and so are its classes and its
features with ranges. A row's class is the likeliest by the output of probabilities, or without such an output the label
that the model answers. The summary is a sum and a count.
Histogram bounds in seconds: {bounds}.

## Of the operator

Served at `:9090/metrics` of its pod, beside the Python client's own `process_…` and `python_…`.

| metric | type | labels | meaning |
|---|---|---|---|
{operator}

## Recording rules

Each ModelDeployment has a PrometheusRule of its name. Its first group is evaluated as often as models are scraped. Each
rule is there for each `slo` and for the `window`s {windows} (with rare scrapes: at least four scrapes). `{{…}}`
stands for the ModelDeployment, the SLO and the window.

| rule | meaning | PromQL, for availability |
|---|---|---|
{rules}

## Alerts

All have the label `revision`, and no `for`: they fire at the first evaluation at which they hold. "Takes back": has
the label `pilotage_action: rollback`, which moves traffic if the revision is the one that rolls out.

| alert | severity | takes back | fires when |
|---|---|---|---|
{alerts}

The share that is too large is `max(budget, min(14.4 * budget, 0.25))`: {thresholds}. In PromQL, for 60s:

| alert | PromQL, with {objectives} |
|---|---|
{expressions}

`kubectl get prometheusrule NAME -n NAMESPACE -o yaml` shows those of one ModelDeployment in full.
"""


def text() -> str:
    """Render the page."""
    groups = prometheus_rule("M", "N", slo=_SLO, interval_seconds=15, labels={})["spec"]["groups"]
    every = [rule for group in groups for rule in group["rules"]]
    recorded = _first(every, "record", RULES)
    alerts = _first(every, "alert", ALERTS)
    windows = sorted({rule["labels"]["window"] for rule in every if "record" in rule})
    return _PAGE.format(
        runtime="\n".join(_runtime()),
        operator="\n".join(_operator()),
        codes=", ".join(map(str, runtime.CODES_FROM_START)),
        bounds=", ".join(f"{bound:g}" for bound in runtime.LATENCY_BOUNDS),
        windows=" and ".join(f"`{window}`" for window in windows),
        rules="\n".join(
            _row(f"`{n}`", RULES[n], f"`{_short(rule['expr'])}`") for n, rule in recorded.items()
        ),
        alerts="\n".join(_alert(name, every) for name in alerts),
        thresholds="; ".join(f"{o.slo} {o.threshold:g} (budget {o.budget:g})" for o in objectives(_SLO)),
        objectives=f"availability {_SLO.availability.objective_percent:g} % and 99 % within 500 ms",
        expressions="\n".join(_row(f"`{n}`", f"`{_short(rule['expr'])}`") for n, rule in alerts.items()),
    )


def _runtime() -> Iterator[str]:
    sheet = runtime.Sheet()
    slot = sheet.slot(1)
    slot.start(load_seconds=0)
    slot.classes.place("C")
    slot.features.place("F")
    for family in runtime.ModelCollector(lambda: {1: runtime.ModelLabels("M", "1")}, [sheet]).collect():
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels)
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield _row(f"`{name}`", family.type, _code(labels), family.documentation)


def _operator() -> Iterator[str]:
    for metric in vars(operator).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            labels: tuple[str, ...] = metric._labelnames  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield _row(f"`{name}`", family.type, _code(dict.fromkeys(labels)), family.documentation)


def _first(rules: list[dict[str, Any]], kind: str, told: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The first rule of each name; each must have its meaning told here."""
    found: dict[str, dict[str, Any]] = {}
    for rule in rules:
        if kind in rule:
            found.setdefault(rule[kind], rule)
    if found.keys() != told.keys():
        raise SystemExit(f"{__file__} must tell the meaning of exactly {', '.join(found)}")
    return found


def _alert(name: str, rules: list[dict[str, Any]]) -> str:
    labels = [rule["labels"] for rule in rules if rule.get("alert") == name]
    severities = ", ".join(dict.fromkeys(each["severity"] for each in labels))
    acts = "yes" if all(each.get("pilotage_action") == "rollback" for each in labels) else "no"
    return _row(f"[{name}](../runbooks/{name}.md)", severities, acts, ALERTS[name])


def _short(expression: str) -> str:
    return _SELECTOR.sub("…", expression)


def _code(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    raise SystemExit(
        rendered.command(
            None, run="python docs/reference/metrics.py", what="the metrics", files={PAGE: text()}
        )
    )
