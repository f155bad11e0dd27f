"""Processes that outlive the program that started them, told from later ones with the same number."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Command:
    """What to run: the program with its arguments, and what it finds in its environment."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Process:
    """A process by number and start time: the number alone may have been given to another since."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the living process with this number."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started)

    @classmethod
    def read(cls, file: Path) -> Process | None:
        """Return the process that the file names; None where it names none."""
        try:
            saved = json.loads(file.read_text())
            return cls(int(saved["pid"]), int(saved["started"]))
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"pid": self.pid, "started": self.started}))

    def alive(self) -> bool:
        _reap(self.pid)
        return _start_time(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def launch(command: Command, folder: Path, log: Path, mark: dict[str, str]) -> Process:
    """Start a process in a session of its own: it lives on when the caller ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command.arguments,
            cwd=folder,
            env={**os.environ, **command.environment, **mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child.returncode = 0  # ours to reap by number, not Popen's to warn about
    return Process.of(child.pid) or Process(child.pid, -1)


def end(processes: Iterable[Process], grace: float) -> None:
    """Ask the processes to end, and make those end that have not after the grace (seconds)."""
    asked = [each for each in processes if each.alive()]
    for each in asked:
        each.send(signal.SIGTERM)
    _wait(asked, grace)
    for each in asked:
        each.send(signal.SIGKILL)
    _wait(asked, 10)


def _wait(processes: list[Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(each.alive() for each in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def marked(name: str) -> list[tuple[Process, str]]:
    """Return every process that has this environment variable, with its value."""
    start = f"{name}=".encode()
    found: list[tuple[Process, str]] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or not ours to look at
        value = next((each for each in variables if each.startswith(start)), None)
        if value is not None and (process := Process.of(int(folder.name))):
            found.append((process, os.fsdecode(value.removeprefix(start))))
    return found


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat; None for what is gone or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
