"""A revision's Deployment, Service, PodDisruptionBudget and digest ConfigMap."""

from __future__ import annotations

from typing import Any

from pilotage_operator.core import names
from pilotage_operator.core.revisions import Revision


def deployment(
    revision: Revision, owner: str, *, replicas: int | None, min_ready_seconds: int, progress_seconds: int
) -> dict[str, Any]:
    """The revision's Deployment; `replicas` is absent while an autoscaler owns the number."""
    spec: dict[str, Any] = {
        "selector": {"matchLabels": names.labels(owner, revision.name)},
        "template": revision.template,
        "minReadySeconds": min_ready_seconds,
        # Kubernetes wants it above minReadySeconds; the deadline that decides is the operator's own.
        "progressDeadlineSeconds": max(progress_seconds, min_ready_seconds + 1),
        "revisionHistoryLimit": 0,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(revision, owner),
        "spec": spec,
    }


def service(revision: Revision, owner: str) -> dict[str, Any]:
    """The revision's Service, whose selector never changes: the routes move, not what they point at."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(revision, owner),
        "spec": _service_spec(owner, revision),
    }


def stable_service(owner: str, stable: Revision) -> dict[str, Any]:
    """The address of the ModelDeployment inside the cluster; it moves once, at the end of the bake."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": owner, "labels": names.labels(owner)},
        "spec": _service_spec(owner, stable),
    }


def disruption_budget(revision: Revision, owner: str) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(revision, owner),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": names.labels(owner, revision.name)}},
    }


def digest(revision: Revision, owner: str, value: str) -> dict[str, Any]:
    """What the revision's first pod fetched, pinned for every later pod."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_metadata(revision, owner), "name": names.digest_config_map(revision.name)},
        "immutable": True,
        "data": {"digest": value},
    }


def _metadata(revision: Revision, owner: str) -> dict[str, Any]:
    return {"name": revision.name, "labels": names.labels(owner, revision.name)}


def _service_spec(owner: str, revision: Revision) -> dict[str, Any]:
    ports = [{"name": "http", "port": names.SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}]
    if revision.serves_grpc:
        # Istio speaks HTTP/2 to a port only if it is told to.
        ports.append(
            {
                "name": "grpc",
                "port": names.GRPC_SERVICE_PORT,
                "targetPort": "grpc",
                "protocol": "TCP",
                "appProtocol": "grpc",
            }
        )
    return {"selector": names.labels(owner, revision.name), "ports": ports}
