"""kwok: one node without a machine, whose pods are ready as soon as they are scheduled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from pilotage_dev import api, gobuild, kubectl
from pilotage_dev.part import Part, Tier
from pilotage_dev.process import Command
from pilotage_dev.stack import POD_CIDR

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

NAME = "kwok"
# Init containers are completed and containers ready at once; a deleted pod goes at once.
STAGES = ("node/fast/node-initialize", "pod/fast/pod-ready", "pod/fast/pod-delete")


def _prepare(stack: Stack) -> None:
    kubectl.apply_text(
        stack, yaml.safe_dump({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}})
    )


def _command(stack: Stack) -> Command:
    stages = gobuild.source_file("kwok-stages")
    return Command(
        (
            stack.binary(NAME),
            f"--kubeconfig={stack.kubeconfig_of(NAME)}",
            *(f"--config={stages}/{stage}.yaml" for stage in STAGES),
            f"--manage-single-node={NAME}",
            f"--cidr={POD_CIDR}",
            # Renewed for as long as it runs: else the controller manager gives the node up.
            "--node-lease-duration-seconds=40",
        )
    )


def _ready(stack: Stack) -> bool:
    node = api.get(stack.kubeconfig, f"/api/v1/nodes/{NAME}") or {}
    conditions = node.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


KWOK = Part(
    name=NAME,
    tier=Tier.NODE,
    after=("kube-apiserver",),
    prepare=_prepare,
    command=_command,
    ready=_ready,
)
