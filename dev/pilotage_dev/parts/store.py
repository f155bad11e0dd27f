"""The model store: an S3 server over a folder, by name at http://store.model-store.svc:7070."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from pilotage_dev import kubectl
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

PORT = 7070
ACCESS_KEY = "pilotage"
SECRET_KEY = "pilotage-secret"
BUCKET = "models"


def _prepare(stack: Stack) -> None:
    stack.folder_of(f"store/{BUCKET}")  # a folder is a bucket
    kubectl.apply(stack, "store.yaml")


def _command(stack: Stack) -> Command:
    return Command(
        (
            stack.binary("versitygw"),
            f"--access={ACCESS_KEY}",
            f"--secret={SECRET_KEY}",
            f"--port={stack.address}:{PORT}",
            "posix",
            str(stack.folder_of("store")),
        )
    )


def _ports(stack: Stack) -> tuple[Address, ...]:
    return ((stack.address, PORT),)


def _ready(stack: Stack) -> bool:
    try:
        socket.create_connection((stack.address, PORT), timeout=1).close()
    except OSError:
        return False
    return True


STORE = Part(
    name="store",
    tier=Tier.ALL,
    after=("kube-apiserver",),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
)
