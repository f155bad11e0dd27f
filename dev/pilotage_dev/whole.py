"""The whole stack: its parts, and how it comes up, goes down and tells how it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pilotage_dev import gobuild, images, leftovers, lock, machine, npm, runner
from pilotage_dev.part import Part, Tier
from pilotage_dev.parts.apiserver import APISERVER
from pilotage_dev.parts.containerd import CONTAINERD
from pilotage_dev.parts.controller_manager import CONTROLLER_MANAGER
from pilotage_dev.parts.coredns import COREDNS
from pilotage_dev.parts.etcd import ETCD
from pilotage_dev.parts.gateway import GATEWAY
from pilotage_dev.parts.images import IMAGES
from pilotage_dev.parts.istiod import ISTIOD
from pilotage_dev.parts.kube_proxy import KUBE_PROXY
from pilotage_dev.parts.kubelet import KUBELET
from pilotage_dev.parts.metrics_server import METRICS_SERVER
from pilotage_dev.parts.monitoring import MONITORING
from pilotage_dev.parts.network import NETWORK
from pilotage_dev.parts.prometheus_operator import PROMETHEUS_OPERATOR
from pilotage_dev.parts.scheduler import SCHEDULER
from pilotage_dev.parts.store import STORE
from pilotage_dev.process import Process
from pilotage_dev.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path

PARTS: tuple[Part, ...] = (
    NETWORK,
    ETCD,
    APISERVER,
    CONTROLLER_MANAGER,
    SCHEDULER,
    CONTAINERD,
    KUBELET,
    KUBE_PROXY,
    COREDNS,
    IMAGES,
    METRICS_SERVER,
    STORE,
    ISTIOD,
    GATEWAY,
    PROMETHEUS_OPERATOR,
    MONITORING,
)
STACK = Stack()
# What a part of the stack needs; the whole needs every program.
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
IMAGES_OF: dict[Tier, tuple[images.Image, ...]] = {
    Tier.CONTROL_PLANE: (),
    Tier.NODE: (images.PAUSE,),
    Tier.ALL: images.IMAGES,
}

Say = Callable[[str], None]


def parts_of(tier: Tier) -> tuple[Part, ...]:
    """Return the parts up to a tier."""
    return tuple(part for part in PARTS if part.tier <= tier)


def build(tier: Tier, say: Say) -> None:
    """Make everything that takes long and outlives the stack: packages, programs, images."""
    machine.install_packages(say)
    gobuild.build(CONTROL_PLANE if tier is Tier.CONTROL_PLANE else None, say)
    if tier is Tier.ALL:
        npm.install(say)
    for image in IMAGES_OF[tier]:
        images.build(image, say)


def up(tier: Tier, say: Say) -> None:
    """Bring the stack up anew; what an earlier one left, down or killed, is removed first."""
    machine.require_root()
    with lock.held():
        lock.claim()
        build(tier, say)
        began = time.monotonic()
        leftovers.clean(STACK)
        STACK.folder.mkdir(parents=True, exist_ok=True)
        _tier_file().write_text(tier.name)
        for log in (STACK.folder / "log").glob("*"):
            log.unlink()
        try:
            runner.up(STACK, parts_of(tier), say)
        except BaseException:
            say(
                "the stack did not come up; what runs of it stays for you to look at, `dev/dev down` removes it"
            )
            raise
        say(f"the stack is up after {time.monotonic() - began:.0f} s: export KUBECONFIG={STACK.kubeconfig}")


def down(say: Say) -> None:
    """Stop everything and leave nothing but the logs."""
    machine.require_root()
    with lock.held():
        lock.claim()
        runner.down(STACK, PARTS, say)
        leftovers.clean(STACK)
        lock.release()
    say("the stack is down")


def status(say: Say) -> bool:
    """Say how each part is; tell whether all that was started lives and is ready."""
    owner = lock.owner()
    if owner is None:
        say("no stack is up on this machine")
        return False
    say(f"stack of {owner}")
    well = True
    for part in parts_of(Tier[_tier_file().read_text()] if _tier_file().exists() else Tier.ALL):
        process = Process.read(STACK.pid_file(part.name))
        if part.command is not None and process is None:
            well = False
            say(f"  {part.name:<24} not started")
        elif process is not None and not process.alive():
            well = False
            say(f"  {part.name:<24} died. {runner.end_of_log(STACK, part)}")
        elif part.ready(STACK):
            say(f"  {part.name:<24} ready{f' (pid {process.pid})' if process else ''}")
        else:
            well = False
            say(f"  {part.name:<24} not ready")
    return well


def _tier_file() -> Path:
    return STACK.folder / "tier"
