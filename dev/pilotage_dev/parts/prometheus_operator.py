"""prometheus-operator: makes Prometheus and Alertmanager of objects, and rules of PrometheusRules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import api, gobuild, kubectl
from pilotage_dev.images import CONFIG_RELOADER
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

NAME = "prometheus-operator"
PORT = 18080


def _prepare(stack: Stack) -> None:
    kubectl.apply_definitions(stack, gobuild.source_file("prometheus-operator-crds"))


def _command(stack: Stack) -> Command:
    return Command(
        (
            stack.binary(NAME),
            f"--web.listen-address=127.0.0.1:{PORT}",
            f"--prometheus-config-reloader={CONFIG_RELOADER.reference}",
            "--config-reloader-cpu-request=0",
            "--config-reloader-cpu-limit=0",
            "--config-reloader-memory-request=0",
            "--config-reloader-memory-limit=0",
        ),
        {"KUBECONFIG": str(stack.kubeconfig_of(NAME))},
    )


def _ports(_: Stack) -> tuple[Address, ...]:
    return (("127.0.0.1", PORT),)


def _ready(_: Stack) -> bool:
    return api.answers(f"http://127.0.0.1:{PORT}/healthz")


PROMETHEUS_OPERATOR = Part(
    name=NAME,
    tier=Tier.ALL,
    after=("kube-apiserver",),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
)
