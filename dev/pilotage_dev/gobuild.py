"""Builds the Go parts from pinned modules into a cache keyed by what they are built from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pilotage_dev import paths
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

MODULES = paths.REPOSITORY / "dev" / "go"


@dataclass(frozen=True)
class Binary:
    """One program of a Go module: the package it is built from and how."""

    name: str
    package: str
    tags: tuple[str, ...]
    ldflags: str


@dataclass(frozen=True)
class SourceFile:
    """A file or folder of a Go module that the stack needs beside the programs: CRDs."""

    name: str
    module: str
    path: str


@dataclass(frozen=True)
class Module:
    """A folder with go.mod, go.sum and build.toml; the last names what is built."""

    folder: Path
    binaries: tuple[Binary, ...]
    files: tuple[SourceFile, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def key(self) -> str:
        """Changes whenever anything changes that a binary of this module is built from."""
        digest = hashlib.sha256()
        for file in sorted(self._sources()):
            digest.update(f"{file.relative_to(self.folder)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def _sources(self) -> list[Path]:
        fixed = [self.folder / name for name in ("go.mod", "go.sum", "build.toml")]
        # A module without requirements has no go.sum.
        return [file for file in fixed if file.exists()] + list(self.folder.rglob("*.go"))

    @property
    def output(self) -> Path:
        return paths.cache() / "go" / f"{self.name}-{self.key}"


def load(folder: Path) -> Module:
    """Read a module's build.toml; stamped variables take their versions from go.mod."""
    declared = tomllib.loads((folder / "build.toml").read_text())
    versions = _versions((folder / "go.mod").read_text())
    stamps = [f"-X {variable}={versions[module]}" for variable, module in declared["stamps"].items()]
    ldflags = " ".join([declared["ldflags"], *stamps])
    binaries = tuple(
        Binary(item["name"], item["package"], tuple(item.get("tags", ())), ldflags)
        for item in declared["binary"]
    )
    files = tuple(SourceFile(item["name"], item["module"], item["path"]) for item in declared.get("file", ()))
    return Module(folder, binaries, files)


def _versions(go_mod: str) -> dict[str, str]:
    words = (line.removeprefix("require ").split() for line in go_mod.splitlines())
    return {found[0]: found[1] for found in words if len(found) >= 2 and found[1].startswith("v")}


@cache
def modules() -> tuple[Module, ...]:
    """Return all modules, the one that most things wait for last, because it takes longest."""
    found = [load(file.parent) for file in MODULES.glob("*/build.toml")]
    return tuple(sorted(found, key=lambda module: (len(module.binaries), module.name)))


def binary(name: str) -> Path:
    """Return the path of a built program of the clone's own pinned version."""
    for module in modules():
        if any(each.name == name for each in module.binaries):
            return module.output / "bin" / name
    known = sorted(each.name for module in modules() for each in module.binaries)
    raise StackError(f"no Go part is called {name!r}; known are {', '.join(known)}")


def source_file(name: str) -> Path:
    """Return the path of a file or folder of a pinned module, taken from there if it was not yet."""
    for module in modules():
        for each in module.files:
            if each.name != name:
                continue
            taken = module.output / "share" / name
            if not taken.exists():
                _require_go()
                with _one_builder(print):
                    _take(module, each)
            return taken
    raise StackError(f"no build.toml under {MODULES} takes a file called {name!r}")


def missing(names: Sequence[str] | None = None) -> list[tuple[Module, Binary]]:
    """Return what has to be built yet, of the named programs or of all."""
    return [
        (module, each)
        for module in modules()
        for each in module.binaries
        if (names is None or each.name in names) and not (module.output / "bin" / each.name).exists()
    ]


def build(names: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Build what is missing, one program at a time: an interrupted build resumes where it was."""
    if not missing(names):
        _link(names)
        return
    _require_go()
    with _one_builder(say):
        todo = missing(names)
        for number, (module, each) in enumerate(todo, start=1):
            say(f"building {each.name} ({number} of {len(todo)}) …")
            began = time.monotonic()
            _build(module, each)
            say(f"built {each.name} in {time.monotonic() - began:.0f} s ({number} of {len(todo)})")
    _link(names)


def _build(module: Module, each: Binary) -> None:
    folder = module.output / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{each.name}.unfinished"
    tags = [f"-tags={','.join(each.tags)}"] if each.tags else []
    _go(
        module.folder, "build", "-trimpath", *tags, f"-ldflags={each.ldflags}", "-o", str(unfinished), each.package
    )  # fmt: skip
    for file in module.files:
        _take(module, file)
    unfinished.rename(folder / each.name)


def _take(module: Module, file: SourceFile) -> None:
    taken = module.output / "share" / file.name
    if taken.exists():
        return
    listed = json.loads(_go(module.folder, "mod", "download", "-json", file.module))
    source = Path(listed["Dir"]) / file.path
    unfinished = taken.with_name(f".{file.name}.unfinished")
    taken.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        # Go's module cache is read-only; a copy that is may not be replaced later.
        shutil.copytree(source, unfinished, copy_function=shutil.copyfile)
        unfinished.chmod(0o755)
    else:
        shutil.copyfile(source, unfinished)
    unfinished.rename(taken)


def _go(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
    }
    done = subprocess.run(
        ["nice", "go", *arguments],
        cwd=folder,
        env=environment,
        check=False,
        text=True,
        capture_output=True,
    )
    if done.returncode != 0:
        raise StackError(f"go {arguments[0]} failed in {folder}:\n{done.stderr[-4000:]}")
    return done.stdout


def _require_go() -> None:
    if shutil.which("go") is None:
        wanted = next(
            line.split()[1]
            for line in (MODULES / "stack" / "go.mod").read_text().splitlines()
            if line.startswith("go ")
        )
        raise StackError(
            f"Go {wanted} or newer builds the local stack and is not on PATH: see https://go.dev/dl/"
        )


@contextmanager
def _one_builder(say: Callable[[str], None]) -> Generator[None]:
    """Let a second builder wait for the first and then find its work done."""
    lock = paths.cache() / "go" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process builds the Go parts; waiting for it …")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _link(names: Sequence[str] | None) -> None:
    """Keep one folder with every program, for people and for tests that need a path that stays."""
    folder = paths.cache() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for module in modules():
        for each in module.binaries:
            target = module.output / "bin" / each.name
            link = folder / each.name
            if (names is not None and each.name not in names) or not target.exists():
                continue
            if link.is_symlink() and link.readlink() == target:
                continue
            fresh = folder / f".{each.name}.{os.getpid()}"
            fresh.symlink_to(target)
            fresh.rename(link)
