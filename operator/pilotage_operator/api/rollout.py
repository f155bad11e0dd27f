"""`spec.rollout`: how a new revision takes over."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import Field

from pilotage_operator.api.schema import ApiModel, Integer, Matches

RetryToken = Annotated[
    str,
    MaxLen(63),
    Matches(
        "[A-Za-z0-9]([-A-Za-z0-9_.:]*[A-Za-z0-9])?",
        "must be letters, digits, '-', '_', '.' and ':', beginning and ending with a letter or digit",
    ),
]


class Step(ApiModel):
    """One stage of a rollout."""

    weight: Annotated[Integer, Ge(1), Le(100)]
    """Share of traffic that the new revision gets, in percent; below 100, which follows the last step by
    itself."""
    hold_seconds: Annotated[Integer, Ge(0), Le(86_400)] = 60
    """How long the step lasts at least. It passes once this time is over and the evidence suffices: enough
    requests, within the SLO, no alert."""


def _default_steps() -> list[Step]:
    return [Step(weight=10), Step(weight=50)]


class RolloutSpec(ApiModel):
    """How a new revision takes over from the one that serves. Never makes a new revision itself."""

    strategy: Literal["Canary"] = "Canary"
    """Canary: the new revision takes traffic in steps and is taken back by itself when it breaks the SLO."""
    steps: Annotated[list[Step], MinLen(1), MaxLen(20)] = Field(default_factory=_default_steps)
    """The stages, with rising weights. After the last the new revision takes all traffic and bakes. A running
    rollout keeps the steps with which it began."""
    canary_weight: Annotated[Integer, Ge(0), Le(100)] | None = None
    """A weight set by hand, in percent, for the revision that is rolling out now; steps wait. It does not
    outlive that revision. Absent: the steps decide."""
    paused: bool = False
    """Keep the weights as they are, and a bake open, until this is false again. A failing revision is taken back
    all the same, and one whose pods cannot run goes to weight 0."""
    min_requests: Annotated[Integer, Ge(0), Le(1_000_000)] = 20
    """Requests that the new revision must have answered in a step before the step may pass."""
    on_no_data: Literal["Hold"] = "Hold"
    """What to do while there is no evidence, such as when Prometheus cannot be reached. Hold: wait."""
    bake_seconds: Annotated[Integer, Ge(0), Le(604_800)] = 600
    """How long the old revision stays warm, at full size, after the new one has all traffic. Until then a
    failing revision is still taken back at once."""
    progress_deadline_seconds: Annotated[Integer, Ge(10), Le(86_400)] = 600
    """How long a new revision's pods may take until enough are ready; longer, and the revision has failed.
    Only the model's own time counts: not waiting for capacity, an image or a volume, or while paused."""
    min_ready_seconds: Annotated[Integer, Ge(0), Le(3600)] = 10
    """How long a pod must have been ready to count as available."""
    revision_history_limit: Annotated[Integer, Ge(1), Le(100)] = 5
    """How many revisions are remembered, beside those in use."""
    retry_token: RetryToken | None = None
    """A new value gives a rejected revision another try, with the same content. Absent: a rejected revision
    stays rejected until its content changes."""
