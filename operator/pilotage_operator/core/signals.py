"""What Prometheus said, as decisions see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Alert:
    """An active alert of one revision."""

    name: str
    revision: str
    slo: str
    firing: bool
    """False while pending."""
    may_act: bool
    """It carries `pilotage_action: rollback`."""
    value: float
    threshold: float
    query: str


@dataclass(frozen=True)
class Counts:
    """Requests of one revision in a window, and how many of them were bad by one SLO's measure."""

    requests: float
    bad: float

    @property
    def share(self) -> float:
        return self.bad / self.requests if self.requests else 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.requests + other.requests, self.bad + other.bad)


@dataclass(frozen=True)
class Signals:
    """One look at Prometheus."""

    observed_at: datetime
    rules_loaded: bool = True
    rules_evaluated_at: datetime | None = None
    alerts: tuple[Alert, ...] = ()
    window_seconds: float = 0
    counts: Mapping[str, Mapping[str, Counts]] = field(default_factory=dict[str, Mapping[str, Counts]])
    """SLO → revision → what was counted in the last `window_seconds`."""

    def of(self, slo: str, revision: str) -> Counts:
        return self.counts.get(slo, {}).get(revision, Counts(0, 0))

    def others(self, slo: str, revision: str) -> Counts:
        """All other revisions together."""
        rest = (counts for name, counts in self.counts.get(slo, {}).items() if name != revision)
        return sum(rest, Counts(0, 0))


@dataclass(frozen=True)
class Outage:
    """Prometheus could not be asked, or could not answer."""

    observed_at: datetime
    message: str
