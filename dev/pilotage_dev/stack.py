"""What the parts of one running stack share: its folder, its addresses, its ports."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pilotage_dev import gobuild, paths

if TYPE_CHECKING:
    from pathlib import Path

BRIDGE = "cni0"
NODE = "node1"
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
DNS_SERVICE = "10.96.0.10"

# Set in every process of a stack, so that leftovers are found and nothing else is taken for one.
MARK = "PILOTAGE_DEV_STACK"


@dataclass(frozen=True)
class Ports:
    """Ports of the control plane; the whole stack's are fixed, those of a test's are free ones."""

    api: int = 16443
    etcd: int = 12379
    etcd_peer: int = 12380
    controller_manager: int = 10257
    scheduler: int = 10259


@dataclass(frozen=True)
class Stack:
    """One cluster: where its state lies and where its API server is reached.

    The whole stack's API server listens on the bridge that pods hang on, so that host and pods
    reach it alike; a control plane alone listens on loopback.
    """

    folder: Path = paths.STATE
    address: str = "10.244.0.1"
    ports: Ports = field(default_factory=Ports)
    audit: bool = True

    @property
    def has_node(self) -> bool:
        return not ipaddress.ip_address(self.address).is_loopback

    @property
    def api_url(self) -> str:
        return f"https://{self.address}:{self.ports.api}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's; each part has one of its own, so that the audit log tells them apart."""
        return self.folder / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def audit_log(self) -> Path:
        return self.folder / "log" / "audit.log"

    def kubeconfig_of(self, part: str) -> Path:
        return self.pki / f"{part}.kubeconfig"

    def log(self, part: str) -> Path:
        return self.folder / "log" / f"{part}.log"

    def pid_file(self, part: str) -> Path:
        return self.folder / "pids" / part

    def folder_of(self, part: str) -> Path:
        """Return the part's own folder, made if it is not there."""
        made = self.folder / part
        made.mkdir(parents=True, exist_ok=True)
        return made

    def binary(self, name: str) -> str:
        return str(gobuild.binary(name))
