"""The bridge that the pods hang on. It carries the API server's address; it bears a mark that it is ours."""

from __future__ import annotations

import json
import subprocess

from pilotage_dev.errors import StackError
from pilotage_dev.stack import BRIDGE, SERVICE_CIDR, Stack

ALIAS = "pilotage-dev"


def create(stack: Stack) -> None:
    """Make the bridge. Service addresses without a rule end on it, and so never leave the machine."""
    if _link() is not None:
        raise StackError(
            f"the network interface {BRIDGE} exists and was not made by this stack: another Kubernetes "
            f"runs here, or ran. Stop it, then remove the interface with `ip link delete {BRIDGE}`"
        )
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("link", "set", BRIDGE, "alias", ALIAS)
    _ip("address", "add", f"{stack.address}/16", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    _ip("route", "add", SERVICE_CIDR, "dev", BRIDGE)


def remove() -> None:
    """Delete the bridge and what hangs on it, if it is ours."""
    link = _link()
    if link is None or link.get("ifalias") != ALIAS:
        return
    for port in _links("master", BRIDGE):
        # It may vanish by itself meanwhile: the kernel deletes a pair with its network namespace.
        subprocess.run(["ip", "link", "delete", port["ifname"]], capture_output=True, check=False)
    _ip("link", "delete", BRIDGE)


def is_ours() -> bool:
    """Tell whether the bridge is there and was made by this program."""
    link = _link()
    return link is not None and link.get("ifalias") == ALIAS


def _link() -> dict[str, str] | None:
    return next((link for link in _links() if link["ifname"] == BRIDGE), None)


def _links(*selection: str) -> list[dict[str, str]]:
    listed = subprocess.run(
        ["ip", "-json", "link", "show", *selection], capture_output=True, text=True, check=False
    ).stdout
    return [link for link in json.loads(listed or "[]") if link]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StackError(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")
