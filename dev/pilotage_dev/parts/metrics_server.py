"""metrics-server: the CPU and memory figures that an autoscaler reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import api, kubectl
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

NAME = "metrics-server"
PORT = 4443


def _prepare(stack: Stack) -> None:
    kubectl.apply(stack, "metrics-server.yaml")


def _command(stack: Stack) -> Command:
    kubeconfig = stack.kubeconfig_of(NAME)
    return Command(
        (
            stack.binary(NAME),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={stack.address}",
            f"--secure-port={PORT}",
            f"--cert-dir={stack.folder_of(NAME)}/certificates",
            f"--kubelet-certificate-authority={stack.pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--kubelet-request-timeout=5s",
            "--metric-resolution=11s",
        )
    )


def _ports(stack: Stack) -> tuple[Address, ...]:
    return ((stack.address, PORT),)


def _ready(stack: Stack) -> bool:
    """Tell by the aggregated API; the first figures come two scrapes later."""
    return api.healthy(stack.kubeconfig, "/apis/metrics.k8s.io/v1beta1")


METRICS_SERVER = Part(
    name=NAME,
    tier=Tier.ALL,
    after=("kubelet", "kube-proxy"),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
)
