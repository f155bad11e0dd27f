"""A scripted Prometheus: traffic in requests a second becomes a unit test that `promtool` runs on our rules."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pilotage_operator.api.slo import SLOSpec
from pilotage_operator.core.children.rules import prometheus_rule

STABLE = "fraud-1111111111"
CANARY = "fraud-2222222222"
CODES = ("200", "400", "404", "413", "429", "500", "503", "504")
"""The series that the runtime creates at 0 once a model is loaded."""
END = 11 * 60
"""Seconds that a scenario lasts."""

Rates = Mapping[str, float]
"""Code, or `fast` and `slow` → requests a second."""


@dataclass
class Scenario:
    """What was scraped, and what must follow from it."""

    interval: int
    """Seconds between scrapes, and between evaluations."""
    slo: Mapping[str, Any] = field(default_factory=dict)
    name: str = "fraud"
    namespace: str = "shop"
    _series: list[dict[str, str]] = field(default_factory=list)
    _expected: list[dict[str, Any]] = field(default_factory=list)
    _alerts: list[dict[str, Any]] = field(default_factory=list)

    # What happens.

    def serves(
        self,
        revision: str,
        *phases: tuple[int, Rates],
        name: str | None = None,
        codes: Iterable[str] = CODES,
        born_at_0: bool = True,
    ) -> None:
        """A pod answers at the rates of a phase from its second on; before the first it does not exist."""
        for code in codes:
            rates = [(second, rate.get(code, 0)) for second, rate in phases]
            self._count(
                "inference_requests_total", revision, rates, name=name, born_at_0=born_at_0, code=code
            )

    def answers_in_time(self, revision: str, *phases: tuple[int, Rates], le: str) -> None:
        """As `serves`, for the histogram: `fast` answers are within the bound `le`, `slow` ones are not."""
        fast = [(second, rate.get("fast", 0)) for second, rate in phases]
        every = [(second, rate.get("fast", 0) + rate.get("slow", 0)) for second, rate in phases]
        self._count("inference_request_duration_seconds_count", revision, every)
        for bound, rates in (("0.005", [(s, 0.0) for s, _ in phases]), (le, fast), ("+Inf", every)):
            self._count("inference_request_duration_seconds_bucket", revision, rates, le=bound)

    def scraped(self, revision: str, pod: str, *phases: tuple[int, int], until: int = END) -> None:
        """`up` of a pod from each second on: 1 where its scrape succeeded, 0 where it failed.

        Prometheus marks the series of a pod that is no target any more as stale, at `until`.
        """
        values = self._samples(phases, lambda _, up: up).split()
        if until < END:
            values = [*values[: until // self.interval], "stale"]
        self._add("up", " ".join(values), self._target(revision, pod))

    # What must follow.

    def fires(self, alert: str, revision: str, *, at: int) -> None:
        self._expect(at, f'alertname="{alert}", revision="{revision}"', [_sample(alert, revision)])

    def is_silent(self, *, at: int, alert: str = ".*") -> None:
        self._expect(at, f'alertname=~"{alert}"', [])

    def is_silent_until(self, *, second: int, alert: str = ".*") -> None:
        self._expect(second, f'alertname=~"{alert}"', [], over=f"[{second + 1}s]")

    def never_acts(self, revision: str = ".*") -> None:
        """No alert that may move traffic fires at any time."""
        self._expect(END, f'pilotage_action="rollback", revision=~"{revision}"', [], over=f"[{END}s]")

    def tells(
        self, alert: str, *, at: int, labels: Mapping[str, str], annotations: Mapping[str, str]
    ) -> None:
        """Exactly this one alert, word for word."""
        told = {"exp_labels": dict(labels), "exp_annotations": dict(annotations)}
        self._alerts.append({"eval_time": f"{at}s", "alertname": alert, "exp_alerts": [told]})

    # How it is asked.

    def rule_file(self) -> dict[str, Any]:
        """The groups as the Prometheus Operator writes them for Prometheus."""
        rendered = prometheus_rule(
            self.name,
            self.namespace,
            slo=SLOSpec.model_validate(self.slo),
            interval_seconds=self.interval,
            labels={},
        )
        return rendered["spec"]

    def check(self, promtool: Path, folder: Path) -> None:
        """Run promtool; its complaint, and where to read the scenario, is the failure's message."""
        rules, test = folder / "rules.yaml", folder / "test.yaml"
        rules.write_text(yaml.safe_dump(self.rule_file(), sort_keys=False))
        scripted = {
            "interval": f"{self.interval}s",
            "input_series": self._series,
            "promql_expr_test": self._expected,
            "alert_rule_test": self._alerts,
        }
        whole = {
            "rule_files": [rules.name],
            "evaluation_interval": f"{self.interval}s",
            "tests": [scripted],
        }
        test.write_text(yaml.safe_dump(whole, sort_keys=False, width=200))
        run(promtool, "test", "rules", str(test))

    # Series.

    def _target(self, revision: str, pod: str, name: str | None = None) -> dict[str, str]:
        """What the scrape adds from target and pod labels."""
        return {
            "namespace": self.namespace,
            "modeldeployment": name or self.name,
            "revision": revision,
            "pod": pod,
        }

    def _count(
        self,
        metric: str,
        revision: str,
        rates: Iterable[tuple[int, float]],
        name: str | None = None,
        born_at_0: bool = True,
        **labels: str,
    ) -> None:
        total = 0.0

        def counted(first: bool, rate: float) -> float:
            nonlocal total
            total += 0 if first and born_at_0 else rate * self.interval
            return total

        values = self._samples(tuple(rates), counted)
        target = self._target(revision, f"{revision}-pod", name)
        self._add(metric, values, {"model": "fraud.v1", **target, **labels})

    def _samples(self, phases: tuple[tuple[int, float], ...], value: Any) -> str:
        blanks = phases[0][0] // self.interval
        found = ["_"] * blanks
        for (start, rate), (end, _) in pairwise((*phases, (END + self.interval, 0.0))):
            found += [
                f"{value(second == phases[0][0], rate):g}" for second in range(start, end, self.interval)
            ]
        return " ".join(found)

    def _add(self, metric: str, values: str, labels: Mapping[str, str]) -> None:
        shown = ", ".join(f'{key}="{value}"' for key, value in labels.items())
        self._series.append({"series": f"{metric}{{{shown}}}", "values": values})

    def _expect(self, at: int, selector: str, samples: list[dict[str, Any]], *, over: str = "") -> None:
        series = f'ALERTS{{alertstate="firing", {selector}}}{over}'
        seen = f"last_over_time({series})" if over else series
        self._expected.append({
            "expr": f"group by (alertname, revision) ({seen})",
            "eval_time": f"{at}s",
            "exp_samples": samples,
        })  # fmt: skip


def run(promtool: Path, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"promtool {' '.join(arguments)}\n{done.stdout}{done.stderr}"


def _sample(alert: str, revision: str) -> dict[str, Any]:
    return {"labels": f'{{alertname="{alert}", revision="{revision}"}}', "value": 1}
