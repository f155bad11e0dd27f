"""The cgroup under which all pods of the stack run: whatever is in it is ours."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from pilotage_dev.process import Process

ROOT = Path("/sys/fs/cgroup")
NAME = "pilotage-dev"


def _hierarchies() -> list[Path]:
    """Return the mount points of the controllers (version 1), or the one of version 2."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [folder for folder in ROOT.iterdir() if (folder / "cgroup.procs").exists()]


def create() -> None:
    for hierarchy in _hierarchies():
        (hierarchy / NAME).mkdir(exist_ok=True)


def processes() -> list[Process]:
    """Return every process of every pod."""
    found: set[int] = set()
    for hierarchy in _hierarchies():
        for file in (hierarchy / NAME).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # the pod went meanwhile
                found.update(int(line) for line in file.read_text().split())
    return [process for pid in found if (process := Process.of(pid))]


def remove(seconds: float = 10) -> None:
    """End every process of every pod at once, then delete the cgroups."""
    deadline = time.monotonic() + seconds
    while (left := processes()) and time.monotonic() < deadline:
        for each in left:
            each.send(signal.SIGKILL)
        time.sleep(0.05)
    for hierarchy in _hierarchies():
        top = hierarchy / NAME
        for folder, _, _ in os.walk(top, topdown=False):
            _remove_folder(Path(folder), deadline)


def _remove_folder(folder: Path, deadline: float) -> None:
    """Remove a cgroup; the kernel calls it busy for a moment after its last process ended."""
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
