"""`spec.runtime`: how to run the model."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen, MinLen

from pilotage_operator.api.schema import ApiModel, Integer, Keys, ListMap, ListSet, Matches, Quantity

_LABEL_VALUE = "([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
_LABEL_KEY = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"

Image = Annotated[
    str,
    MinLen(1),
    MaxLen(512),
    Matches(
        "[A-Za-z0-9][-A-Za-z0-9._/:@]*", "must be the name of an image, such as registry.example/name:tag"
    ),
]
EnvName = Annotated[
    str,
    MaxLen(128),
    Matches("[A-Za-z_][A-Za-z0-9_]*", "must be letters, digits and '_', and not begin with a digit"),
]
LabelKey = Annotated[
    str, MaxLen(316), Matches(_LABEL_KEY, "must be the key of a label: an optional PREFIX/ and a name")
]
LabelValue = Annotated[
    str,
    MaxLen(63),
    Matches(_LABEL_VALUE, "must be the value of a label: at most 63 letters, digits, '-', '_', '.'"),
]
Amounts = Annotated[
    dict[str, Quantity],
    MaxLen(8),
    Keys(
        r"cpu|memory|ephemeral-storage|[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?",
        "each resource must be cpu, memory, ephemeral-storage or a device's name such as nvidia.com/gpu",
    ),
]
NodeLabels = Annotated[
    dict[str, LabelValue],
    MaxLen(16),
    Keys(_LABEL_KEY, "each key must be the key of a label: an optional PREFIX/ and a name"),
]

SinkUrl = Annotated[
    str,
    MaxLen(1024),
    # Stricter than the runtime: a password here could be read by whoever may read the ModelDeployment.
    Matches(
        r'https?://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[!-"$-~]*)?',
        "must be http://HOST/PATH or https://HOST/PATH, in ASCII, without user, password, fragment or spaces",
    ),
]
TensorName = Annotated[
    str,
    MaxLen(256),
    # The runtime takes the names as one text, parted by commas, without the spaces around them.
    Matches(
        r"[^\x00-\x20\x7f,]([^\x00-\x1f\x7f,]*[^\x00-\x20\x7f,])?",
        "must be a name without commas and control characters, and not begin or end with a space",
    ),
]


class Resources(ApiModel):
    """What the container that serves the model asks of its node."""

    requests: Amounts | None = None
    """What is set aside for each pod, by resource. The CPU request is also the measure of
    scaling.targetCPUUtilizationPercent. Where cpu or memory is absent: cpu 250m, memory 256Mi."""
    limits: Amounts | None = None
    """What each pod may use at most, by resource. Where memory is absent: 1Gi. Without a CPU limit the model
    may use what its node has to spare."""


class Batching(ApiModel):
    """How requests share runs of the model. They do only where running it at load proved that rows do not touch
    each other; /v2/models/NAME tells.
    """

    max_batch_size: Annotated[Integer, Ge(1), Le(65_536)] | None = None
    """Rows that may share a run. 1: no batching. Absent: 64."""
    max_queue_delay_milliseconds: Annotated[Integer, Ge(0), Le(1000)] | None = None
    """How long a request may wait for company. Absent: not at all; what comes while the model is busy runs
    together all the same."""


class PayloadLog(ApiModel):
    """Requests and their responses, kept to be labelled later: batches of CloudEvents, posted by each pod."""

    url: SinkUrl
    """Where the batches are posted: a broker or a collector that the model's pods can reach."""
    sample_percent: Annotated[float, Ge(0), Le(100)] | None = None
    """Share of requests, in percent, that are logged; a hash of the request id chooses them, so that whoever
    samples in the same way has the same ones. Absent: 100."""
    redact: Annotated[list[TensorName], MaxLen(256), ListSet()] | None = None
    """Inputs, outputs, features and parameters whose values are replaced by null before they leave the pod.
    Absent: none."""


class EnvVar(ApiModel):
    """One environment variable."""

    name: EnvName
    """Name of the variable. Names that begin with PILOTAGE_ belong to the operator."""
    value: Annotated[str, MaxLen(4096)]
    """Value of the variable, taken as it is."""


class Toleration(ApiModel):
    """One taint that the model's pods put up with."""

    key: LabelKey | None = None
    """Key of the taint. Absent, with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists: the taint may have any value. Equal: it has this value. Absent: Equal."""
    value: LabelValue | None = None
    """Value of the taint; only with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Absent: every effect."""
    toleration_seconds: Annotated[Integer, Ge(0), Le(2**31 - 1)] | None = None
    """How long a pod stays on its node once the taint is there; only with effect NoExecute. Absent: for ever."""


class RuntimeSpec(ApiModel):
    """How the model is run. A change here makes a new revision, which is rolled out in steps."""

    image: Image | None = None
    """Image of the inference runtime. Absent: the install's. A revision keeps the image with which it was
    made, so an upgrade of the operator restarts nothing."""
    resources: Resources | None = None
    """CPU, memory and devices for each pod."""
    workers: Annotated[Integer, Ge(1), Le(64)] | None = None
    """How many processes serve the model in each pod, each with a copy of it. Absent: 1."""
    threads: Annotated[Integer, Ge(1), Le(256)] | None = None
    """How many threads one inference may use. Absent: each worker's share of the CPU limit, or of the request
    where there is no limit; at least one."""
    device: Literal["CPU", "GPU"] | None = None
    """Where the model runs. GPU needs an image with libraries for it, and the node's GPU among the limits, such
    as nvidia.com/gpu: 1; formats that run on CPUs alone refuse it. Absent: CPU."""
    precision: Literal["Float32", "Float16", "BFloat16"] | None = None
    """Precision of the computation, for TorchScript and TorchExport, whose inputs and outputs keep their types.
    Other formats have a precision of their own and refuse this. Absent: Float32, the model as it is."""
    batching: Batching | None = None
    """How requests share runs of the model."""
    grpc: bool | None = None
    """Serve the Open Inference Protocol over gRPC too: on port 9000 of the Services, and under the hosts at the
    gateways' own ports, split by the same weights. Callers can use it once the revision that serves it is the
    stable one. Absent: false."""
    payload_log: PayloadLog | None = None
    """Log requests and responses, with the values in them. Absent: they are not logged."""
    env: Annotated[list[EnvVar], MaxLen(64), ListMap("name")] | None = None
    """Environment variables of the container that serves the model."""
    node_selector: NodeLabels | None = None
    """Labels that a node must have to run the model's pods."""
    tolerations: Annotated[list[Toleration], MaxLen(16)] | None = None
    """Taints that the model's pods put up with."""
