"""Models on a PersistentVolumeClaim, mounted read-only beside the fetch: a file or a folder is copied."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources.transfer import CHUNK_BYTES, Transfer


class PvcSource:
    """A path on a mounted claim; nothing outside the claim is followed."""

    def __init__(self, uri: str, mount: Path) -> None:
        self._path = unquote(urlsplit(uri).path).strip("/")
        self._mount = mount

    def download(self, into: Path, transfer: Transfer) -> None:
        """Copy the file, or every file below the folder."""
        root = self._mount.resolve()
        start = (root / self._path).resolve()
        if not start.is_relative_to(root):
            raise StartFailure(Stage.DOWNLOAD, Reason.INVALID_URI, f"'{self._path}' leaves the claim")
        try:
            if start.is_file():
                self._copy(start, transfer.target(into, start.name), transfer)
                return
            if not start.is_dir():
                raise StartFailure(Stage.DOWNLOAD, Reason.NOT_FOUND, f"the claim holds no '{self._path}'")
            for folder, _, names in os.walk(start):
                for name in sorted(names):
                    path = Path(folder, name)
                    relative = path.relative_to(start).as_posix()
                    if not path.resolve().is_relative_to(root):
                        raise StartFailure(
                            Stage.DOWNLOAD,
                            Reason.UNSAFE_ARCHIVE,
                            f"'{relative}' links to a file outside the claim",
                        )
                    if path.is_file():
                        self._copy(path, transfer.target(into, relative), transfer)
        except PermissionError as error:
            raise StartFailure(
                Stage.DOWNLOAD,
                Reason.ACCESS_DENIED,
                f"the claim does not let user {os.getuid()} read {error.filename}",
            ) from error

    @staticmethod
    def _copy(source: Path, target: Path, transfer: Transfer) -> None:
        transfer.expect(source.stat().st_size)
        with source.open("rb") as read, target.open("wb") as write:
            while chunk := read.read(CHUNK_BYTES):
                transfer.add(len(chunk))
                write.write(chunk)
