"""The command line as people run it: real processes, real servers, a real terminal where that matters."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime.conftest import ROOT, environment, models

__all__ = ["models"]
COMMAND = (sys.executable, "-m", "pilotage_cli")


def surroundings(home: Path, **more: str) -> dict[str, str]:
    """The environment of a person who has never run this."""
    return {
        **environment(),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "cli"), str(ROOT / "runtime"), str(ROOT / "operator")]),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home),
        "no_proxy": "*",
        **more,
    }


class Terminal:
    """Runs commands; what still runs at the end is ended."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[Running] = []

    def run(self, *arguments: Any, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=surroundings(self.home, **more),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: Any, terminal: bool = False, columns: int = 120, **more: str) -> Running:
        running = Running(
            [*COMMAND, *map(str, arguments)], surroundings(self.home, **more), self.home, terminal, columns
        )
        self.started.append(running)
        return running

    def serve(self, *arguments: Any, **more: Any) -> Running:
        """Serve on a free port, and wait for the last line of the banner."""
        running = self.start("serve", *arguments, "--port", "0", **more)
        running.wait_for("Ctrl-C stops it")
        return running

    def end(self) -> None:
        for running in self.started:
            running.end()


class Running:
    """A command that goes on running, with all that it has printed."""

    def __init__(
        self, command: list[str], env: dict[str, str], cwd: Path, terminal: bool, columns: int = 120
    ) -> None:
        self._ours, theirs = pty.openpty() if terminal else os.pipe()
        if terminal:
            env = {**env, "TERM": "xterm-256color", "COLUMNS": str(columns)}
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509 - the child is ours, and simple
        )
        os.close(theirs)
        self._text = ""
        # Read as it comes: a full pipe would stop the server.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._ours, 1 << 16)
            except OSError:  # a terminal whose last user has gone
                return
            if not chunk:
                return
            self._text += chunk.decode(errors="replace")

    @property
    def text(self) -> str:
        """What it printed, without colours and with a terminal's line ends undone."""
        if self.process.poll() is not None:
            self._reader.join(5)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._text).replace("\r\n", "\n")

    def wait_for(self, words: str, seconds: float = 40) -> str:
        until = time.monotonic() + seconds
        while words not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.05)
        return self.text

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    @property
    def curl(self) -> str:
        return next(line for line in self.text.splitlines() if line.startswith("curl "))

    @property
    def url(self) -> str:
        return re.search(r"http://[\d.]+:\d+", self.curl)[0]  # pyright: ignore[reportOptionalSubscript]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", trust_env=False, timeout=20)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self._reader.join(5)
        os.close(self._ours)


def _take_terminal() -> None:
    """Make the terminal this session's own, so that its keys become signals."""
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def paste(line: str) -> tuple[int, str]:
    """Give a line to a shell as a person would, and tell the answer's status and body."""
    done = subprocess.run(
        ["bash", "-c", f"{line} -w '\\n%{{http_code}}'"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    home = tmp_path / "home"
    home.mkdir()
    terminal = Terminal(home)
    yield terminal
    terminal.end()
