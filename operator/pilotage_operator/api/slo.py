"""`spec.slo`: when a version is good."""

from typing import Annotated, Literal, get_args

from annotated_types import Ge, Lt
from pydantic import BeforeValidator, Field

from pilotage_operator.api.schema import ApiModel, whole

LatencyBound = Literal[
    5, 10, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 1500, 2000, 2500, 5000, 10000, 30000
]
LATENCY_BOUNDS_MILLISECONDS: tuple[int, ...] = get_args(LatencyBound)
"""The bounds of the runtime's latency histogram: only of these is it known how many requests were faster."""

ObjectivePercent = Annotated[float, Ge(50), Lt(100)]


class AvailabilitySLO(ApiModel):
    """Requests are answered without a server's error."""

    objective_percent: ObjectivePercent = 99.9
    """Share of requests, in percent, that must not be answered with 5xx, or with 429 for overload. Requests that
    callers got wrong (other 4xx) do not count against it."""


class LatencySLO(ApiModel):
    """Requests are answered fast enough."""

    threshold_milliseconds: Annotated[LatencyBound, BeforeValidator(whole)]
    """A request is slow if its answer takes longer. One of the bounds of the runtime's histogram, since what
    lies between two of them is not measured."""
    objective_percent: ObjectivePercent = 99
    """Share of requests, in percent, that must not be slow."""


class SLOSpec(ApiModel):
    """When a revision is good. Prometheus watches each revision; one that is rolling out and breaks an
    objective is taken back. Never makes a new revision.
    """

    availability: AvailabilitySLO = Field(default_factory=AvailabilitySLO)
    """Requests are answered without a server's error."""
    latency: LatencySLO | None = None
    """Requests are answered fast enough. Absent: latency is recorded, but never takes a revision back."""
