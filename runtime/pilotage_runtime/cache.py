"""A folder on the node in which pods leave what they fetched for the next one.

CACHE_DIR/objects/HEX/…     a model's files, under the digest that they have; appears whole, by a rename
CACHE_DIR/incoming/RANDOM/… being written, or being removed
CACHE_DIR/turns/HEX         locked by the pod that is fetching this model just now

Every pod that has the folder can write to it, so nothing in it is believed: files are copied, the copy is
hashed, and only a copy with the wanted digest is used. That is why nothing is linked or served in place, and why
the cache is asked for a digest and never for a URI. Locks are the kernel's (flock), which end with their process:
a crash leaves nothing but a folder in incoming/, and the next pod removes it. Whatever fails here is told in the
log, and the model is fetched as if there were no cache.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from pilotage_runtime.digest import digest
from pilotage_runtime.sources.transfer import CHUNK_BYTES, MAX_FILES

_POLL_SECONDS = 0.2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A pipe or a device in the place of a file would block, or worse, when it is opened.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

logger = logging.getLogger(__name__)


class Cache:
    """The node's shared folder, bounded by size; what was used longest ago goes first."""

    def __init__(self, folder: Path, max_bytes: int, wait_seconds: float) -> None:
        self._objects, self._incoming, self._turns = (
            folder / name for name in ("objects", "incoming", "turns")
        )
        self._max_bytes = max_bytes
        self._wait_seconds = wait_seconds

    @contextmanager
    def turn(self, wanted: str, sleep: Callable[[float], object] = time.sleep) -> Generator[None]:
        """Wait while another pod fetches the same model, but not for ever: then both fetch it."""
        with contextlib.ExitStack() as held:
            try:
                self._make_folders()
                lock = _open_lock(self._turns / _hex(wanted), held)
                until = time.monotonic() + self._wait_seconds
                while not _lock(lock, fcntl.LOCK_EX):
                    if time.monotonic() >= until:
                        logger.warning(
                            "another pod still fetches the model; it is fetched here too",
                            extra={"digest": wanted},
                        )
                        break
                    sleep(_POLL_SECONDS)
            except OSError as error:
                _tell("cannot be used", error)
            yield

    def take(self, wanted: str, into: Path, limit: int) -> bool:
        """Copy the model into an empty folder; False, and the folder empty, unless the copy has the digest."""
        try:
            with self._held(self._objects / _hex(wanted), fcntl.LOCK_SH) as folder:
                if folder is None:
                    return False
                with contextlib.suppress(OSError):
                    os.utime(folder)
                _copy_out(folder, into, limit)
                found = digest(into)
        except OSError as error:
            _tell("cannot be read", error)
            _empty(into)
            return False
        if found == wanted:
            return True
        logger.warning(
            "the node's cache holds other content than its name says; it is removed", extra={"digest": wanted}
        )
        _empty(into)
        with contextlib.suppress(OSError):
            self._remove(self._objects / _hex(wanted))
        return False

    def put(self, files: Path, found: str) -> None:
        """Leave a copy of the files, whose digest has been computed, for other pods."""
        size = _size(files)
        if size > self._max_bytes:
            logger.info("the model is larger than the node's cache", extra={"bytes": size})
            return
        try:
            self._make_folders()
            self._sweep()
            if (self._objects / _hex(found)).is_dir():
                return
            self._evict(size)
            with self._new_folder() as incoming:
                _copy_in(files, incoming)
                with contextlib.suppress(FileExistsError):
                    incoming.rename(self._objects / _hex(found))
                _sync(self._objects)
            # Others may have added theirs meanwhile.
            self._evict(0)
        except OSError as error:
            _tell("did not take the model", error)

    def _make_folders(self) -> None:
        for folder in (self._objects, self._incoming, self._turns):
            folder.mkdir(exist_ok=True)

    @contextmanager
    def _new_folder(self) -> Generator[Path]:
        """Make a folder that is ours as long as it is locked, and gone afterwards unless it was renamed."""
        path = self._incoming / secrets.token_hex(8)
        path.mkdir()
        lock = os.open(path, _FOLDER)
        try:
            if not _lock(lock, fcntl.LOCK_EX):
                raise BlockingIOError(f"{path} is being swept")
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)

    def _sweep(self) -> None:
        """Remove what nobody is writing any more."""
        for path in self._incoming.iterdir():
            with self._held(path, fcntl.LOCK_EX) as folder:
                if folder is not None:
                    shutil.rmtree(path, ignore_errors=True)

    def _evict(self, needed: int) -> None:
        """Remove what was used longest ago, until there is room; never what a pod is copying just now."""
        entries = {path: (path.stat().st_mtime, _size(path)) for path in self._objects.iterdir()}
        total = sum(size for _, size in entries.values()) + needed
        for path, (_, size) in sorted(entries.items(), key=lambda entry: entry[1][0]):
            if total <= self._max_bytes:
                return
            if self._remove(path):
                logger.info("evicted from the node's cache", extra={"entry": path.name, "bytes": size})
                total -= size

    def _remove(self, path: Path) -> bool:
        with self._held(path, fcntl.LOCK_EX) as folder:
            if folder is None:
                return False
            # By a rename first: nobody can find a half of it.
            gone = self._incoming / secrets.token_hex(8)
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            return True

    @staticmethod
    @contextmanager
    def _held(path: Path, kind: int) -> Generator[int | None]:
        """Give the open folder, locked; None where it is not there, or held against us."""
        try:
            folder = os.open(path, _FOLDER)
        except FileNotFoundError:
            yield None
            return
        try:
            yield folder if _lock(folder, kind) and _is_still(path, folder) else None
        finally:
            os.close(folder)


def _hex(wanted: str) -> str:
    return wanted.removeprefix("sha256:")


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_lock(path: Path, held: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    held.callback(os.close, descriptor)
    return descriptor


def _is_still(path: Path, folder: int) -> bool:
    """Whether a locked folder was renamed away before it was locked."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(folder))
    except FileNotFoundError:
        return False


def _copy_out(folder: int, into: Path, limit: int) -> None:
    """Copy plain files only, following nothing: a link there could lead to this pod's own secrets."""
    files = came = 0
    for below, _, names, inside in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
        target = into / below
        target.mkdir(exist_ok=True)
        for name in names:
            files += 1
            if files > MAX_FILES:
                raise OSError(f"more than {MAX_FILES} files")
            source = os.open(name, _FILE, dir_fd=inside)
            try:
                if not stat.S_ISREG(os.fstat(source).st_mode):
                    raise OSError(f"{name} is no file")
                came += _copy(source, target / name, limit - came)
            finally:
                os.close(source)


def _copy_in(files: Path, into: Path) -> None:
    """Copy, and let the disk have it: what a rename makes visible must be whole after a power cut too."""
    for below, _, names in os.walk(files):
        target = into / Path(below).relative_to(files)
        target.mkdir(exist_ok=True)
        for name in names:
            with Path(below, name).open("rb") as source:
                _copy(source.fileno(), target / name, 1 << 62)
            _sync(target / name)
        _sync(target)


def _copy(source: int, path: Path, limit: int) -> int:
    """Copy a file within the kernel, as a reflink where the file system has them."""
    came = 0
    copying = True
    # Buffered: an unbuffered write to a full disk may be short, and the file would pass for whole.
    with path.open("wb") as target:
        while True:
            if copying:
                try:
                    count = os.copy_file_range(source, target.fileno(), 64 * CHUNK_BYTES)
                except OSError:
                    count = 0
                if count == 0:
                    # The end, or not between these two file systems: reading goes on at the same place and tells.
                    copying = False
                    continue
            else:
                count = target.write(os.read(source, CHUNK_BYTES))
                if count == 0:
                    return came
            came += count
            if came > limit:
                raise OSError(f"more than {limit} bytes")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(root: Path) -> int:
    return sum(os.lstat(Path(folder, name)).st_size for folder, _, names in os.walk(root) for name in names)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _tell(what: str, error: OSError) -> None:
    logger.warning("the node's cache %s: %s", what, error)
