"""Downloads in parts: several at a time, each of one version of its file, going on where an earlier try stopped.

A file's parts are all of the version that the listing named (the store refuses any other, or says that it
gives another), so that a file overwritten in the middle is never put together from two contents.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources.checksum import Checksum
from pilotage_runtime.sources.transfer import Transfer

PART_BYTES = 8 << 20


class VersionChangedError(Exception):
    """The store holds another version of a file than the one that was listed."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the model in its store."""

    name: str
    """Its name in the model's folder."""
    key: str
    """What the store calls it."""
    size: int | None
    version: str | None
    """What the store never says of two contents, such as a strong ETag. Without it, or without a size, the file comes
    in one piece, and comes anew after it broke off."""

    @property
    def in_parts(self) -> bool:
        return bool(self.version) and self.size is not None


class Store(Protocol):
    """One place that holds models; both reading methods are called from several threads."""

    def files(self) -> list[RemoteFile]:
        """List the model's files, or raise StartFailure."""
        ...

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterable[bytes]:
        """Give the bytes from `start` to before `end` of that version; raise VersionChangedError on another."""
        ...

    def checksum(self, file: RemoteFile) -> Checksum | None:
        """Say what the store knows the whole file to sum up to, if anything."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    file: RemoteFile
    path: Path
    start: int
    end: int | None


class InParts:
    """The source of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def download(self, into: Path, transfer: Transfer) -> None:
        """Bring every part that is not there yet, then compare each file with the store's checksum."""
        try:
            files = self._store.files()
            if transfer.journal:
                transfer.journal.keep({file.name for file in files})
                transfer.journal.trim(into)
            for file in files:
                transfer.expect(file.size or 0)
            paths = {file: transfer.target(into, file.name) for file in files}
            parts = [part for file, path in paths.items() for part in _missing(file, path, transfer)]
            _at_once(transfer.parallel, [self._bringing(part, transfer) for part in parts])
            _at_once(transfer.parallel, [self._checking(*pair, transfer) for pair in paths.items()])
        finally:
            self._store.close()

    def _bringing(self, part: _Part, transfer: Transfer) -> "_Work":
        return lambda stopped: self._bring(part, transfer, stopped)

    def _bring(self, part: _Part, transfer: Transfer, stopped: threading.Event) -> None:
        file, at = part.file, part.start
        try:
            # Buffered: an unbuffered write to a full disk may be short, and fails only the next time.
            with part.path.open("r+b") as target:
                target.seek(at)
                for chunk in self._store.read(file, part.start, part.end):
                    if stopped.is_set():
                        return
                    at += len(chunk)
                    transfer.add(len(chunk))
                    target.write(chunk)
        except VersionChangedError as error:
            raise _changed(file, transfer) from error
        expected = file.size if part.end is None else part.end
        if expected is not None and at != expected:
            raise _failure(
                Reason.TRUNCATED,
                f"{file.name}: {expected - part.start} bytes were asked for, {at - part.start} came",
            )
        if file.in_parts and transfer.journal:
            transfer.journal.note(file.name, part.start)

    def _checking(self, file: RemoteFile, path: Path, transfer: Transfer) -> "_Work":
        return lambda _: self._check(file, path, transfer)

    def _check(self, file: RemoteFile, path: Path, transfer: Transfer) -> None:
        try:
            stated = self._store.checksum(file)
        except VersionChangedError as error:
            raise _changed(file, transfer) from error
        if stated is None or stated.fits(path):
            return
        if transfer.journal:
            transfer.journal.forget(file.name)
        raise _failure(
            Reason.TRUNCATED,
            f"{file.name} arrived damaged: its {stated.algorithm} is not {stated.value.hex()}, which the store states",
        )


_Work = Callable[[threading.Event], None]


def _missing(file: RemoteFile, path: Path, transfer: Transfer) -> Iterator[_Part]:
    """Cut a file into parts, and leave out those that an earlier try has brought."""
    if file.size is None or not file.in_parts:
        path.unlink(missing_ok=True)
        path.touch()
        yield _Part(file, path, 0, None)
        return
    done: set[int] = set()
    if transfer.journal:
        done = transfer.journal.resume(file.name, file.version or "", file.size)
    if not done:
        path.unlink(missing_ok=True)
        path.touch()
    for start in range(0, file.size, PART_BYTES):
        end = min(start + PART_BYTES, file.size)
        if start in done:
            transfer.already_there(end - start)
        else:
            yield _Part(file, path, start, end)


def _at_once(threads: int, work: list[_Work]) -> None:
    """Do all of it, several at a time; the first failure stops the rest.

    The threads are daemons: a signal that ends the process waits for no store.
    """
    waiting: queue.SimpleQueue[_Work] = queue.SimpleQueue()
    for each in work:
        waiting.put(each)
    failures: list[BaseException] = []
    stopped = threading.Event()

    def run() -> None:
        while not stopped.is_set():
            try:
                each = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                each(stopped)
            except BaseException as error:  # noqa: BLE001 - it is raised again, where the work was given
                failures.append(error)
                stopped.set()

    running = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, len(work)))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]


def _changed(file: RemoteFile, transfer: Transfer) -> StartFailure:
    if transfer.journal:
        transfer.journal.forget(file.name)
    return _failure(
        Reason.TRUNCATED, f"{file.name} was overwritten in its store while it was read; it is read anew"
    )


def _failure(reason: Reason, message: str) -> StartFailure:
    return StartFailure(Stage.DOWNLOAD, reason, message)
