"""kube-proxy: service addresses, as iptables rules."""

from __future__ import annotations

import subprocess

from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command
from pilotage_dev.stack import NODE, POD_CIDR, Stack

NAME = "kube-proxy"


def _command(stack: Stack) -> Command:
    return Command(
        (
            stack.binary(NAME),
            f"--kubeconfig={stack.kubeconfig_of(NAME)}",
            f"--hostname-override={NODE}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={POD_CIDR}",
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
            "--iptables-localhost-nodeports=false",
            # The machine's connection tracking is not this stack's to set.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        )
    )


def _ports(_: Stack) -> tuple[Address, ...]:
    return (("127.0.0.1", 10256), ("127.0.0.1", 10249))


def _ready(_: Stack) -> bool:
    """Tell by the rules themselves: before they are there, a service address leads nowhere."""
    listed = subprocess.run(
        ["iptables", "--wait", "--table=nat", "--list-rules", "KUBE-SERVICES"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "10.96.0.1/32" in listed.stdout


KUBE_PROXY = Part(
    name=NAME,
    tier=Tier.NODE,
    after=("kubelet",),
    command=_command,
    ports=_ports,
    ready=_ready,
)
