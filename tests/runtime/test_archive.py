"""Archives: what is unpacked, and every way in which one is refused."""

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pilotage_runtime import archive
from pilotage_runtime import fetch as fetching
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.fetched import model_root
from tests.runtime.test_fetch import fails, settings, sha256

LIMIT = 100 << 20


def tar(path: Path, files: dict[str, bytes], mode: str = "w", *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
        for member in members:
            packed.addfile(member)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


def special(kind: bytes, name: str = "model.onnx", to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    (tmp_path / "claim").mkdir()
    return tmp_path / "claim"


@pytest.fixture
def content(models: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (models / "fraud" / "1").iterdir()}


PACKED: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "tar": tar,
    "tar.gz": lambda path, files: tar(path, files, "w:gz"),
    "zip": zipped,
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("below", ["", "fraud/", "./"])
def test_a_packed_model_is_served_from_its_files_and_known_by_the_archives_digest(
    tmp_path: Path, claim: Path, content: dict[str, bytes], kind: str, below: str
) -> None:
    # The name says nothing: what is inside does.
    path = PACKED[kind](claim / "model.bin", {below + name: data for name, data in content.items()})
    stated = settings(
        tmp_path,
        model_uri="pvc://claim/model.bin",
        model_digest=sha256(path.read_bytes()),
        model_claim_dir=claim,
    )
    marker = fetching.fetch(stated)
    root = model_root(stated.model_dir)
    assert {path.name: path.read_bytes() for path in root.iterdir()} == content
    assert marker.digest == sha256(path.read_bytes())
    # A restart of the container trusts its files only after hashing them again.
    path.unlink()
    assert fetching.fetch(stated) == marker
    (root / "model.onnx").write_bytes(b"tampered")
    assert fails(stated).reason == "NotFound"


def test_what_is_unpacked_was_verified_before(tmp_path: Path, claim: Path, content: dict[str, bytes]) -> None:
    tar(claim / "m.tar", content, "w", special(tarfile.SYMTYPE, "link", "/etc/passwd"))
    stated = settings(tmp_path, model_uri="pvc://claim/m.tar", model_digest=sha256(b"other"))
    assert fails(stated).reason == "DigestMismatch"
    unsafe = fails(settings(tmp_path, model_uri="pvc://claim/m.tar"))
    assert (unsafe.stage, unsafe.reason, unsafe.exit_code) == ("Verify", "UnsafeArchive", 1)


def test_code_does_not_come_in_an_archive(tmp_path: Path, claim: Path) -> None:
    """Trusted is what has the digest that was stated, at the moment that it runs: these files have another."""
    path = tar(claim / "m.tar", {"model": pickle.dumps([1])})
    stated = settings(
        tmp_path,
        model_uri="pvc://claim/m.tar",
        model_digest=sha256(path.read_bytes()),
        model_claim_dir=claim,
        trusted=True,
    )
    failure = fails(stated)
    assert (failure.stage, failure.reason, failure.exit_code) == ("Verify", "UntrustedFormat", 1)
    assert failure.message.startswith("model is Pickle, which runs code, and came in an archive")
    assert not list(stated.model_dir.iterdir())


def refused(path: Path, into: Path, limit: int = LIMIT) -> StartFailure:
    assert archive.is_archive(path)
    into.mkdir()
    with pytest.raises(StartFailure) as failure:
        archive.unpack(path, into, limit)
    assert failure.value.stage == "Verify"
    return failure.value


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../b", "back\\slash", "new\nline"])
@pytest.mark.parametrize("kind", PACKED)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = PACKED[kind](tmp_path / "packed", {"model.onnx": b"fine", name: b"not"})
    assert refused(path, tmp_path / "into").reason == "UnsafeArchive"
    inside = {path.name for path in tmp_path.rglob("*")}
    assert inside <= {"packed", "into", "model.onnx"}


@pytest.mark.parametrize(
    "member",
    [
        special(tarfile.SYMTYPE, "link", "/etc/passwd"), special(tarfile.SYMTYPE, "link", "model.onnx"),
        special(tarfile.LNKTYPE, "link", "../../etc/passwd"), special(tarfile.CHRTYPE, "null"),
        special(tarfile.BLKTYPE, "disk"), special(tarfile.FIFOTYPE, "pipe"),
    ],
    ids=["symlink out", "symlink in", "hard link", "character device", "block device", "pipe"],
)  # fmt: skip
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = tar(tmp_path / "m.tar", {"model.onnx": b"x"}, "w", member)
    failure = refused(path, tmp_path / "into")
    assert failure.reason == "UnsafeArchive"
    assert member.name in failure.message


def test_a_write_through_a_link_cannot_happen(tmp_path: Path) -> None:
    path = tar(tmp_path / "m.tar", {}, "w", special(tarfile.SYMTYPE, "out", str(tmp_path)))
    tar(path, {"out/stolen": b"x"}, "a")
    assert refused(path, tmp_path / "into").reason == "UnsafeArchive"
    assert not (tmp_path / "stolen").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        packed.writestr(entry, "/etc/passwd")
    assert refused(tmp_path / "m.zip", tmp_path / "into").reason == "UnsafeArchive"


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb_is_stopped_by_its_ratio_before_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    path = PACKED[kind](tmp_path / "packed", {"model.onnx": bytes(90 << 20)})
    failure = refused(path, tmp_path / "into", limit=1 << 40)
    assert failure.reason == "UnsafeArchive"
    assert "200 times" in failure.message
    assert sum(path.stat().st_size for path in (tmp_path / "into").iterdir()) <= 64 << 20


def test_a_bomb_in_what_is_read_but_never_written_is_stopped_too(tmp_path: Path) -> None:
    """Headers of a megabyte each, with files of nothing: only the stream itself shows how much comes out."""
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as packed:
        for number in range(90):
            member = tarfile.TarInfo(str(number))
            member.pax_headers = {"comment": "x" * (1 << 20)}
            packed.addfile(member)
    failure = refused(tmp_path / "m.tar.gz", tmp_path / "into", limit=1 << 40)
    assert failure.reason == "UnsafeArchive"
    assert "200 times" in failure.message


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_small_model_may_compress_as_well_as_it_likes(tmp_path: Path, kind: str) -> None:
    zeros = bytes(4 << 20)
    path = PACKED[kind](tmp_path / "packed", {"model.onnx": zeros})
    assert len(zeros) > archive.MAX_RATIO * path.stat().st_size
    (tmp_path / "into").mkdir()
    assert archive.unpack(path, tmp_path / "into", LIMIT) == len(zeros)


@pytest.mark.parametrize("kind", PACKED)
def test_the_size_limit_counts_what_comes_out(tmp_path: Path, kind: str) -> None:
    path = PACKED[kind](tmp_path / "packed", {"a": bytes(900), "b": bytes(900)})
    assert refused(path, tmp_path / "into", limit=1000).reason == "TooLarge"


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {"model.onnx": bytes(100_000)})
    # The announced size stands in the local and in the central header.
    path.write_bytes(path.read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert refused(path, tmp_path / "into").reason == "InvalidModel"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_too_many_files_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilotage_runtime.sources import transfer  # noqa: PLC0415

    monkeypatch.setattr(transfer, "MAX_FILES", 3)
    path = PACKED[kind](tmp_path / "packed", {str(number): b"" for number in range(4)})
    assert refused(path, tmp_path / "into").reason == "TooLarge"


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    member = special(tarfile.GNUTYPE_LONGNAME, "long")
    member.size = 50 << 20
    with gzip.open(tmp_path / "m.tar.gz", "wb", compresslevel=1) as packed:
        packed.write(member.tobuf(tarfile.GNU_FORMAT) + b"a" * member.size)
    failure = refused(tmp_path / "m.tar.gz", tmp_path / "into")
    assert "header of more than 4 MiB" in failure.message


@pytest.mark.parametrize("files", [{"a": b"1", "a/b": b"2"}, {"a/b": b"1", "a": b"2"}])
def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = tar(tmp_path / "m.tar", {**files, "c": b""})
    assert refused(path, tmp_path / "into").reason == "UnsafeArchive"


@pytest.mark.parametrize("kind", PACKED)
def test_a_name_that_comes_twice_is_refused(tmp_path: Path, kind: str) -> None:
    path = PACKED[kind](tmp_path / "packed", {"a": b"1", "./a" if kind != "zip" else "a/": b""})
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as packed, pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr("a", b"2")
    assert refused(path, tmp_path / "into").reason == "UnsafeArchive"


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_cut_off_archive_is_invalid(tmp_path: Path, kind: str) -> None:
    path = PACKED[kind](tmp_path / "packed", {"model.onnx": np.random.default_rng(1).bytes(100_000)})
    path.write_bytes(path.read_bytes()[:50_000])
    assert refused(path, tmp_path / "into").reason == "InvalidModel"


def wrong_sparse_map(path: Path) -> Path:
    member = tarfile.TarInfo("model.onnx")
    member.pax_headers = {"GNU.sparse.map": "0,x"}
    return tar(path, {}, "w", member)


def less_than_no_bytes(path: Path) -> Path:
    header = bytearray(tarfile.TarInfo("model.onnx").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-1024 % (1 << 96)).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(1024))
    return path


def name_of_another_coding(path: Path) -> Path:
    zipped(path, {"modèle.onnx": b"x"})
    path.write_bytes(path.read_bytes().replace("è".encode(), b"\xff\xfe"))
    return path


@pytest.mark.parametrize("damaged", [wrong_sparse_map, less_than_no_bytes, name_of_another_coding])
def test_a_damaged_archive_is_invalid_whatever_the_libraries_make_of_it(
    tmp_path: Path, damaged: Callable[[Path], Path]
) -> None:
    failure = refused(damaged(tmp_path / "packed"), tmp_path / "into")
    assert failure.reason == "InvalidModel"
    assert "packed is a broken archive" in failure.message


@pytest.mark.parametrize("name", ["x" * 300, "le\udce9.txt"])
def test_a_name_in_a_tar_that_no_disk_takes_is_refused(tmp_path: Path, name: str) -> None:
    path = tar(tmp_path / "m.tar", {"model.onnx": b"x", name: b"x"})
    assert refused(path, tmp_path / "into").reason == "UnsafeArchive"


def test_a_zip_with_a_password_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {"model.onnx": b"x"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    failure = refused(path, tmp_path / "into")
    assert failure.reason == "UnsafeArchive"
    assert "seal the model's file itself instead" in failure.message


def test_zip_files_that_are_models_themselves_stay_packed(tmp_path: Path, models: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    zipped(tmp_path / "torch.pt", {"archive/data.pkl": b"x", "archive/version": b"3"})
    zipped(tmp_path / "exported.pt2", {"model/archive_format": b"pt2"})
    zipped(tmp_path / "model.skops", {"schema.json": b"{}"})
    zipped(tmp_path / "model.keras", {"config.json": b"{}", "model.weights.h5": b""})
    (tmp_path / "data.gz").write_bytes(gzip.compress(b"no tar"))
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b rubbish")
    (tmp_path / "empty").write_bytes(b"")
    assert [path.name for path in tmp_path.iterdir() if path.is_file() and archive.is_archive(path)] == []
    assert not archive.is_archive(models / "fraud" / "1" / "model.onnx")
