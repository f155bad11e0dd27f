"""Models that come packed: a tar, also gzipped, or a zip is unpacked after its digest was compared.

What an archive says is a stranger's text: no name leaves the folder, nothing but plain files is made, and how
much comes out is counted while it comes out, whatever the archive's headers announce.
"""

import errno
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources.transfer import CHUNK_BYTES, Transfer

MAX_RATIO = 200
_FREE_BYTES = 64 << 20
"""Unpacked bytes below which the ratio says nothing: a few zeros compress a thousandfold."""
_LONGEST_READ = 4 << 20
_BLOCK = 512
_ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06")
# Zip files that are models themselves: torch (pickled, scripted, exported), skops, Keras, NumPy.
_MODELS_ENTRIES = frozenset(
    {"data.pkl", "constants.pkl", "archive_format", "schema.json", "model.weights.h5"}
)
_MODELS_SUFFIXES = (".npy",)
_ENCRYPTED = 0x1
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def is_archive(path: Path) -> bool:
    """Tell by content whether a file is a packed folder, and not a model in a packed form."""
    with path.open("rb") as file:
        head = file.read(_BLOCK)
    if head[257:262] == b"ustar":
        return True
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as unzipped:
                return unzipped.read(_BLOCK)[257:262] == b"ustar"
        except _BROKEN:
            return False
    return head[:4] in _ZIP_HEADS and not _is_zipped_model(path)


def unpack(path: Path, into: Path, limit: int) -> int:
    """Unpack the archive into an empty folder and give the bytes that came out; raise StartFailure if it is unsafe."""
    unpacking = _Unpacking(path, into, limit)
    with _explained(path):
        if path.open("rb").read(4) in _ZIP_HEADS:
            with zipfile.ZipFile(path) as archive:
                unpacking.take(_zip_files(archive, path))
        else:
            unpacking.take_tar()
    _without_lone_folder(into)
    return unpacking.came


class _Unpacking:
    def __init__(self, path: Path, into: Path, limit: int) -> None:
        self._path = path
        self._into = into
        self._transfer = Transfer(limit)
        self._most = max(MAX_RATIO * path.stat().st_size, _FREE_BYTES)

    @property
    def came(self) -> int:
        return self._transfer.bytes

    def take_tar(self) -> None:
        with self._path.open("rb") as packed:
            plain = packed.read(2) != b"\x1f\x8b"
            packed.seek(0)
            stream: Any = packed if plain else gzip.GzipFile(fileobj=packed)
            # What is skipped and what holds long names is unpacked too, so the stream itself is bounded.
            bounded = _Bounded(stream, self._check_ratio)
            with tarfile.open(fileobj=bounded, mode="r:") as archive:  # pyright: ignore[reportArgumentType]
                self.take(_tar_files(archive))

    def take(self, files: Iterable[tuple[str, IO[bytes]]]) -> None:
        for name, content in files:
            target = self._transfer.target(self._into, name)
            with content, target.open("xb") as file:
                while chunk := content.read(CHUNK_BYTES):
                    self._transfer.add(len(chunk))
                    self._check_ratio(self.came)
                    file.write(chunk)

    def _check_ratio(self, came: int) -> None:
        if came > self._most:
            raise _unsafe(
                f"{self._path.name} unpacks to more than {MAX_RATIO} times its size, as no model's files do"
            )


class _Bounded(io.RawIOBase):
    """A stream that is counted, and that gives no more at once than a header may need."""

    def __init__(self, stream: Any, check: Any) -> None:
        super().__init__()
        self._stream = stream
        self._check = check

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > _LONGEST_READ:
            raise _unsafe("the archive has a header of more than 4 MiB")
        data = self._stream.read(size)
        self._check(self._stream.tell())
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        # In a compressed stream seeking is unpacking: in steps, so that a bomb is noticed on the way.
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation
        while (at := self._stream.tell()) < offset:
            if not self.read(min(offset - at, _LONGEST_READ)):
                break
        return self._stream.seek(offset) if self._stream.tell() > offset else self._stream.tell()

    def tell(self) -> int:
        return self._stream.tell()


def _tar_files(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in archive:
        if member.isdir():
            continue
        if not member.isreg():
            kind = "a link" if member.islnk() or member.issym() else "a device or pipe"
            raise _unsafe(f"the archive holds {kind}, {member.name!r}: pack files only (tar --dereference)")
        content = archive.extractfile(member)
        assert content is not None, "a plain file has content"
        yield member.name.removeprefix("./"), content


def _zip_files(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for entry in archive.infolist():
        if entry.is_dir():
            continue
        # Upper half of the attributes: the Unix mode of what was packed. Only links are written as what they are not.
        if (entry.external_attr >> 16) & 0o170000 not in (0, 0o100000):
            raise _unsafe(f"{path.name} holds a link or device, {entry.filename!r}: pack files only")
        if entry.flag_bits & _ENCRYPTED:
            raise _unsafe(f"{path.name} is a zip with a password: seal the model's file itself instead")
        yield entry.filename, archive.open(entry)


def _is_zipped_model(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, UnicodeDecodeError):
        # Unpacking it says why.
        return False
    if any(name.endswith(".onnx") for name in names):
        return False
    return any(
        name.rpartition("/")[2] in _MODELS_ENTRIES or name.endswith(_MODELS_SUFFIXES) for name in names
    )


def _without_lone_folder(into: Path) -> None:
    """`tar -c fraud/` and `cd fraud; tar -c .` mean the same model."""
    inside = list(into.iterdir())
    if len(inside) != 1 or not inside[0].is_dir():
        return
    # Its content may have the folder's own name.
    lone = inside[0].rename(into.with_name(f"{into.name}-lone"))
    into.rmdir()
    lone.rename(into)


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _unsafe(f"{path.name} holds two files of one name, or a file where a folder is") from error
    except (RuntimeError, io.UnsupportedOperation) as error:  # ways of packing that zipfile does not know
        raise StartFailure(
            Stage.VERIFY, Reason.INVALID_MODEL, f"{path.name} is packed in a way that is not read: {error}"
        ) from error
    except (*_BROKEN, ValueError) as error:
        raise _broken(path, error) from error
    except OSError as error:
        # A place before the archive's beginning; every other one is the volume's.
        if error.errno != errno.EINVAL:
            raise
        raise _broken(path, error) from error
    except StartFailure as failure:
        raise StartFailure(Stage.VERIFY, failure.reason, failure.message) from failure


def _broken(path: Path, error: Exception) -> StartFailure:
    return StartFailure(Stage.VERIFY, Reason.INVALID_MODEL, f"{path.name} is a broken archive: {error}")


def _unsafe(message: str) -> StartFailure:
    return StartFailure(Stage.VERIFY, Reason.UNSAFE_ARCHIVE, message)
