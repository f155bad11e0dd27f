"""Objects that are accepted or refused, for the checks of pydantic and of the API server alike."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

DIGEST = "sha256:" + "0123456789abcdef" * 4
PUBLIC_KEY = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEVpo1Qq4Hh3lVhkJ8mJ0n3J7qjv1c
5mEo1d5q2vYbB4l7nTz0u2pJQ8qkqv1c5mEo1d5q2vYbB4l7nTz0u2pJQw==
-----END PUBLIC KEY-----
"""


def smallest() -> dict[str, Any]:
    """A minimal object: `spec.model.uri` alone."""
    return {
        "apiVersion": "pilotage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "fraud", "namespace": "default"},
        "spec": {"model": {"uri": "s3://models/fraud/7"}},
    }


def fullest() -> dict[str, Any]:
    """An object that says everything that can be said at once."""
    return smallest() | {
        "spec": {
            "model": {
                "uri": "s3://models/fraud/7",
                "name": "fraud-model",
                "digest": DIGEST,
                "format": "TorchScript",
                "trusted": True,
                "trustedTypes": ["sklearn.tree._tree.Tree"],
                "credentialsSecretRef": {"name": "store-keys"},
                "signature": {"publicKey": PUBLIC_KEY},
                "decryptionSecretRef": {"name": "model-keys"},
            },
            "runtime": {
                "image": "registry.example:5000/runtime:1.2@" + DIGEST,
                "resources": {
                    "requests": {"cpu": "500m", "memory": "512Mi", "nvidia.com/gpu": 1},
                    "limits": {"cpu": 2, "memory": "1Gi", "nvidia.com/gpu": 1},
                },
                "workers": 2,
                "threads": 4,
                "device": "GPU",
                "precision": "Float16",
                "batching": {"maxBatchSize": 32, "maxQueueDelayMilliseconds": 2},
                "grpc": True,
                "payloadLog": {
                    "url": "https://broker.example.com/payloads?team=shop",
                    "samplePercent": 0.5,
                    "redact": ["income", "date of birth"],
                },
                "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "MODE", "value": ""}],
                "nodeSelector": {"kubernetes.io/arch": "amd64", "pool": ""},
                "tolerations": [
                    {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
                    {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                ],
            },
            "scaling": {"minReplicas": 3, "maxReplicas": 20, "targetCPUUtilizationPercent": 60},
            "routing": {
                "router": "Istio",
                "hosts": ["fraud.example.com", "fraud.shop.example.com"],
                "gateways": ["istio-system/public"],
                "versionHeader": "x-model-version",
                "timeoutSeconds": 20,
                "circuitBreaker": {"maxConnections": 10, "consecutive5xxErrors": 7},
            },
            "rollout": {
                "strategy": "Canary",
                "steps": [{"weight": 5}, {"weight": 25, "holdSeconds": 0}, {"weight": 99, "holdSeconds": 30}],
                "canaryWeight": 25,
                "paused": True,
                "minRequests": 0,
                "onNoData": "Hold",
                "bakeSeconds": 0,
                "progressDeadlineSeconds": 60,
                "minReadySeconds": 0,
                "revisionHistoryLimit": 1,
                "retryToken": "2026-11-24T10:00:00Z",
            },
            "slo": {
                "availability": {"objectivePercent": 99.5},
                "latency": {"thresholdMilliseconds": 500, "objectivePercent": 95},
            },
        }
    }


def with_value(path: str, value: Any) -> dict[str, Any]:
    """The minimal object with one value more: dots separate the names in a path."""
    changed = smallest()
    at = changed
    *above, last = path.split(".")
    for name in above:
        at = at.setdefault(name, {})
    at[last] = deepcopy(value)
    return changed


@dataclass(frozen=True)
class RuleExample:
    """A value at a path that a rule lets pass, one that it refuses, and the rule's message."""

    path: str
    accepted: Any
    refused: Any
    message: str

    @property
    def id(self) -> str:
        return f"{self.path}: {self.message[:50]}"


_URI = (
    "must be https://HOST/PATH, s3://BUCKET/KEY, gs://BUCKET/NAME, az://CONTAINER/NAME,"
    " hf://ORGANISATION/REPOSITORY, oci://IMAGE or pvc://CLAIM/PATH, in ASCII, without user, password,"
    " fragment or spaces"
)
_PEM = "must be a public key in PEM: -----BEGIN PUBLIC KEY-----, lines of base64, -----END PUBLIC KEY-----"
_SINK = "must be http://HOST/PATH or https://HOST/PATH, in ASCII, without user, password, fragment or spaces"
_TENSOR = "must be a name without commas and control characters, and not begin or end with a space"
_LABEL_VALUE = "must be the value of a label: at most 63 letters, digits, '-', '_', '.'"
_LABEL_KEYS = "each key must be the key of a label: an optional PREFIX/ and a name"
_QUANTITY = "must be a quantity of 0 or more, such as 250m, 2, 512Mi or 4Gi"
_RESOURCE = "each resource must be cpu, memory, ephemeral-storage or a device's name such as nvidia.com/gpu"
_RISING = "the weights of steps must rise from each step to the next"
_BOUNDS = "minReplicas must not be above maxReplicas; where absent, minReplicas is 2 and maxReplicas 10"
_FIXED = "replicas is a fixed size and excludes minReplicas, maxReplicas and targetCPUUtilizationPercent"
_PICKLE = {"uri": "s3://models/a", "format": "Pickle", "digest": DIGEST}
_CODE = (
    "formats Pickle, Joblib and Python run code of the model's files: state trusted: true and the digest, or"
    " convert the model"
)
_NAME = (
    "metadata.name must be at most 40 lower-case letters, digits and '-', beginning with a letter and not"
    " ending with '-': names of revisions and their children are made from it"
)

RULE_EXAMPLES = (
    RuleExample("metadata.name", "a" * 40, "a" * 41, _NAME),
    RuleExample("metadata.name", "a-1", "1-a", _NAME),
    RuleExample("metadata.name", "a", "a.b", _NAME),
    RuleExample("spec.model.uri", "https://models.example.com:8443/fraud?x=1@2", "ftp://models/fraud", _URI),
    RuleExample("spec.model.uri", "https://10.0.0.1/fraud.onnx", "https://me:secret@example.com/fraud", _URI),
    RuleExample("spec.model.uri", "s3://models/a/b", "s3://models", _URI),
    RuleExample("spec.model.uri", "pvc://claim/a/b.onnx", "pvc://Claim/a", _URI),
    RuleExample("spec.model.uri", "s3://models/a~b", "s3://models/a\n", _URI),
    RuleExample(
        "spec.model.uri",
        "pvc://claim/a..b/.c",
        "pvc://claim/a/../../b",
        "the path must not contain '.' or '..' between slashes",
    ),
    RuleExample(
        "spec.model",
        {"uri": "s3://models/a", "credentialsSecretRef": {"name": "keys"}},
        {"uri": "pvc://claim/a", "credentialsSecretRef": {"name": "keys"}},
        "credentialsSecretRef is for s3://, gs://, az://, hf:// and oci:// only: remove it, or use such a uri",
    ),
    RuleExample("spec.model.uri", "gs://models/a_b", "gs://Models/a", _URI),
    RuleExample("spec.model.uri", "az://models/a", "az://mod_els/a", _URI),
    RuleExample("spec.model.uri", "hf://acme/fraud@v1.2/onnx/model.onnx", "hf://fraud", _URI),
    RuleExample("spec.model.uri", "hf://acme/fraud", "hf://acme/fraud@/x", _URI),
    RuleExample("spec.model.uri", "oci://registry.example:5000/fraud:7", "oci:///fraud", _URI),
    RuleExample("spec.model.uri", "https://models.example.com/a", "file:///etc/passwd", _URI),
    RuleExample(
        "spec.model",
        {"uri": "oci://registry.example/a", "credentialsSecretRef": {"name": "keys"}},
        {"uri": "https://models.example.com/a", "credentialsSecretRef": {"name": "keys"}},
        "credentialsSecretRef is for s3://, gs://, az://, hf:// and oci:// only: remove it, or use such a uri",
    ),
    RuleExample("spec.model.signature.publicKey", PUBLIC_KEY, PUBLIC_KEY.replace("PUBLIC", "PRIVATE"), _PEM),
    RuleExample(
        "spec.model.credentialsSecretRef.name",
        "store.keys",
        "Store_Keys",
        "must be the name of a Secret: lower-case letters, digits, '-', '.'",
    ),
    RuleExample(
        "spec.model.name",
        "Fraud_v.2",
        "fraud/2",
        "must be letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
    ),
    RuleExample(
        "spec.model.digest",
        DIGEST,
        DIGEST.upper(),
        "must be 'sha256:' followed by 64 lower-case hexadecimal digits",
    ),
    RuleExample(
        "spec.model",
        {"uri": "s3://models/a", "trusted": True, "digest": DIGEST},
        {"uri": "s3://models/a", "trusted": True},
        "trusted needs digest: code runs only in the content that is named",
    ),
    RuleExample("spec.model", {"uri": "s3://models/a", "format": "Skops"}, _PICKLE, _CODE),
    RuleExample("spec.model", {**_PICKLE, "trusted": True}, {**_PICKLE, "trusted": False}, _CODE),
    RuleExample(
        "spec.model.trustedTypes",
        ["sklearn.tree._tree.Tree"],
        ["Tree"],
        "must be MODULE.NAME of a Python type",
    ),
    RuleExample(
        "spec.runtime.image",
        "a/b:c@" + DIGEST,
        "a/b: c",
        "must be the name of an image, such as registry.example/name:tag",
    ),
    RuleExample(
        "spec.runtime.resources",
        {"requests": {"cpu": "1000m", "memory": "1024Ki"}, "limits": {"cpu": 1, "memory": "1Mi"}},
        {"requests": {"cpu": "1001m"}, "limits": {"cpu": 1}},
        "a request must not be above the limit of the same resource",
    ),
    RuleExample("spec.runtime.resources.limits", {"cpu": "0.5"}, {"cpu": "-1"}, _QUANTITY),
    RuleExample("spec.runtime.resources.limits", {"cpu": 0}, {"cpu": -1}, _QUANTITY),
    RuleExample("spec.runtime.resources.requests", {"nvidia.com/gpu": 1}, {"gpu": 1}, _RESOURCE),
    RuleExample(
        "spec.runtime.env",
        [{"name": "_A1", "value": ""}],
        [{"name": "1A", "value": ""}],
        "must be letters, digits and '_', and not begin with a digit",
    ),
    RuleExample(
        "spec.runtime.env",
        [{"name": "MY_PILOTAGE_X", "value": ""}],
        [{"name": "PILOTAGE_WORKERS", "value": "9"}],
        "names that begin with PILOTAGE_ belong to the operator: use another name",
    ),
    RuleExample("spec.runtime.payloadLog", {"url": "http://broker"}, {"url": "ftp://broker/a"}, _SINK),
    RuleExample(
        "spec.runtime.payloadLog",
        {"url": "http://broker.shop:8080/a?b=$(c)"},
        {"url": "https://me:secret@broker/a"},
        _SINK,
    ),
    RuleExample(
        "spec.runtime.payloadLog",
        {"url": "http://b", "redact": ["date of birth", "größe", "a"]},
        {"url": "http://b", "redact": ["age,income"]},
        _TENSOR,
    ),
    RuleExample(
        "spec.runtime.payloadLog",
        {"url": "http://b", "redact": []},
        {"url": "http://b", "redact": ["age "]},
        _TENSOR,
    ),
    RuleExample("spec.runtime.nodeSelector", {"example.com/a.b": "c"}, {"/a": "c"}, _LABEL_KEYS),
    RuleExample("spec.runtime.nodeSelector", {"a": ""}, {"a": "b c"}, _LABEL_VALUE),
    RuleExample(
        "spec.runtime.tolerations",
        [{"key": "example.com/gpu"}],
        [{"key": "example.com/"}],
        "must be the key of a label: an optional PREFIX/ and a name",
    ),
    RuleExample(
        "spec.runtime.tolerations",
        [{"operator": "Exists"}],
        [{"operator": "Equal", "value": "x"}],
        "without a key the operator must be Exists, which tolerates every taint",
    ),
    RuleExample(
        "spec.runtime.tolerations",
        [{"key": "a", "value": "x"}],
        [{"key": "a", "operator": "Exists", "value": "x"}],
        "value must be absent when the operator is Exists",
    ),
    RuleExample(
        "spec.runtime.tolerations",
        [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 0}],
        [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 0}],
        "tolerationSeconds needs effect NoExecute",
    ),
    RuleExample("spec.scaling", {"replicas": 3}, {"replicas": 3, "minReplicas": 3}, _FIXED),
    RuleExample("spec.scaling", {"replicas": 1}, {"replicas": 1, "targetCPUUtilizationPercent": 70}, _FIXED),
    RuleExample(
        "spec.scaling",
        {"minReplicas": 4, "maxReplicas": 4},
        {"minReplicas": 5, "maxReplicas": 4},
        _BOUNDS,
    ),
    RuleExample("spec.scaling", {"minReplicas": 10}, {"minReplicas": 11}, _BOUNDS),
    RuleExample("spec.scaling", {"maxReplicas": 2}, {"maxReplicas": 1}, _BOUNDS),
    RuleExample(
        "spec.routing.hosts",
        ["a-b.example"],
        ["*.example.com"],
        "must be a full host name in lower case, such as fraud.example.com, without wildcard or port",
    ),
    RuleExample(
        "spec.routing.gateways",
        ["a/b.c"],
        ["mesh"],
        "must be NAMESPACE/NAME of a Gateway, such as istio-system/public",
    ),
    RuleExample(
        "spec.routing.versionHeader",
        "x-model-version",
        "X-Model-Version",
        "must be a header's name in lower case, such as x-model-version",
    ),
    RuleExample(
        "spec.rollout.steps",
        [{"weight": 99}],
        [{"weight": 100}],
        "a step's weight must be below 100: all traffic follows the last step by itself",
    ),
    RuleExample(
        "spec.rollout.steps", [{"weight": 1}, {"weight": 2}], [{"weight": 2}, {"weight": 1}], _RISING
    ),
    RuleExample(
        "spec.rollout.steps", [{"weight": 1}, {"weight": 2}], [{"weight": 2}, {"weight": 2}], _RISING
    ),
    RuleExample(
        "spec.rollout",
        {"minReadySeconds": 19, "progressDeadlineSeconds": 20},
        {"minReadySeconds": 20, "progressDeadlineSeconds": 20},
        "minReadySeconds must be below progressDeadlineSeconds, or no pod could be available in time",
    ),
    RuleExample(
        "spec.rollout.retryToken",
        "2026-11-24T10:00:00Z",
        "try again",
        "must be letters, digits, '-', '_', '.' and ':', beginning and ending with a letter or digit",
    ),
)
"""At least one for every expression in the CRD; a test sees to that."""

RENAMED = (
    "spec.model.name cannot be changed, since callers and time series depend on it: make another"
    " ModelDeployment"
)
"""The message of the one rule that looks at a change."""
