"""What a revision is held to, as ratios of bad requests to requests, and how Prometheus is asked for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pilotage_operator.api.slo import SLOSpec

LEAST_BAD_REQUESTS = 5
"""The least that can tell a fault from bad luck."""
LIVENESS = "liveness"
"""What an alert is about that counts silent pods instead of requests."""
SIGNIFICANT_Z = 3.0
FAST_BURN = 14.4
_HIGHEST_THRESHOLD = 0.25
_BY = "namespace, modeldeployment, model, revision"

Counting = Callable[[str], str]
"""A counter's selector → PromQL for how far each of its series grew."""


def over(function: str, window: str) -> Counting:
    """Count with `increase` or `rate`: cheap, but extrapolated to the window's ends."""
    return lambda counter: f"{function}({counter}[{window}])"


def since(seconds: int) -> Counting:
    """Count what was scraped in the last `seconds`, exactly: no request more than there were.

    A series that is younger counts from 0, one that has ended keeps its last value. Where a counter was reset
    (a container restarted) its `increase` has to do.
    """
    return lambda counter: (
        f"(last_over_time({counter}[{seconds}s])"
        f" - ({counter} offset {seconds}s or 0 * last_over_time({counter}[{seconds}s]))) >= 0"
        f" and resets({counter}[{seconds}s]) == 0"
        f" or increase({counter}[{seconds}s])"
    )


@dataclass(frozen=True)
class Objective:
    """One SLO as a ratio of bad requests to requests."""

    slo: str
    alert: str
    budget: float
    """The share of bad requests that the objective allows."""
    summary: str
    latency_seconds: float | None = None

    def limit(self, burn: float) -> float:
        """The share of bad requests that spends the budget `burn` times too fast, or that nobody would bear."""
        return max(self.budget, min(burn * self.budget, _HIGHEST_THRESHOLD))

    @property
    def threshold(self) -> float:
        """The share of bad requests above which a revision may be taken back."""
        return self.limit(FAST_BURN)

    def requests(self, selector: str, counting: Counting) -> str:
        metric = (
            "inference_request_duration_seconds_count" if self.latency_seconds else "inference_requests_total"
        )
        return _sum(counting(f"{metric}{{{selector}}}"))

    def bad_requests(self, selector: str, counting: Counting) -> str:
        requests = self.requests(selector, counting)
        if self.latency_seconds is not None:
            bound = _le(self.latency_seconds)
            in_time = f'inference_request_duration_seconds_bucket{{{selector}, le=~"{bound}"}}'
            return f"{requests} - {_sum(counting(in_time))}"
        # 429 is shed load: too few pods, or a slow model, and no fault of the caller.
        codes = 'code=~"4..", code!="429"' if self.slo == "requests" else 'code=~"5..|429"'
        bad = f"inference_requests_total{{{selector}, {codes}}}"
        return f"{_sum(counting(bad))} or 0 * {requests}"


def objectives(slo: SLOSpec) -> list[Objective]:
    """What a revision is held to: its SLOs, and not refusing what the others accept."""
    found: list[Objective] = []
    if slo.availability:
        found.append(
            Objective(
                "availability",
                "PilotageRevisionFailing",
                _budget(slo.availability.objective_percent),
                "answers 5xx or 429 to more requests than its availability objective and the other revisions do",
            )
        )
    if slo.latency:
        found.append(
            Objective(
                "latency",
                "PilotageRevisionSlow",
                _budget(slo.latency.objective_percent),
                f"answers more requests later than {slo.latency.threshold_milliseconds} ms than its objective"
                " and the other revisions do",
                slo.latency.threshold_milliseconds / 1000,
            )
        )
    found.append(
        Objective(
            "requests",
            "PilotageRevisionRefusing",
            0.01,
            "answers 4xx to requests that the other revisions accept (a renamed or retyped input?)",
        )
    )
    return found


def _sum(counted: str) -> str:
    return f"sum by ({_BY}) ({counted})"


def _budget(objective_percent: float) -> float:
    return round(1 - objective_percent / 100, 9)


def _le(seconds: float) -> str:
    """The bucket's label as Prometheus 2 and 3 write it: `1` and `1.0`. Dots are literal."""
    text = f"{seconds:g}"
    return text.replace(".", r"\\.") if "." in text else rf"{text}|{text}\\.0"
