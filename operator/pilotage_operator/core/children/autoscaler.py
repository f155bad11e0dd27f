"""A revision's HorizontalPodAutoscaler, on the CPU of the container that infers."""

from __future__ import annotations

from typing import Any

from pilotage_operator.core import names
from pilotage_operator.core.revisions import Revision


def autoscaler(revision: Revision, owner: str, *, least: int, most: int, cpu_percent: int) -> dict[str, Any]:
    """`least` and `most` bound the pods; `cpu_percent` is of the container's CPU request."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": revision.name, "labels": names.labels(owner, revision.name)},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": revision.name},
            "minReplicas": least,
            "maxReplicas": max(least, most),
            "metrics": [
                {
                    "type": "ContainerResource",
                    "containerResource": {
                        "name": "cpu",
                        "container": names.INFERENCE_CONTAINER,
                        "target": {"type": "Utilization", "averageUtilization": cpu_percent},
                    },
                }
            ],
        },
    }
