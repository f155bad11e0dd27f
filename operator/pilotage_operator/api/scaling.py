"""`spec.scaling`: how many pods."""

from typing import Annotated

from annotated_types import Ge, Le

from pilotage_operator.api.schema import ApiModel, Integer

DEFAULT_MIN_REPLICAS = 2
DEFAULT_MAX_REPLICAS = 10
DEFAULT_TARGET_CPU_UTILIZATION_PERCENT = 70

Replicas = Annotated[Integer, Ge(1), Le(1000)]


class ScalingSpec(ApiModel):
    """How many pods serve the model: a fixed number, or as many as its CPU use asks for. Never makes a new
    revision.
    """

    # The CRD has no defaults here. A default that the API server stored would stay behind when a user
    # turns to `replicas`, which excludes these fields: such an apply would then be refused.
    replicas: Replicas | None = None
    """A fixed number of pods, also set by `kubectl scale`; excludes the other fields. Absent: autoscaled."""
    min_replicas: Replicas | None = None
    """The least number of pods. Absent: 2."""
    max_replicas: Replicas | None = None
    """The greatest number of pods. Absent: 10."""
    target_cpu_utilization_percent: Annotated[Integer, Ge(1), Le(1000)] | None = None
    """The CPU use to aim for, in percent of the CPU request. Absent: 70."""

    @property
    def minimum(self) -> int:
        """The least number of pods, however it was given."""
        return self.replicas or self.min_replicas or DEFAULT_MIN_REPLICAS

    @property
    def maximum(self) -> int:
        """The greatest number of pods, however it was given."""
        return self.replicas or self.max_replicas or DEFAULT_MAX_REPLICAS

    @property
    def cpu_percent(self) -> int:
        """The CPU use to aim for where the number of pods is not fixed."""
        return self.target_cpu_utilization_percent or DEFAULT_TARGET_CPU_UTILIZATION_PERCENT
