"""What all sources share: the size limit, progress in the log, and names that stay inside the folder."""

import logging
import re
import time
from pathlib import Path, PurePosixPath

from pilotage_runtime.failure import Reason, Stage, StartFailure

CHUNK_BYTES = 1 << 20
MAX_FILES = 10_000
_PROGRESS_SECONDS = 5.0
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")

logger = logging.getLogger(__name__)


class Transfer:
    """Counts what arrives; raises as soon as it is, or is announced to be, too much."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._expected = 0
        self._files = 0
        self._logged = time.monotonic()

    def expect(self, size: int) -> None:
        """Take note of an announced size before its bytes come."""
        self._expected += size
        if self._expected > self.limit:
            raise self._too_large(f"is {self._expected} bytes")

    def add(self, size: int) -> None:
        """Count bytes that arrived."""
        self.bytes += size
        if self.bytes > self.limit:
            raise self._too_large(f"is more than {self.limit} bytes")
        now = time.monotonic()
        if now - self._logged >= _PROGRESS_SECONDS:
            self._logged = now
            logger.info("downloading", extra={"bytes": self.bytes, "of": self._expected or None})

    def target(self, folder: Path, name: str) -> Path:
        """Place a file that the source calls `name`; refuse a name that would leave the folder."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or _UNPRINTABLE.search(name):
            raise StartFailure(
                Stage.DOWNLOAD,
                Reason.UNSAFE_ARCHIVE,
                f"the model holds a file named {name!r}, which leaves its folder",
            )
        self._files += 1
        if self._files > MAX_FILES:
            raise StartFailure(Stage.DOWNLOAD, Reason.TOO_LARGE, f"the model has more than {MAX_FILES} files")
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _too_large(self, came: str) -> StartFailure:
        return StartFailure(
            Stage.DOWNLOAD, Reason.TOO_LARGE, f"the model {came}; this install allows {self.limit} bytes"
        )
