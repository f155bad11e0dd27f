"""Removes what a stack leaves behind, after `down` and before `up`: it may have been killed at any moment.

Nothing is removed that the stack did not make: processes bear its mark, pods run in its cgroup, mounts
lie in its folder, the bridge has its alias, and rules are taken for its own only while its folder says so.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pilotage_dev import bridge, cgroups, iptables, kernel, process
from pilotage_dev.errors import StackError
from pilotage_dev.stack import MARK

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

CNI_RESULTS = Path("/var/lib/cni/results")
CONTAINER_LOGS = Path("/var/log/containers")
NETWORK = "pilotage-dev"
# Kept when a stack goes down: to look at afterwards.
KEPT = ("log",)


def clean(stack: Stack) -> None:
    """Remove processes, pods, mounts, network and files of the stack, whatever state they are in."""
    process.end([each for each, folder in process.marked(MARK) if folder == str(stack.folder)], grace=3)
    cgroups.remove()
    _unmount(stack)
    bridge.remove()
    if _rules_are_ours(stack).exists():
        iptables.remove()
        _rules_are_ours(stack).unlink()
    kernel.restore(stack)
    _remove_files(stack)


def claim_rules(stack: Stack) -> None:
    """Note that the node's iptables rules from now on are this stack's; refuse if another's are there."""
    if iptables.present():
        raise StackError(
            "another Kubernetes has its rules (KUBE-… or CNI-…) in iptables on this machine: stop it and "
            "restart the machine, or flush those chains, then run this again"
        )
    _rules_are_ours(stack).touch()


def mounts_below(folder: Path, mounts: str) -> list[Path]:
    """Return the mount points at or below the folder, the deepest first, from the text of /proc/mounts."""
    points = [Path(_unescape(line.split()[1])) for line in mounts.splitlines() if line]
    inside = [point for point in points if point.is_relative_to(folder)]
    inside.reverse()  # of two mounts on one point the later lies on top, and has to go first
    return sorted(inside, key=lambda point: -len(point.parts))


def _unescape(field: str) -> str:
    r"""Undo the kernel's \040 for a blank and the like."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _rules_are_ours(stack: Stack) -> Path:
    return stack.folder / "rules-are-ours"


def _unmount(stack: Stack) -> None:
    deadline = time.monotonic() + 10
    while points := mounts_below(stack.folder, Path("/proc/mounts").read_text()):
        for point in points:
            subprocess.run(["umount", str(point)], capture_output=True, check=False)
        if not mounts_below(stack.folder, Path("/proc/mounts").read_text()):
            return
        if time.monotonic() > deadline:
            # Detached, it goes as soon as its last user does.
            for point in points:
                subprocess.run(["umount", "--lazy", str(point)], capture_output=True, check=False)
            return
        time.sleep(0.1)


def _remove_files(stack: Stack) -> None:
    for result in CNI_RESULTS.glob(f"{NETWORK}-*"):
        result.unlink(missing_ok=True)
    pods = stack.folder / "pod-logs"
    for link in CONTAINER_LOGS.glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(pods):
            link.unlink()
    if stack.folder.is_dir():
        for entry in stack.folder.iterdir():
            if entry.name in KEPT:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    for folder in (CNI_RESULTS, CONTAINER_LOGS):
        with contextlib.suppress(OSError):  # not there, or others have something in it
            folder.rmdir()
