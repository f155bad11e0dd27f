"""kube-scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import api
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

NAME = "kube-scheduler"


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
            f"--secure-port={stack.ports.scheduler}",
        )
    )


def _ports(stack: Stack) -> tuple[Address, ...]:
    return (("127.0.0.1", stack.ports.scheduler),)


def _ready(stack: Stack) -> bool:
    return api.answers(f"https://127.0.0.1:{stack.ports.scheduler}/healthz")


SCHEDULER = Part(
    name=NAME,
    tier=Tier.CONTROL_PLANE,
    after=("kube-apiserver",),
    command=_command,
    ports=_ports,
    ready=_ready,
)
