"""etcd: where the API server keeps everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import api
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack


def _command(stack: Stack) -> Command:
    clients = f"http://127.0.0.1:{stack.ports.etcd}"
    return Command(
        (
            stack.binary("etcd"),
            f"--data-dir={stack.folder_of('etcd')}/data",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls=http://127.0.0.1:{stack.ports.etcd_peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{stack.ports.etcd_peer}",
            f"--initial-cluster=default=http://127.0.0.1:{stack.ports.etcd_peer}",
            "--unsafe-no-fsync",  # nothing here has to survive a power cut
            "--log-level=warn",
        )
    )


def _ports(stack: Stack) -> tuple[Address, ...]:
    return (("127.0.0.1", stack.ports.etcd), ("127.0.0.1", stack.ports.etcd_peer))


def _ready(stack: Stack) -> bool:
    return api.answers(f"http://127.0.0.1:{stack.ports.etcd}/health")


ETCD = Part(name="etcd", tier=Tier.CONTROL_PLANE, command=_command, ports=_ports, ready=_ready)
