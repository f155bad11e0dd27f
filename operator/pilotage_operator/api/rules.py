"""The rules that span fields: one table, of which both pydantic and the CRD are made.

Each says the same thing twice, as a CEL expression for the API server and as a predicate for Python; the
property test in tests/cluster shows that the two agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from pilotage_operator.api.scaling import DEFAULT_MAX_REPLICAS, DEFAULT_MIN_REPLICAS
from pilotage_operator.api.schema import api_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel

    from pilotage_operator.api.model import ModelSpec
    from pilotage_operator.api.modeldeployment import ModelDeployment
    from pilotage_operator.api.rollout import RolloutSpec, Step
    from pilotage_operator.api.runtime import Resources, Toleration
    from pilotage_operator.api.scaling import ScalingSpec

LONGEST_NAME = 40
_SCHEMES_WITH_CREDENTIALS = ("s3://", "gs://", "az://", "hf://", "oci://")
_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
_CODE = ("Pickle", "Joblib", "Python")
"""Formats that run code of the model's files."""
_UNITS = {
    "": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_GREATEST_QUANTITY = Decimal(2**63 - 1)
"""Kubernetes takes everything above for this."""


@dataclass(frozen=True)
class Rule:
    """What must hold for the value at `path` (API names, `[]` for each item; the object itself is "")."""

    path: str
    cel: str
    holds: Callable[[Any], bool]
    message: str


@dataclass(frozen=True)
class ChangeRule:
    """What must hold between an object and the one that it replaces."""

    cel: str
    holds: Callable[[Any, Any], bool]
    message: str


def _name_fits(deployment: ModelDeployment) -> bool:
    name = deployment.metadata.name
    return len(name) <= LONGEST_NAME and re.fullmatch(_NAME, name) is not None


def _stays_below(uri: str) -> bool:
    return re.search(r"/\.\.?(/|$)", uri) is None


def _credentials_have_a_use(model: ModelSpec) -> bool:
    return model.credentials_secret_ref is None or model.uri.startswith(_SCHEMES_WITH_CREDENTIALS)


def _trust_has_a_digest(model: ModelSpec) -> bool:
    return not model.trusted or bool(model.digest)


def _code_is_trusted(model: ModelSpec) -> bool:
    return model.format not in _CODE or model.trusted is True


def _amount(quantity: int | str) -> Decimal:
    parts = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert parts is not None, "the field's own check has run before"
    return min(Decimal(parts[1]) * _UNITS[parts[2]], _GREATEST_QUANTITY)


def _requests_within_limits(resources: Resources) -> bool:
    requests, limits = resources.requests or {}, resources.limits or {}
    return all(_amount(asked) <= _amount(limits[name]) for name, asked in requests.items() if name in limits)


def _own_variables_only(name: str) -> bool:
    return not name.startswith("PILOTAGE_")


def _key_or_exists(toleration: Toleration) -> bool:
    return bool(toleration.key) or toleration.operator == "Exists"


def _value_only_when_compared(toleration: Toleration) -> bool:
    return not toleration.value or toleration.operator != "Exists"


def _seconds_only_when_evicted(toleration: Toleration) -> bool:
    return toleration.toleration_seconds is None or toleration.effect == "NoExecute"


def _fixed_or_autoscaled(scaling: ScalingSpec) -> bool:
    others = (scaling.min_replicas, scaling.max_replicas, scaling.target_cpu_utilization_percent)
    return scaling.replicas is None or others == (None, None, None)


def _least_below_most(scaling: ScalingSpec) -> bool:
    return scaling.minimum <= scaling.maximum


def _below_all_traffic(weight: int) -> bool:
    return weight < 100


def _rising(steps: list[Step]) -> bool:
    return all(earlier.weight < later.weight for earlier, later in pairwise(steps))


def _ready_before_deadline(rollout: RolloutSpec) -> bool:
    return rollout.min_ready_seconds < rollout.progress_deadline_seconds


def _same_model_name(new: ModelDeployment, old: ModelDeployment) -> bool:
    return new.model_name == old.model_name


RULES = (
    Rule(
        "",
        f"self.metadata.name.size() <= {LONGEST_NAME} && self.metadata.name.matches('^({_NAME})$')",
        _name_fits,
        f"metadata.name must be at most {LONGEST_NAME} lower-case letters, digits and '-', beginning with a"
        " letter and not ending with '-': names of revisions and their children are made from it",
    ),
    Rule(
        "spec.model.uri",
        r"!self.matches(r'/\.\.?(/|$)')",
        _stays_below,
        "the path must not contain '.' or '..' between slashes",
    ),
    Rule(
        "spec.model",
        "!has(self.credentialsSecretRef) || ['s3://', 'gs://', 'az://', 'hf://', 'oci://']"
        ".exists(scheme, self.uri.startsWith(scheme))",
        _credentials_have_a_use,
        "credentialsSecretRef is for s3://, gs://, az://, hf:// and oci:// only: remove it, or use such a uri",
    ),
    Rule(
        "spec.model",
        "!has(self.trusted) || !self.trusted || (has(self.digest) && self.digest != '')",
        _trust_has_a_digest,
        "trusted needs digest: code runs only in the content that is named",
    ),
    Rule(
        "spec.model",
        f"!has(self.format) || !(self.format in {list(_CODE)}) || (has(self.trusted) && self.trusted)",
        _code_is_trusted,
        "formats Pickle, Joblib and Python run code of the model's files: state trusted: true and the digest, or"
        " convert the model",
    ),
    Rule(
        "spec.runtime.resources",
        "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) ||"
        " quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0)",
        _requests_within_limits,
        "a request must not be above the limit of the same resource",
    ),
    Rule(
        "spec.runtime.env[].name",
        "!self.startsWith('PILOTAGE_')",
        _own_variables_only,
        "names that begin with PILOTAGE_ belong to the operator: use another name",
    ),
    Rule(
        "spec.runtime.tolerations[]",
        "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
        _key_or_exists,
        "without a key the operator must be Exists, which tolerates every taint",
    ),
    Rule(
        "spec.runtime.tolerations[]",
        "!has(self.value) || self.value == '' || !has(self.operator) || self.operator != 'Exists'",
        _value_only_when_compared,
        "value must be absent when the operator is Exists",
    ),
    Rule(
        "spec.runtime.tolerations[]",
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        _seconds_only_when_evicted,
        "tolerationSeconds needs effect NoExecute",
    ),
    Rule(
        "spec.scaling",
        "!has(self.replicas) || (!has(self.minReplicas) && !has(self.maxReplicas) &&"
        " !has(self.targetCPUUtilizationPercent))",
        _fixed_or_autoscaled,
        "replicas is a fixed size and excludes minReplicas, maxReplicas and targetCPUUtilizationPercent",
    ),
    Rule(
        "spec.scaling",
        f"has(self.replicas) || (has(self.minReplicas) ? self.minReplicas : {DEFAULT_MIN_REPLICAS}) <="
        f" (has(self.maxReplicas) ? self.maxReplicas : {DEFAULT_MAX_REPLICAS})",
        _least_below_most,
        "minReplicas must not be above maxReplicas; where absent, minReplicas is"
        f" {DEFAULT_MIN_REPLICAS} and maxReplicas {DEFAULT_MAX_REPLICAS}",
    ),
    Rule(
        "spec.rollout.steps[].weight",
        "self < 100",
        _below_all_traffic,
        "a step's weight must be below 100: all traffic follows the last step by itself",
    ),
    Rule(
        "spec.rollout.steps",
        "self.map(step, step.weight).isSorted() &&"
        " self.all(step, self.exists_one(other, other.weight == step.weight))",
        _rising,
        "the weights of steps must rise from each step to the next",
    ),
    Rule(
        "spec.rollout",
        "self.minReadySeconds < self.progressDeadlineSeconds",
        _ready_before_deadline,
        "minReadySeconds must be below progressDeadlineSeconds, or no pod could be available in time",
    ),
)
CHANGE_RULES = (
    ChangeRule(
        "(has(self.spec.model.name) ? self.spec.model.name : self.metadata.name) =="
        " (has(oldSelf.spec.model.name) ? oldSelf.spec.model.name : oldSelf.metadata.name)",
        _same_model_name,
        "spec.model.name cannot be changed, since callers and time series depend on it: make another"
        " ModelDeployment",
    ),
)


def check(deployment: ModelDeployment) -> None:
    """Raise with every rule that the object breaks, each with the path of the value that breaks it."""
    broken = [
        f"{path or 'ModelDeployment'}: {rule.message}"
        for rule in RULES
        for path, value in _values(deployment, rule.path)
        if not rule.holds(value)
    ]
    if broken:
        raise PydanticCustomError("rule", "{broken}", {"broken": "; ".join(broken)})


def check_change(new: ModelDeployment, old: ModelDeployment) -> None:
    """Raise ValueError with every rule that the change breaks."""
    broken = [rule.message for rule in CHANGE_RULES if not rule.holds(new, old)]
    if broken:
        raise ValueError("; ".join(broken))


def _values(model: BaseModel, path: str) -> Iterator[tuple[str, Any]]:
    """Every value at a rule's path that is there, with its own path."""
    found: list[tuple[str, Any]] = [("", model)]
    for part in path.split(".") if path else []:
        name, each = part.removesuffix("[]"), part.endswith("[]")
        below = [(f"{at}.{name}".lstrip("."), _field(value, name)) for at, value in found]
        found = [
            item
            for at, value in below
            if value is not None
            for item in ([(f"{at}[{i}]", one) for i, one in enumerate(value)] if each else [(at, value)])
        ]
    yield from found


def _field(model: BaseModel, name: str) -> Any:
    for attribute in type(model).model_fields:
        if api_name(attribute) == name:
            return getattr(model, attribute)
    raise LookupError(f"{type(model).__name__} has no field {name}: mend the path in rules.py")
