"""A ServiceMonitor per ModelDeployment, for installs whose Prometheus selects by namespace or label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotage_operator.core import names


def service_monitor(owner: str, *, interval_seconds: int, labels: Mapping[str, str]) -> dict[str, Any]:
    """Scrapes the pods behind the revisions' Services; labels as the chart's PodMonitor sets them."""
    relabelings = [
        {"sourceLabels": [f"__meta_kubernetes_pod_label_{label}"], "targetLabel": target}
        for label, target in (
            ("pilotage_dev_modeldeployment", "modeldeployment"),
            ("pilotage_dev_revision", "revision"),
        )
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": owner, "labels": {**labels, **names.labels(owner)}},
        "spec": {
            "selector": {
                "matchLabels": names.labels(owner),
                "matchExpressions": [{"key": names.LABEL_REVISION, "operator": "Exists"}],
            },
            "endpoints": [
                {"targetPort": "metrics", "interval": f"{interval_seconds}s", "relabelings": relabelings}
            ],
        },
    }
