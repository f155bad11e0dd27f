"""kube-controller-manager, with a quick horizontal autoscaler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import api
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

NAME = "kube-controller-manager"


def _command(stack: Stack) -> Command:
    kubeconfig = stack.kubeconfig_of(NAME)
    return Command(
        (
            stack.binary(NAME),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={stack.ports.controller_manager}",
            f"--service-account-private-key-file={stack.pki}/service-accounts.key",
            f"--root-ca-file={stack.pki}/ca.crt",
            "--horizontal-pod-autoscaler-sync-period=5s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=30s",
            "--horizontal-pod-autoscaler-initial-readiness-delay=5s",
        )
    )


def _ports(stack: Stack) -> tuple[Address, ...]:
    return (("127.0.0.1", stack.ports.controller_manager),)


def _ready(stack: Stack) -> bool:
    """Tell by its work: without this service account no pod is admitted to the namespace."""
    path = "/api/v1/namespaces/default/serviceaccounts/default"
    return api.get(stack.kubeconfig, path) is not None


CONTROLLER_MANAGER = Part(
    name=NAME,
    tier=Tier.CONTROL_PLANE,
    after=("kube-apiserver",),
    command=_command,
    ports=_ports,
    ready=_ready,
)
