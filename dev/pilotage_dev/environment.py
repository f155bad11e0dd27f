"""Python environments of their own, for what may not share the project's: clients and servers of others."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

from pilotage_dev import paths

if TYPE_CHECKING:
    from pathlib import Path


def binaries(pins: Path) -> Path:
    """Give the folder of an environment's programs; it has exactly the packages that the file pins, and is made once.

    Raises subprocess.CalledProcessError where a package cannot be installed.
    """
    key = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = paths.cache() / "environments" / f"{pins.stem}-{key}"
    mark = folder / "complete"  # a half-made one has none
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not mark.exists():
            uv, python = paths.cache() / "uv" / "bin" / "uv", folder / "bin" / "python"
            subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            subprocess.run(
                [uv, "pip", "install", "--quiet", "--python", python, "--requirement", pins], check=True
            )
            mark.touch()
    return folder / "bin"
