"""CoreDNS: the cluster's names. Of other names it says that they do not exist: nothing leaves the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import api, kubectl
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

CONFIGURATION = """\
.:53 {{
  bind {address}
  errors
  health {address}:8095
  ready {address}:8096
  cache 5
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig}
  }}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""


def _prepare(stack: Stack) -> None:
    text = CONFIGURATION.format(address=stack.address, kubeconfig=stack.kubeconfig_of("coredns"))
    (stack.folder_of("coredns") / "Corefile").write_text(text)
    kubectl.apply(stack, "dns.yaml")


def _command(stack: Stack) -> Command:
    return Command((stack.binary("coredns"), "-conf", f"{stack.folder_of('coredns')}/Corefile"))


def _ports(stack: Stack) -> tuple[Address, ...]:
    return tuple((stack.address, port) for port in (53, 8095, 8096))


def _ready(stack: Stack) -> bool:
    return api.answers(f"http://{stack.address}:8096/ready")


COREDNS = Part(
    name="coredns",
    tier=Tier.NODE,
    after=("kube-apiserver",),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
)
