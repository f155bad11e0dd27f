"""A load tried in a process of its own, before this one: a file that crashes its library ends no worker.

The process is started anew and not forked, for workers have threads. It gets the model's bytes through a pipe, so
that an encrypted model stays in memory, and the same bytes are loaded afterwards.
"""

import fcntl
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile

_MIB = 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trial may take, beside what each byte of the model adds."""

    cpu_seconds: int = 30
    # CatBoost hangs where the first of its large reservations fits and the next does not, so this stops only what
    # no machine has; before that the pod's own limit ends the trial, and not the server.
    memory_bytes: int = 65536 * _MIB
    # Libraries read their own formats at more than 50 MiB a second, into less than eight times the size.
    bytes_per_second: int = 4 * _MIB
    memory_per_byte: int = 16

    def seconds(self, size: int) -> int:
        """Of the processor, for a model of that size."""
        return self.cpu_seconds + size // self.bytes_per_second

    def memory(self, size: int) -> int:
        """Bytes, for a model of that size."""
        return self.memory_bytes + size * self.memory_per_byte


# A pod may have a tenth of a processor.
_WALL_SECONDS_PER_CPU_SECOND = 10


class Trials:
    """Verdicts by the content's digest, in memory that several workers share: each content is tried once."""

    def __init__(self, descriptor: int | None = None, limits: Limits | None = None) -> None:
        self._descriptor = os.memfd_create("trials") if descriptor is None else descriptor
        self._limits = limits or Limits()

    def passed(
        self, file: ModelFile, library: str, meanwhile: Callable[[], object] = lambda: None
    ) -> ModelFile:
        """Give the file with the bytes that have passed; raise StartFailure where they have not.

        `meanwhile` is done while the other process starts.
        """
        content = file.path.read_bytes() if file.content is None else file.content
        digest = hashlib.sha256(file.format.encode() + b"\0" + content).hexdigest()
        with self._locked():
            verdict = self._known(digest)
            if verdict is None:
                verdict = _tried(file, content, library, self._limits, meanwhile)
                # What another try may change, such as too little memory in the pod, is not kept.
                if not verdict or verdict["reason"] != Reason.LOAD_FAILED:
                    os.write(self._descriptor, orjson.dumps([digest, verdict]) + b"\n")
        if verdict:
            message = f"{file.path.name} {verdict['message']}" if verdict["bare"] else verdict["message"]
            raise StartFailure(Stage(verdict["stage"]), Reason(verdict["reason"]), message)
        return replace(file, content=content)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Let one process at a time try; the kernel frees the lock of one that dies."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _known(self, digest: str) -> dict[str, Any] | None:
        lines = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0).splitlines()
        return next((verdict for known, verdict in map(orjson.loads, lines) if known == digest), None)


def _tried(
    file: ModelFile, content: bytes, library: str, limits: Limits, meanwhile: Callable[[], object]
) -> dict[str, Any]:
    """Try, and give the failure's fields; none where it went well."""
    began = time.perf_counter()
    seconds, memory = limits.seconds(len(content)), limits.memory(len(content))
    wall = seconds * _WALL_SECONDS_PER_CPU_SECOND
    command = [sys.executable, "-P", "-m", "pilotage_runtime.trial_process"]
    try:
        process = subprocess.Popen(
            [*command, file.format, file.path.name, str(seconds), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return _failed(Reason.LOAD_FAILED, f"could not be tried in a process of its own: {error}")
    with process:
        try:
            meanwhile()
            answer, _ = process.communicate(content, timeout=wall)
        except subprocess.TimeoutExpired:
            return _failed(Reason.LOAD_FAILED, f"keeps {library} busy for more than {wall} s")
        finally:
            process.kill()
    logger.info(
        "tried in a process of its own",
        extra={"file": file.path.name, "seconds": round(time.perf_counter() - began, 3)},
    )
    status = process.returncode
    if status == -signal.SIGXCPU:
        return _failed(
            Reason.INVALID_MODEL, f"keeps {library} busy for more than {seconds} s of processor time"
        )
    if status == -signal.SIGKILL:
        return _failed(
            Reason.LOAD_FAILED, f"was being tried with {library} when SIGKILL came, as it does without memory"
        )
    if status < 0:
        return _failed(Reason.INVALID_MODEL, f"crashes {library} ({_signal_name(-status)})")
    if status > 0:
        return _failed(Reason.INVALID_MODEL, f"ends {library} with exit status {status}")
    return orjson.loads(answer)


def _failed(reason: Reason, message: str) -> dict[str, Any]:
    # Without the file's name, which two files of one content do not share.
    return {"stage": Stage.LOAD, "reason": reason, "message": message, "bare": True}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
