"""Which cluster Pilotage is shown and tested on: kind where there is Docker, the local stack elsewhere."""

from __future__ import annotations

import enum
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pilotage_dev import images, kind, machine, whole
from pilotage_dev.errors import StackError
from pilotage_dev.part import Tier
from pilotage_dev.parts import gateway, store

if TYPE_CHECKING:
    from pathlib import Path


class Choice(enum.StrEnum):
    """The two ways to have a cluster on one machine."""

    KIND = "kind"
    LOCAL = "local"


@dataclass(frozen=True)
class Chosen:
    """Which one, and the sentence that says why."""

    choice: Choice
    why: str


class Cluster(Protocol):
    """What a demonstration or a test asks of a cluster. URLs are as this machine reaches them."""

    gateway_url: str
    store_url: str

    def up(self) -> Path:
        """Bring it up and return its kubeconfig."""
        ...

    def load_image(self, image: images.Image) -> None:
        """Build an image as its files are now and make it known to the node."""
        ...

    def down(self) -> None:
        """Remove it."""
        ...


def choose_cluster() -> Chosen:
    """Choose kind where a Docker engine answers, else the local stack; say which and why."""
    if _docker_answers():
        if shutil.which("kind") is None:
            raise StackError(
                "a Docker engine answers, but kind is not installed: see https://kind.sigs.k8s.io/docs/user/quick-start/"
            )
        return Chosen(Choice.KIND, "kind, because a Docker engine answers")
    if lacking := machine.shortcoming():
        raise StackError(lacking)
    return Chosen(Choice.LOCAL, "the local stack, because no Docker engine answers")


def cluster(choice: Choice) -> Cluster:
    """Return the cluster of this kind."""
    return kind.Kind() if choice is Choice.KIND else Local()


class Local:
    """The local stack as a cluster."""

    gateway_url = f"http://127.0.0.1:{gateway.PORT}"
    store_url = f"http://{whole.STACK.address}:{store.PORT}"

    def up(self) -> Path:
        whole.up(Tier.ALL, print)
        return whole.STACK.kubeconfig

    def load_image(self, image: images.Image) -> None:
        images.load(whole.STACK, image, print)

    def down(self) -> None:
        whole.down(print)


def _docker_answers() -> bool:
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
