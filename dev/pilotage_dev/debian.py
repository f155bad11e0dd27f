"""The base image, made from Debian's packages: the same name as the registry's, so Dockerfiles stay as they are."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from typing import TYPE_CHECKING

from pilotage_dev import paths
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REFERENCE = "docker.io/library/python:3.11-slim-bookworm"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
LEFT_OUT = ("./var/cache/apt/*", "./var/lib/apt/lists/*", "./usr/share/doc/*", "./usr/share/man/*")


def key() -> str:
    """Change when anything changes that the base is made from."""
    return hashlib.sha256(repr((SUITE, PACKAGES, LEFT_OUT)).encode()).hexdigest()[:16]


def archive(say: Callable[[str], None]) -> Path:
    """Return the base's root file system as a tar file, made once."""
    made = paths.cache() / "images" / f"debian-{key()}.tar"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    root = made.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    say("making the base image from Debian's packages (about a minute, once) …")
    log = made.with_suffix(".log")
    with log.open("w") as output:
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise StackError(f"debootstrap failed; the end of {log}:\n{log.read_text()[-1500:]}")
    unfinished = made.with_suffix(".unfinished")
    excluded = [f"--exclude={pattern}" for pattern in LEFT_OUT]
    subprocess.run(
        ["tar", "--create", "--numeric-owner", f"--file={unfinished}", f"--directory={root}", *excluded, "."],
        check=True,
    )
    shutil.rmtree(root)
    unfinished.rename(made)
    return made
