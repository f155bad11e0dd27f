"""`status`: what the operator saw, did and remembers. All of its memory is here."""

from typing import Annotated, Literal

from annotated_types import MaxLen
from pydantic import Field

from pilotage_operator.api.rollout import Step
from pilotage_operator.api.schema import ApiModel, Integer, ListMap, Timestamp

Phase = Literal[
    "Pending",
    "Progressing",
    "Holding",
    "Paused",
    "Baking",
    "Stable",
    "RollingBack",
    "RolledBack",
    "Failed",
]
ConditionStatus = Literal["True", "False", "Unknown"]
ConditionType = Literal["Ready", "Reconciling", "Stalled", "SLOHealthy", "TrafficRouted"]


class Condition(ApiModel):
    """One aspect of the state, as Kubernetes tools read it."""

    type: ConditionType
    """Which aspect."""
    status: ConditionStatus
    """Whether it holds."""
    reason: str
    """Why, in one word."""
    message: str
    """Why, in a sentence."""
    last_transition_time: Timestamp
    """When the status last changed."""
    observed_generation: Integer | None = None
    """The generation of the spec that this speaks of."""


class Address(ApiModel):
    """Where callers inside the cluster reach the model."""

    url: str
    """Base URL; the model is at URL/v2/models/NAME."""


class StableStatus(ApiModel):
    """The revision that serves."""

    revision: str
    """Name of the revision."""
    model_digest: str | None = None
    """sha256 of the model's content."""
    runtime_image: str | None = None
    """Image that runs the model."""
    ready_replicas: Integer | None = None
    """Pods that are ready."""


class CanaryStatus(ApiModel):
    """The revision that is rolling out, until the end of its bake."""

    revision: str
    """Name of the revision."""
    model_digest: str | None = None
    """sha256 of the model's content."""
    runtime_image: str | None = None
    """Image that runs the model."""
    ready_replicas: Integer | None = None
    """Pods that are ready."""
    weight: Integer = 0
    """Share of traffic that it is meant to have, in percent; 100 while it bakes."""
    applied_weight: Integer | None = None
    """Share of traffic that the router was seen to give it, in percent."""
    traffic_started_at: Timestamp | None = None
    """When it first got traffic; what a rollback reports is counted from here."""
    created_at: Timestamp | None = None
    """When the revision was made."""
    progressing_since: Timestamp | None = None
    """Since when progressDeadlineSeconds counts; absent while it does not: enough pods are ready, paused, or not the
    model's fault."""


class ManualWeight(ApiModel):
    """A weight set by hand, and for which revision."""

    weight: Integer
    """The weight, in percent."""
    revision: str
    """The revision that was rolling out when it was set."""


class RolloutStatus(ApiModel):
    """The rollout that is running."""

    id: str
    """Tells this rollout from others, in logs and Events."""
    steps: list[Step]
    """The steps, as they were when the rollout began."""
    step_index: Integer = 0
    """The step that is running, from 0; the number of steps once all have passed."""
    step_started_at: Timestamp | None = None
    """When the routes had the step's weight; evidence is counted from here."""
    stable_replicas: Integer = 1
    """Most pods of the stable revision when the rollout or a step of it began; it keeps at least these until the
    bake ends."""
    manual: ManualWeight | None = None
    """The weight set by hand; it counts only for the revision beside it."""
    queued: str | None = None
    """Hash of a newer content that waits for the end of this bake."""
    reason: str | None = None
    """Why the rollout stands where it stands."""
    next_at: Timestamp | None = None
    """When there will be something to decide, at the earliest: the end of the step or of the bake."""
    bake_started_at: Timestamp | None = None
    """Since when the new revision has all traffic."""


class Evidence(ApiModel):
    """What was seen when a revision was taken back."""

    signal: str
    """What was measured: availability, latency, requests (4xx but 429), liveness or pods."""
    alert: str | None = None
    """Name of the alert that fired."""
    query: str | None = None
    """Its expression, to be asked again."""
    value: float | None = None
    """The measured share of bad requests."""
    threshold: float | None = None
    """The share above which the revision has failed."""
    stable_value: float | None = None
    """The other revisions' share in the same time."""
    requests: Integer | None = None
    """Requests that the revision answered."""
    failed_requests: Integer | None = None
    """How many of them were bad; final once the rollback is completed."""
    window_seconds: Integer | None = None
    """The time in which they were counted."""
    observed_at: Timestamp
    """When it was seen."""
    detail: str | None = None
    """For a failure of pods: its stage, reason and message."""


class RollbackStatus(ApiModel):
    """The last time that a revision was taken back."""

    evidence: Evidence
    """What was seen."""
    decided_at: Timestamp
    """When it was decided; nothing undoes it."""
    traffic_reverted_at: Timestamp | None = None
    """When the live routes gave the revision no traffic any more."""
    completed_at: Timestamp | None = None
    """When its last scrapes were in and its figures final."""
    from_: str
    """The revision that was taken back."""
    to: str
    """The revision that serves instead."""
    during: Phase | None = None
    """The phase in which it was decided."""


class Rejected(ApiModel):
    """A revision that failed and is not tried again by itself."""

    revision: str
    """Name of the revision."""
    inputs_hash: str
    """Hash of the content that makes the revision."""
    retry_token: str | None = None
    """The retryToken with which it failed; another one gives it another try."""
    reason: str
    """Why it failed."""
    at: Timestamp
    """When it failed."""
    withdrawn_at: Timestamp | None = None
    """When it turned out that the old revision fails in the same way: it may be tried again."""


class StatusModel(ApiModel):
    """What the operator saw, did and remembers. The operator alone writes it."""

    observed_generation: Integer | None = None
    """The generation of the spec that this status speaks of."""
    phase: Phase | None = None
    """Where the ModelDeployment stands, in one word."""
    conditions: Annotated[list[Condition], ListMap("type")] = Field(default_factory=list[Condition])
    """Where it stands, aspect by aspect: Ready (it serves), Reconciling (it changes), Stalled (it needs a
    person), SLOHealthy, TrafficRouted."""
    router: str | None = None
    """What splits its traffic."""
    address: Address | None = None
    """Where callers inside the cluster reach the model."""
    replicas: Integer | None = None
    """Pods of all revisions."""
    selector: str | None = None
    """Selects these pods; for the scale subresource."""
    stable: StableStatus | None = None
    """The revision that serves. It stays the old one until the new one has baked."""
    canary: CanaryStatus | None = None
    """The revision that is rolling out."""
    rollout: RolloutStatus | None = None
    """The rollout that is running."""
    rollback: RollbackStatus | None = None
    """The last time that a revision was taken back, and why."""
    rejected: Annotated[list[Rejected], MaxLen(10)] = Field(default_factory=list[Rejected])
    """Revisions that failed and are not tried again by themselves; the last 10."""
