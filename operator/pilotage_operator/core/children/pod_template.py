"""The pod template of a revision: `fetch` brings the model, `inference` serves it.

Rendered once, when the revision is made, and stored in its ControllerRevision: nothing that may change
later (routing, rollout, scaling) may reach it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from pilotage_operator.api.modeldeployment import ModelDeployment
from pilotage_operator.core import names, quantity
from pilotage_operator.core.install import Install

GRACE_SECONDS = 330
"""Longer than the longest request (time-outs are at most 300 s) and the drain, so it never depends on routing."""
DRAIN_SECONDS = 15
MODEL_FOLDER = "/models"
CLAIM_FOLDER = "/mnt/model-claim"
CREDENTIALS_FOLDER = "/etc/pilotage/credentials"
REVISION_FOLDER = "/etc/pilotage/revision"
IMAGE_FOLDER = "/mnt/model-image"
CACHE_FOLDER = "/var/cache/pilotage"
KEYS_FOLDER = "/etc/pilotage/decryption-keys"
_NEAR = ("pvc", "oci")
"""Schemes of models that the node has, or mounts, by itself: no cache makes them nearer."""
_USER = 65532
_DEFAULT_RESOURCES = {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
_FETCH_RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
_DEVICES = {"CPU": "cpu", "GPU": "cuda"}
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pod_template(deployment: ModelDeployment, revision: str, install: Install) -> dict[str, Any]:
    """Render the pods of a revision: restricted, without an API token, credentials only where they are used."""
    model, runtime = deployment.spec.model, deployment.spec.runtime
    image = (runtime.image if runtime else None) or install.runtime_image
    settings = _settings(deployment, install)
    parts = urlsplit(model.uri)
    volumes: list[dict[str, Any]] = [
        {"name": "model", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {
            "name": "revision",
            "configMap": {"name": names.digest_config_map(revision), "optional": True},
        },
    ]
    fetch_mounts: list[dict[str, Any]] = [
        {"name": "model", "mountPath": MODEL_FOLDER},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a private emptyDir on a read-only root
        {"name": "revision", "mountPath": REVISION_FOLDER, "readOnly": True},
    ]
    if model.credentials_secret_ref and parts.scheme != "oci":
        # Optional, or a Secret that is not there would leave the pod waiting without a word.
        secret = {"secretName": model.credentials_secret_ref.name, "optional": True}
        volumes.append({"name": "credentials", "secret": secret})
        fetch_mounts.append({"name": "credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": True})
        settings.append({"name": "PILOTAGE_CREDENTIALS_DIR", "value": CREDENTIALS_FOLDER})
    if parts.scheme == "pvc":
        claim = {"claimName": parts.netloc, "readOnly": True}
        volumes.append({"name": "claim", "persistentVolumeClaim": claim})
        fetch_mounts.append({"name": "claim", "mountPath": CLAIM_FOLDER, "readOnly": True})
    if parts.scheme == "oci":
        # No pull policy: Kubernetes' default takes a tag that moves anew, and the revision's digest refuses it.
        volumes.append({"name": "image", "image": {"reference": model.uri.removeprefix("oci://")}})
        fetch_mounts.append({"name": "image", "mountPath": IMAGE_FOLDER, "readOnly": True})
    if install.cache_host_path and parts.scheme not in _NEAR:
        cache = {"path": install.cache_host_path, "type": "DirectoryOrCreate"}
        volumes.append({"name": "cache", "hostPath": cache})
        # A folder for each namespace: a digest must open no other team's model.
        fetch_mounts.append(
            {"name": "cache", "mountPath": CACHE_FOLDER, "subPath": deployment.metadata.namespace}
        )
        settings += _environment(
            {
                "PILOTAGE_CACHE_DIR": CACHE_FOLDER,
                "PILOTAGE_CACHE_MAX_BYTES": str(install.cache_max_bytes),
            }
        )
    if model.signature:
        settings.append({"name": "PILOTAGE_SIGNATURE_PUBLIC_KEY", "value": model.signature.public_key})
    serving_settings = _serving_settings(deployment)
    serving_mounts: list[dict[str, Any]] = [
        {"name": "model", "mountPath": MODEL_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - as above
    ]
    if model.decryption_secret_ref:
        keys = {"secretName": model.decryption_secret_ref.name, "optional": True}
        volumes.append({"name": "decryption-keys", "secret": keys})
        serving_mounts.append({"name": "decryption-keys", "mountPath": KEYS_FOLDER, "readOnly": True})
        serving_settings.append({"name": "PILOTAGE_DECRYPTION_KEYS_DIR", "value": KEYS_FOLDER})
    common = {
        "image": image,
        "imagePullPolicy": install.runtime_image_pull_policy,
        "securityContext": _RESTRICTED,
        "terminationMessagePolicy": "File",
    }
    fetch = {
        "name": names.FETCH_CONTAINER,
        **common,
        "args": ["fetch"],
        "env": settings,
        "resources": _FETCH_RESOURCES,
        "volumeMounts": fetch_mounts,
    }
    inference = {
        "name": names.INFERENCE_CONTAINER,
        **common,
        "args": ["serve"],
        "env": [*_user_env(deployment), *serving_settings],
        "ports": _ports(deployment),
        "resources": _resources(deployment),
        "volumeMounts": serving_mounts,
        "startupProbe": _probe("/v2/health/ready", period=1, failures=600),
        "readinessProbe": _probe("/v2/health/ready", period=2, failures=2),
        "livenessProbe": _probe("/v2/health/live", period=10, failures=6),
    }
    spec: dict[str, Any] = {
        "initContainers": [fetch],
        "containers": [inference],
        "volumes": volumes,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if model.credentials_secret_ref and parts.scheme == "oci":
        spec["imagePullSecrets"] = [{"name": model.credentials_secret_ref.name}]
    if runtime and runtime.node_selector:
        spec["nodeSelector"] = dict(runtime.node_selector)
    if runtime and runtime.tolerations:
        spec["tolerations"] = [toleration.to_dict() for toleration in runtime.tolerations]
    return {"metadata": {"labels": names.labels(deployment.name, revision)}, "spec": spec}


def _settings(deployment: ModelDeployment, install: Install) -> list[dict[str, Any]]:
    model = deployment.spec.model
    wanted: dict[str, str | None] = {
        "PILOTAGE_MODEL_NAME": deployment.model_name,
        "PILOTAGE_MODEL_URI": model.uri,
        "PILOTAGE_MODEL_DIGEST": model.digest,
        "PILOTAGE_MODEL_FORMAT": model.format,
        "PILOTAGE_TRUSTED": "true" if model.trusted else None,
        "PILOTAGE_MODEL_DIR": MODEL_FOLDER,
        "PILOTAGE_PINNED_DIGEST_FILE": f"{REVISION_FOLDER}/digest",
        "PILOTAGE_ALLOW_PRIVATE_ADDRESSES": str(install.allow_private_addresses).lower(),
        "PILOTAGE_MAX_MODEL_BYTES": str(install.max_model_bytes),
    }
    return _environment(wanted)


def _serving_settings(deployment: ModelDeployment) -> list[dict[str, Any]]:
    model, runtime = deployment.spec.model, deployment.spec.runtime
    device, precision = (runtime.device, runtime.precision) if runtime else (None, None)
    batching = runtime.batching if runtime else None
    rows, delay = (
        (batching.max_batch_size, batching.max_queue_delay_milliseconds) if batching else (None, None)
    )
    workers = (runtime.workers if runtime else None) or 1
    threads = (runtime.threads if runtime else None) or _threads(deployment, workers)
    wanted = {
        "PILOTAGE_MODEL_NAME": deployment.model_name,
        "PILOTAGE_MODEL_FORMAT": model.format,
        "PILOTAGE_MODEL_DIR": MODEL_FOLDER,
        # Only code is digested again where it runs: other content was when it was fetched.
        "PILOTAGE_MODEL_DIGEST": model.digest if model.trusted else None,
        "PILOTAGE_TRUSTED": "true" if model.trusted else None,
        "PILOTAGE_TRUSTED_TYPES": json.dumps(model.trusted_types) if model.trusted_types else None,
        "PILOTAGE_DEVICE": _DEVICES[device] if device else None,
        "PILOTAGE_PRECISION": precision.lower() if precision else None,
        "PILOTAGE_MAX_BATCH_SIZE": str(rows) if rows is not None else None,
        "PILOTAGE_MAX_QUEUE_DELAY_MILLISECONDS": str(delay) if delay is not None else None,
        "PILOTAGE_WORKERS": str(workers),
        "PILOTAGE_THREADS": str(threads),
        "PILOTAGE_DRAIN_SECONDS": str(DRAIN_SECONDS),
        "PILOTAGE_GRPC_PORT": str(names.GRPC_PORT) if _grpc(deployment) else None,
    }
    return _environment({**wanted, **_payload_log(deployment)})


def _payload_log(deployment: ModelDeployment) -> dict[str, str | None]:
    runtime = deployment.spec.runtime
    log = runtime.payload_log if runtime else None
    if log is None:
        return {}
    percent = log.sample_percent
    return {
        "PILOTAGE_PAYLOAD_LOG_URL": log.url,
        # In decimals: 0.07 % as a share is 0.0007, and no binary fraction near it.
        "PILOTAGE_PAYLOAD_LOG_SAMPLE": None if percent is None else f"{Decimal(str(percent)) / 100:f}",
        "PILOTAGE_PAYLOAD_LOG_REDACT": ",".join(log.redact) if log.redact else None,
    }


def _grpc(deployment: ModelDeployment) -> bool:
    runtime = deployment.spec.runtime
    return bool(runtime and runtime.grpc)


def _ports(deployment: ModelDeployment) -> list[dict[str, Any]]:
    ports = {"http": names.HTTP_PORT, "metrics": names.METRICS_PORT}
    if _grpc(deployment):
        ports["grpc"] = names.GRPC_PORT
    return [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]


def _threads(deployment: ModelDeployment, workers: int) -> int:
    """A worker's share of the CPU that the pod may count on: without a limit a container sees all of its node."""
    resources = _resources(deployment)
    cpu = quantity.value(resources["limits"].get("cpu", resources["requests"]["cpu"]))
    return max(1, int(cpu / workers))


def _environment(wanted: Mapping[str, str | None]) -> list[dict[str, Any]]:
    # Kubernetes reads $(NAME) in a value as another variable's, and $$ as $.
    return [
        {"name": name, "value": value.replace("$", "$$")}
        for name, value in wanted.items()
        if value is not None
    ]


def _user_env(deployment: ModelDeployment) -> list[dict[str, Any]]:
    runtime = deployment.spec.runtime
    return _environment({one.name: one.value for one in (runtime.env if runtime else None) or ()})


def _resources(deployment: ModelDeployment) -> dict[str, Any]:
    runtime = deployment.spec.runtime
    given = runtime.resources.to_dict() if runtime and runtime.resources else {}
    requests, limits = given.get("requests", {}), given.get("limits", {})
    # A default must not contradict what the user wrote: Kubernetes wants no request above its limit.
    for name, default in _DEFAULT_RESOURCES["requests"].items():
        requests = {name: _smaller(default, limits.get(name, default)), **requests}
    limits = {"memory": _larger(_DEFAULT_RESOURCES["limits"]["memory"], requests["memory"]), **limits}
    return {"requests": requests, "limits": limits}


def _smaller(one: Any, other: Any) -> Any:
    return min(one, other, key=quantity.value)


def _larger(one: Any, other: Any) -> Any:
    return max(one, other, key=quantity.value)


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }
