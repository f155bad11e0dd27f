"""The names that Pilotage's objects, labels and series go by."""

from __future__ import annotations

import hashlib
from typing import Any

GROUP = "pilotage.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelDeployment"
PLURAL = "modeldeployments"
FIELD_MANAGER = "pilotage"
HANDOVER_MANAGER = "pilotage-handover"
"""Holds a field that we stop sending until its new owner writes it."""

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_DEPLOYMENT = f"{GROUP}/modeldeployment"
LABEL_REVISION = f"{GROUP}/revision"
ANNOTATION_APPLIED = f"{GROUP}/applied"

HEADER_PINNED = "x-pilotage-pinned"
"""Tells the runtime that the caller chose the revision: such a request is no evidence of it."""

INFERENCE_CONTAINER = "inference"
FETCH_CONTAINER = "fetch"
HTTP_PORT = 8080
GRPC_PORT = 9000
METRICS_PORT = 9090
SERVICE_PORT = 80
GRPC_SERVICE_PORT = 9000

GRPC_PATH = "/inference.GRPCInferenceService/"
"""Every call of the protocol over gRPC is a request below this path, and no request of REST is."""

ObjectKey = tuple[str, str]
"""(kind, name) of an object in the ModelDeployment's namespace."""


def labels(deployment: str, revision: str | None = None) -> dict[str, str]:
    """The labels of a child, and of a revision's child when `revision` is given."""
    found = {LABEL_MANAGED_BY: FIELD_MANAGER, LABEL_DEPLOYMENT: deployment}
    return found if revision is None else {**found, LABEL_REVISION: revision}


def host_label(host: str) -> str:
    """The label of a VirtualService that holds a host: who holds it is asked of the API server by this."""
    return f"{GROUP}/host-{hashlib.sha256(host.encode()).hexdigest()[:16]}"


def service_host(service: str, namespace: str) -> str:
    """The name under which the mesh and cluster DNS know a Service."""
    return f"{service}.{namespace}.svc.cluster.local"


def digest_config_map(revision: str) -> str:
    return f"{revision}-digest"


def rule_group(namespace: str, deployment: str) -> str:
    return f"pilotage-{namespace}-{deployment}"


def key_of(manifest: dict[str, Any]) -> ObjectKey:
    return manifest["kind"], manifest["metadata"]["name"]
