"""What all sources share: the size limit, progress in the log, and names that stay inside the folder."""

import logging
import re
import threading
import time
from pathlib import Path, PurePosixPath

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources.journal import Journal

CHUNK_BYTES = 1 << 20
MAX_FILES = 10_000
# What file systems take of a name between two slashes, and stores of all of it.
_PART_BYTES, _NAME_BYTES = 255, 1024
_PROGRESS_SECONDS = 5.0
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")

logger = logging.getLogger(__name__)


class Transfer:
    """One try to bring a model: counts what arrives, from several threads, and raises as soon as it is too much."""

    def __init__(self, limit: int, *, journal: Journal | None = None, parallel: int = 1) -> None:
        self.limit = limit
        self.journal = journal
        """What an earlier try brought, for sources that can go on behind it."""
        self.parallel = parallel
        self.bytes = 0
        self.resumed = 0
        self._expected = 0
        self._files = set[PurePosixPath]()
        self._folders = set[PurePosixPath]()
        self._lock = threading.Lock()
        self._began = self._logged = time.monotonic()

    def expect(self, size: int) -> None:
        """Take note of an announced size before its bytes come."""
        self._expected += size
        if self._expected > self.limit:
            raise self._too_large(f"is {self._expected} bytes")

    def already_there(self, size: int) -> None:
        """Count bytes that an earlier try brought."""
        self.resumed += size
        self.add(size)

    def add(self, size: int) -> None:
        """Count bytes that arrived."""
        with self._lock:
            self.bytes += size
            now = time.monotonic()
            due = now - self._logged >= _PROGRESS_SECONDS
            if due:
                self._logged = now
        if self.bytes > self.limit:
            raise self._too_large(f"is more than {self.limit} bytes")
        if due:
            logger.info("downloading", extra=self.progress())

    def progress(self) -> dict[str, float]:
        """How far the download is, as a log line tells it."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        told: dict[str, float] = {"bytes": self.bytes}
        if self._expected:
            told |= {"of": self._expected, "percent": round(100 * self.bytes / self._expected, 1)}
        if self.resumed:
            told["resumed"] = self.resumed
        return told | {"bytes_per_second": round((self.bytes - self.resumed) / seconds)}

    def target(self, folder: Path, name: str) -> Path:
        """Place a file that the source calls `name`.

        Refused is a name that would leave the folder, that no disk takes, or whose place another has: to a store `a`,
        `a/b` and `a//b` are three.
        """
        if why := _unfit(name) or self._taken(PurePosixPath(name)):
            raise StartFailure(
                Stage.DOWNLOAD,
                Reason.UNSAFE_ARCHIVE,
                f"the model holds a file named {name[:_NAME_BYTES]!r}, which {why}",
            )
        if len(self._files) > MAX_FILES:
            raise StartFailure(Stage.DOWNLOAD, Reason.TOO_LARGE, f"the model has more than {MAX_FILES} files")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _taken(self, place: PurePosixPath) -> str | None:
        """Take a place, or say why it cannot be had."""
        if place in self._files:
            return "falls on another one: rename one of them"
        if place in self._folders or not self._files.isdisjoint(place.parents):
            return "falls on a folder, or into another file: rename one of them"
        self._files.add(place)
        self._folders.update(place.parents)
        return None

    def _too_large(self, came: str) -> StartFailure:
        return StartFailure(
            Stage.DOWNLOAD, Reason.TOO_LARGE, f"the model {came}; this install allows {self.limit} bytes"
        )


def _unfit(name: str) -> str | None:
    """Say what is wrong with a file's name, if anything."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or _UNPRINTABLE.search(name):
        return "leaves its folder"
    try:
        longest, whole = max(len(part.encode()) for part in parts), len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8: rename it"
    if longest > _PART_BYTES or whole > _NAME_BYTES:
        return f"is longer than {_NAME_BYTES} bytes, or than {_PART_BYTES} between two slashes: rename it"
    return None
