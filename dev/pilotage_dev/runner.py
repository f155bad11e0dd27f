"""Starts parts as soon as those they need are ready, watches them, stops them in the opposite order."""

from __future__ import annotations

import errno
import socket
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from pilotage_dev import process
from pilotage_dev.errors import StackError
from pilotage_dev.part import Address, Part, in_order
from pilotage_dev.process import Process
from pilotage_dev.stack import MARK, Stack

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_LINES = 15
PORT_WAIT = 20.0


class PartFailedError(StackError):
    """A part died, or did not become ready in its time."""

    def __init__(self, stack: Stack, part: Part, what: str) -> None:
        super().__init__(f"{part.name} {what}. {end_of_log(stack, part)}")


class Cancelled(Exception):  # noqa: N818 - no error: another part failed, and says so itself
    """Another part failed meanwhile."""


def end_of_log(stack: Stack, part: Part) -> str:
    """Return the last lines that a part wrote, and where the rest is."""
    log = stack.log(part.name)
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    tail = "\n".join(f"    {line}" for line in lines) or "    (it is empty)"
    return f"The end of {log}:\n{tail}"


def up(stack: Stack, parts: tuple[Part, ...], say: Callable[[str], None]) -> None:
    """Start all parts, those that do not need each other at the same time; return when all are ready."""
    began = time.monotonic()
    cancel = threading.Event()
    done: dict[str, Future[None]] = {}

    def run(part: Part) -> None:
        wait([done[name] for name in part.after])
        if cancel.is_set() or any(done[name].exception() for name in part.after):
            raise Cancelled
        try:
            seconds = _start(stack, part, cancel)
        except Exception:
            cancel.set()
            raise
        say(f"{time.monotonic() - began:6.1f} s  {part.name} ready ({seconds:.1f} s)")

    ordered = in_order(parts)
    with ThreadPoolExecutor(max_workers=len(ordered)) as pool:
        for part in ordered:
            done[part.name] = pool.submit(run, part)
        try:
            wait(done.values(), return_when=FIRST_EXCEPTION)
        except BaseException:
            cancel.set()
            raise
    failures = [failure for future in done.values() if (failure := future.exception())]
    for failure in failures:
        if not isinstance(failure, Cancelled):
            raise failure
    if dead := dead_parts(stack, parts):
        raise PartFailedError(stack, dead[0], "died after it was ready")


def _start(stack: Stack, part: Part, cancel: threading.Event) -> float:
    began = time.monotonic()
    for address in part.ports(stack):
        _wait_for_port(part, address, cancel)
    part.prepare(stack)
    running: Process | None = None
    if part.command is not None:
        mark = {MARK: str(stack.folder)}
        running = process.launch(part.command(stack), stack.folder_of(part.name), stack.log(part.name), mark)
        running.save(stack.pid_file(part.name))
    while not part.ready(stack):
        if running is not None and not running.alive():
            raise PartFailedError(stack, part, "died before it was ready")
        if time.monotonic() - began > part.within:
            raise PartFailedError(stack, part, f"was not ready within {part.within:.0f} s")
        if cancel.wait(0.1):
            raise Cancelled
    return time.monotonic() - began


def _wait_for_port(part: Part, address: Address, cancel: threading.Event) -> None:
    """Wait for a port that a process of an earlier stack may still be letting go of."""
    deadline = time.monotonic() + PORT_WAIT
    while not _free(address):
        if time.monotonic() > deadline:
            raise StackError(
                f"{part.name} needs {address[0]}:{address[1]}, which another process holds: "
                f"`ss -ltnp 'sport = :{address[1]}'` names it"
            )
        if cancel.wait(0.2):
            raise Cancelled


def _free(address: Address) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise StackError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error
    return True


def down(stack: Stack, parts: tuple[Part, ...], say: Callable[[str], None]) -> None:
    """Stop the parts, the last started first; what is already gone is no error."""
    for part in reversed(in_order(parts)):
        running = Process.read(stack.pid_file(part.name))
        if running is None and part.command is not None:
            continue
        part.stop(stack)
        if running is not None:
            process.end([running], part.grace)
            stack.pid_file(part.name).unlink(missing_ok=True)
            say(f"{part.name} stopped")


def dead_parts(stack: Stack, parts: tuple[Part, ...]) -> list[Part]:
    """Return the parts that were started and whose process is gone."""
    return [
        part
        for part in parts
        if (started := Process.read(stack.pid_file(part.name))) is not None and not started.alive()
    ]
