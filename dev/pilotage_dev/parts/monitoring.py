"""Prometheus and Alertmanager, as pods that prometheus-operator makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import api, kubectl
from pilotage_dev.part import Part, Tier

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack


def _prepare(stack: Stack) -> None:
    kubectl.apply(stack, "monitoring.yaml")


def _ready(stack: Stack) -> bool:
    sets = api.get(stack.kubeconfig, "/apis/apps/v1/namespaces/monitoring/statefulsets")
    names = {
        item["metadata"]["name"]
        for item in (sets or {}).get("items", [])
        if item["status"].get("readyReplicas") == item["spec"]["replicas"]
    }
    return names == {"prometheus-k8s", "alertmanager-main"}


MONITORING = Part(
    name="monitoring",
    tier=Tier.ALL,
    after=(
        "prometheus-operator",
        "images",
        "kube-proxy",
        "coredns",
        "kube-controller-manager",
        "kube-scheduler",
    ),
    prepare=_prepare,
    ready=_ready,
    within=120,
)
