"""`spec.routing`: how traffic reaches the model."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen

from pilotage_operator.api.schema import ApiModel, Integer, ListSet, Matches

_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"

Host = Annotated[
    str,
    MaxLen(253),
    Matches(
        rf"{_LABEL}(\.{_LABEL})+",
        "must be a full host name in lower case, such as fraud.example.com, without wildcard or port",
    ),
]
Gateway = Annotated[
    str,
    MaxLen(317),
    Matches(
        rf"{_LABEL}/{_LABEL}(\.{_LABEL})*", "must be NAMESPACE/NAME of a Gateway, such as istio-system/public"
    ),
]
Header = Annotated[
    str,
    MaxLen(63),
    Matches("[a-z]([-a-z0-9]*[a-z0-9])?", "must be a header's name in lower case, such as x-model-version"),
]


class CircuitBreaker(ApiModel):
    """Limits that keep an overloaded or failing pod from dragging others down."""

    max_connections: Annotated[Integer, Ge(1), Le(100_000)] = 100
    """Connections to all pods of a revision, at most."""
    max_pending_requests: Annotated[Integer, Ge(1), Le(100_000)] = 50
    """Requests that may wait for a connection; those above get 503 at once."""
    consecutive_5xx_errors: Annotated[Integer, Ge(1), Le(1000)] = 5
    """A pod that answers 5xx this many times in a row gets no traffic for a while. A revision that is being
    rolled out is exempt: this would hide its errors from the SLO."""
    interval_seconds: Annotated[Integer, Ge(1), Le(3600)] = 5
    """How often pods are looked at."""
    base_ejection_seconds: Annotated[Integer, Ge(1), Le(3600)] = 30
    """How long a pod gets no traffic; each further time that long again."""
    max_ejection_percent: Annotated[Integer, Ge(1), Le(100)] = 50
    """The share of a revision's pods that may be without traffic at a time."""


class RoutingSpec(ApiModel):
    """How traffic reaches the model. Never makes a new revision."""

    router: Literal["Istio"] | None = None
    """What splits traffic between revisions. Absent: the install decides; status.router shows which."""
    hosts: Annotated[list[Host], MaxLen(16), ListSet()] | None = None
    """Host names under which the gateways serve the model, within those that the install allows this
    namespace. A host belongs to one ModelDeployment only. The install's own host, NAME.NAMESPACE.DOMAIN if it
    has a domain, is always there beside them."""
    gateways: Annotated[list[Gateway], MaxLen(8), ListSet()] | None = None
    """Gateways, as NAMESPACE/NAME, through which traffic from outside arrives; within those that the install
    allows. Absent: the install's default gateways."""
    version_header: Header | None = None
    """A request with this header gets the revision that the header names, as long as that revision has
    traffic. Such requests are no evidence for a rollout. Absent: no such header."""
    timeout_seconds: Annotated[Integer, Ge(1), Le(300)] = 10
    """A request that takes longer is answered with 504, and counts as failed."""
    circuit_breaker: CircuitBreaker | None = None
    """Limits on connections, and ejection of failing pods. Absent: none; an empty object: the defaults."""
