"""What the local stack asks of the machine: root, Debian's packages, no other Kubernetes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = (
    "buildah",
    "containernetworking-plugins",
    "debootstrap",
    "iproute2",
    "iptables",
    "prometheus-alertmanager",
    "runc",
)
# No part of the stack: what the tests of the runtime's page look at it with.
BROWSER = "chromium"
# While it is there, Debian starts none of the daemons that it installs.
POLICY = Path("/usr/sbin/policy-rc.d")


def require_root() -> None:
    """Stop with a sentence if the caller may not make network namespaces and mounts."""
    if os.geteuid() != 0:
        raise StackError(
            "the local stack makes network namespaces, mounts and iptables rules and so needs root: "
            "run the same command with sudo, or start a Docker engine and Pilotage uses kind instead"
        )


def shortcoming() -> str | None:
    """Return what this machine lacks for the local stack and how to get it; None if it lacks nothing."""
    if os.uname().sysname != "Linux" or shutil.which("apt-get") is None:
        return (
            "the local stack installs runc and more with apt-get on Debian or Ubuntu, "
            "which this system is not: start a Docker engine (https://docs.docker.com/engine/install/) "
            "and Pilotage uses kind instead"
        )
    return None


def install_packages(say: Callable[[str], None]) -> None:
    """Install those of Debian's packages that are missing, and start none of their daemons."""
    missing = [name for name in PACKAGES if not _installed(name)]
    if missing:
        require_root()
        _install(missing, say)


def install_browser(say: Callable[[str], None]) -> None:
    """Install a browser for the tests; without one they say so, and the rest goes on."""
    if shutil.which(BROWSER) is not None:
        return
    try:
        _install([BROWSER], say)
    except StackError as error:
        say(f"no browser for the tests of the runtime's page: {error}")


def _install(missing: list[str], say: Callable[[str], None]) -> None:
    say(f"installing from Debian: {' '.join(missing)}")
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", *missing)
    finally:
        if ours:
            POLICY.unlink()


def _installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


def _apt(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"apt-get {arguments[0]} failed:\n{done.stderr[-2000:]}")
