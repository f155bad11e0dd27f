"""ModelDeployment: the one object that users write."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from pilotage_operator.api import rules
from pilotage_operator.api.model import ModelSpec
from pilotage_operator.api.rollout import RolloutSpec
from pilotage_operator.api.routing import RoutingSpec
from pilotage_operator.api.runtime import RuntimeSpec
from pilotage_operator.api.scaling import ScalingSpec
from pilotage_operator.api.schema import ApiModel, Integer, Timestamp, api_name
from pilotage_operator.api.slo import SLOSpec
from pilotage_operator.api.status import StatusModel


class Metadata(ApiModel):
    """What Pilotage reads of an object's metadata; the rest is Kubernetes' own matter."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: Integer = 0
    resource_version: str = ""
    creation_timestamp: Timestamp | None = None
    deletion_timestamp: Timestamp | None = None
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    annotations: dict[str, str] = Field(default_factory=dict[str, str])
    finalizers: list[str] = Field(default_factory=list[str])

    @model_validator(mode="before")
    @classmethod
    def _read_only_these(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = cast("Mapping[str, Any]", value)
        return {name: given[name] for name in map(api_name, cls.model_fields) if name in given}


class ModelDeploymentSpec(ApiModel):
    """Five questions: what to serve, how to run it, how to scale it, how traffic reaches it, and when a new
    version is good. Only `model.uri` is needed.
    """

    model: ModelSpec
    """What to serve. A change makes a new revision, which is rolled out in steps."""
    runtime: Annotated[RuntimeSpec, Field(default_factory=RuntimeSpec)]
    """How to run it. A change makes a new revision, which is rolled out in steps."""
    scaling: Annotated[ScalingSpec, Field(default_factory=ScalingSpec)]
    """How many pods serve it. Absent: 2 to 10 pods, aiming for 70 % of their CPU request."""
    routing: Annotated[RoutingSpec, Field(default_factory=RoutingSpec)]
    """How traffic reaches it."""
    rollout: Annotated[RolloutSpec, Field(default_factory=RolloutSpec)]
    """How a new revision takes over."""
    slo: Annotated[SLOSpec, Field(default_factory=SLOSpec)]
    """When a revision is good. Absent: 99.9 % of requests are answered without a server's error."""


class ModelDeployment(ApiModel):
    """A model that Pilotage serves, scales, routes traffic to, and rolls out in steps; a new version that
    breaks its SLO is taken back by itself.
    """

    api_version: Literal["pilotage.dev/v1alpha1"]
    """Always pilotage.dev/v1alpha1."""
    kind: Literal["ModelDeployment"]
    """Always ModelDeployment."""
    metadata: Metadata
    """Standard metadata. The name is at most 40 characters long, so that names of children fit."""
    spec: ModelDeploymentSpec
    """What is wanted."""
    status: Annotated[StatusModel, Field(default_factory=StatusModel)]
    """What the operator saw, did and remembers."""

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Self:
        rules.check(self)
        return self

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def model_name(self) -> str:
        """The M in /v2/models/M."""
        return self.spec.model.name or self.metadata.name


def parse(obj: Mapping[str, Any]) -> ModelDeployment:
    """Read an object that comes from the cluster.

    Unknown fields are ignored: the API server prunes them, and after a downgrade of the operator the fields
    of a newer one may still be there.
    """
    return ModelDeployment.model_validate(obj, extra="ignore", by_alias=True, by_name=False)


def validate(obj: Mapping[str, Any], old: ModelDeployment | None = None) -> ModelDeployment:
    """Check an object as the API server does with fieldValidation=Strict; `old` is what it would replace."""
    deployment = ModelDeployment.model_validate(obj, extra="forbid", by_alias=True, by_name=False)
    if old is not None:
        rules.check_change(deployment, old)
    return deployment
