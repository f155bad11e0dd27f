"""Models on a volume: a claim, an image volume, or on a laptop any path; a file or a folder is copied."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources.transfer import CHUNK_BYTES, Transfer

_IMAGES_FOLDER = "models"


class MountedSource:
    """A path below a root; nothing outside of the root is followed."""

    def __init__(self, root: Path, path: str, name: str) -> None:
        self._root = root
        self._path = path.strip("/")
        self._name = name
        """What to call the root, in words."""

    def download(self, into: Path, transfer: Transfer) -> None:
        """Copy the file, or every file below the folder."""
        root = self._root.resolve()
        start = (root / self._path).resolve()
        if not start.is_relative_to(root):
            raise StartFailure(Stage.DOWNLOAD, Reason.INVALID_URI, f"'{self._path}' leaves the {self._name}")
        try:
            if start.is_file():
                self._copy(start, transfer.target(into, start.name), transfer)
                return
            if not start.is_dir():
                raise StartFailure(
                    Stage.DOWNLOAD, Reason.NOT_FOUND, f"the {self._name} holds no '{self._path}'"
                )
            for folder, folders, names in os.walk(start):
                for name in sorted([*folders, *names]):
                    path = Path(folder, name)
                    relative = path.relative_to(start).as_posix()
                    if path.is_symlink() and not path.is_file():
                        raise StartFailure(
                            Stage.DOWNLOAD,
                            Reason.UNSAFE_ARCHIVE,
                            f"'{relative}' links to no file of the {self._name}: only links to files are followed, so a "
                            "folder should lie there itself",
                        )
                    if not path.resolve().is_relative_to(root):
                        raise StartFailure(
                            Stage.DOWNLOAD,
                            Reason.UNSAFE_ARCHIVE,
                            f"'{relative}' links to a file outside the {self._name}",
                        )
                    if path.is_file():
                        self._copy(path, transfer.target(into, relative), transfer)
        except PermissionError as error:
            raise StartFailure(
                Stage.DOWNLOAD,
                Reason.ACCESS_DENIED,
                f"the {self._name} does not let user {os.getuid()} read {error.filename}",
            ) from error

    @staticmethod
    def _copy(source: Path, target: Path, transfer: Transfer) -> None:
        transfer.expect(source.stat().st_size)
        with source.open("rb") as read, target.open("wb") as write:
            while chunk := read.read(CHUNK_BYTES):
                transfer.add(len(chunk))
                write.write(chunk)


def claim(uri: str, mount: Path) -> MountedSource:
    """A path on a PersistentVolumeClaim, mounted read-only beside the fetch."""
    return MountedSource(mount, unquote(urlsplit(uri).path), "claim")


def image(mount: Path) -> MountedSource:
    """An image volume: its folder /models where it has one, else all of it."""
    inside = mount / _IMAGES_FOLDER
    return MountedSource(mount, _IMAGES_FOLDER if inside.is_dir() else "", "image")


def local(uri: str) -> MountedSource:
    """A path on this machine, for whoever runs the runtime by hand."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise StartFailure(
            Stage.DOWNLOAD, Reason.INVALID_URI, f"{uri!r} names the host {parts.netloc}; write file:///PATH"
        )
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri).absolute()
    return MountedSource(path.parent, path.name, "folder")
