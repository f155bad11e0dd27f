"""Kernel settings that the node changes: remembered as they were and put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

# What the bridge plugin, kubelet and kube-proxy set as they start.
SETTINGS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
)


def remember(stack: Stack) -> None:
    """Save the settings; those of a stack that was killed are the ones to go back to."""
    if not _file(stack).exists():
        values = {name: _setting(name).read_text().strip() for name in SETTINGS if _setting(name).exists()}
        _file(stack).write_text(json.dumps(values))


def restore(stack: Stack) -> None:
    """Put the settings back as they were before the stack came up."""
    if not _file(stack).exists():
        return
    for name, value in json.loads(_file(stack).read_text()).items():
        if _setting(name).read_text().strip() != value:
            _setting(name).write_text(value)
    _file(stack).unlink()


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name


def _file(stack: Stack) -> Path:
    return stack.folder / "kernel-settings.json"
