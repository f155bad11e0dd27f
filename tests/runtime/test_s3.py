"""Fetching from a real S3 server."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilotage_runtime import fetch as fetching
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.fetched import model_root
from pilotage_runtime.sources.parts import PART_BYTES, RemoteFile
from tests.runtime.conftest import eventually, free_port
from tests.runtime.test_fetch import fails, settings, sha256
from tests.runtime.test_https import large_model

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
VERSITYGW = CACHE / "pilotage" / "bin" / "versitygw"


class Store:
    def __init__(self, folder: Path, credentials: Path, port: int) -> None:
        self.bucket = folder / "models"
        self.credentials = credentials
        self.port = port

    def settings(self, tmp_path: Path, uri: str, **changes: Any) -> Any:
        return settings(
            tmp_path,
            **{
                "model_uri": uri,
                "credentials_dir": self.credentials,
                "allow_private_addresses": True,
                **changes,
            },
        )

    def write_key(self, name: str, value: str) -> None:
        self.credentials.mkdir(exist_ok=True)
        (self.credentials / name).write_text(value + "\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[tuple[Path, int]]:
    if not VERSITYGW.exists():
        sentence = f"no S3 server: {VERSITYGW} is missing; `make venv` and `.venv/bin/python -m pilotage_dev up` build it"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    folder = tmp_path_factory.mktemp("store")
    shutil.copytree(models / "fraud", folder / "models" / "fraud")
    port = free_port()
    process = subprocess.Popen(
        [VERSITYGW, "--access", "pilotage", "--secret", "pilotage-secret", "--port", f"127.0.0.1:{port}", "posix", folder],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def answers() -> bool:
        try:
            return bool(httpx.get(f"http://127.0.0.1:{port}/").status_code)
        except httpx.TransportError:
            return False

    eventually(answers)
    yield folder, port
    process.terminate()
    process.wait(10)


@pytest.fixture
def store(server: tuple[Path, int], tmp_path: Path) -> Store:
    folder, port = server
    store = Store(folder, tmp_path / "keys", port)
    store.write_key("AWS_ACCESS_KEY_ID", "pilotage")
    store.write_key("AWS_SECRET_ACCESS_KEY", "pilotage-secret")
    store.write_key("AWS_ENDPOINT_URL", f"http://localhost:{port}")
    store.write_key("AWS_REGION", "us-east-1")
    return store


def test_an_object_is_fetched(store: Store, tmp_path: Path) -> None:
    marker = fetching.fetch(store.settings(tmp_path, "s3://models/fraud/1/model.onnx"))
    assert marker.digest == sha256((store.bucket / "fraud" / "1" / "model.onnx").read_bytes())


def test_a_folder_is_fetched_with_or_without_its_slash(store: Store, tmp_path: Path) -> None:
    digests = set()
    for at, uri in enumerate(("s3://models/fraud/2", "s3://models/fraud/2/")):
        stated = store.settings(tmp_path, uri, model_dir=tmp_path / str(at))
        digests.add(fetching.fetch(stated).digest)
        assert sorted(path.name for path in model_root(stated.model_dir).iterdir()) == [
            "contract.json",
            "model.onnx",
        ]
    assert len(digests) == 1


def test_an_object_overwritten_after_the_first_pod_is_refused_for_the_second(
    store: Store, tmp_path: Path
) -> None:
    shutil.copytree(store.bucket / "fraud" / "1", store.bucket / "mutable")
    first = fetching.fetch(store.settings(tmp_path, "s3://models/mutable", model_dir=tmp_path / "first"))
    (tmp_path / "digest").write_text(first.digest)
    shutil.copy(store.bucket / "fraud" / "2" / "model.onnx", store.bucket / "mutable" / "model.onnx")
    failure = fails(store.settings(tmp_path, "s3://models/mutable"))
    assert (failure.stage, failure.reason) == ("Verify", "ModelContentChanged")


@pytest.mark.parametrize(
    "uri", ["s3://models/fraud/9", "s3://models/fraud/1/other.onnx", "s3://nobucket/fraud/1"]
)
def test_what_is_not_there_is_not_found(store: Store, tmp_path: Path, uri: str) -> None:
    failure = fails(store.settings(tmp_path, uri))
    assert (failure.reason, failure.exit_code) == ("NotFound", 1)


def test_the_size_limit_counts_the_whole_folder(store: Store, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in (store.bucket / "fraud" / "1").iterdir())
    failure = fails(store.settings(tmp_path, "s3://models/fraud/1", max_model_bytes=size - 1))
    assert (failure.reason, failure.exit_code) == ("TooLarge", 1)
    assert f"the model is {size} bytes" in failure.message


def test_wrong_keys_are_denied_and_missing_ones_are_named(store: Store, tmp_path: Path) -> None:
    store.write_key("AWS_SECRET_ACCESS_KEY", "wrong")
    denied = fails(store.settings(tmp_path, "s3://models/fraud/1"))
    assert (denied.reason, denied.exit_code) == ("AccessDenied", 75)
    (store.credentials / "AWS_SECRET_ACCESS_KEY").unlink()
    missing = fails(store.settings(tmp_path, "s3://models/fraud/1"))
    assert (missing.reason, missing.exit_code) == ("CredentialsMissing", 75)
    assert "lacks AWS_SECRET_ACCESS_KEY" in missing.message
    for key in store.credentials.iterdir():
        key.unlink()
    absent = fails(store.settings(tmp_path, "s3://models/fraud/1"))
    assert absent.reason == "CredentialsMissing"
    assert "not there, or is empty" in absent.message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_private_endpoint_is_refused_where_the_install_does_not_allow_it(
    store: Store, tmp_path: Path, host: str
) -> None:
    store.write_key("AWS_ENDPOINT_URL", f"http://{host}:{store.port}")
    failure = fails(store.settings(tmp_path, "s3://models/fraud/1", allow_private_addresses=False))
    assert (failure.reason, failure.exit_code) == ("AddressNotAllowed", 75)


def test_a_name_that_turns_private_after_the_first_look_is_refused_at_the_connection(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotage_runtime.sources import address  # noqa: PLC0415

    resolve, looks = address.resolve, []

    def rebinding(host: str, port: int, *, allow_private: bool) -> list[str]:
        looks.append(host)
        return ["192.0.2.1"] if len(looks) == 1 else resolve(host, port, allow_private=allow_private)

    monkeypatch.setattr(address, "resolve", rebinding)
    failure = fails(store.settings(tmp_path, "s3://models/fraud/1", allow_private_addresses=False))
    assert failure.reason == "AddressNotAllowed"
    assert len(looks) == 2


def test_a_store_that_is_down_is_the_infrastructures_fault(store: Store, tmp_path: Path) -> None:
    store.write_key("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    failure = fails(store.settings(tmp_path, "s3://models/fraud/1"))
    assert (failure.reason, failure.exit_code) == ("StoreUnavailable", 75)


def object_of(store: Store, name: str, data: bytes) -> Path:
    path = store.bucket / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def put(store: Store, key: str, data: bytes, **more: Any) -> None:
    """Upload as an SDK does: the store keeps the checksum that comes along."""
    import s3fs  # noqa: PLC0415

    client = s3fs.S3FileSystem(
        key="pilotage", secret="pilotage-secret", endpoint_url=f"http://localhost:{store.port}",
        client_kwargs={"region_name": "us-east-1"}, skip_instance_cache=True,
    )  # fmt: skip
    client.call_s3("put_object", Bucket="models", Key=key, Body=data, **more)


def test_a_large_object_comes_in_parts_of_one_version(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotage_runtime.sources.s3 import S3Store  # noqa: PLC0415

    old, new = large_model(3 * PART_BYTES), large_model(3 * PART_BYTES)
    put(store, "large/model.onnx", old)
    read, asked = S3Store.read, []

    def overwritten(self: S3Store, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        asked.append(start)
        if len(asked) == 2:
            put(store, "large/model.onnx", new)
        return read(self, file, start, end)

    monkeypatch.setattr(S3Store, "read", overwritten)
    stated = store.settings(tmp_path, "s3://models/large", parallel_downloads=1)
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(new)
    assert asked == [at * PART_BYTES for at in (0, 1, 0, 1, 2, 3)]


@pytest.mark.parametrize("while_it", ["read", "checksum"])
def test_an_object_that_is_deleted_and_put_back_meanwhile_is_listed_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_it: str
) -> None:
    """Deleted for good it is not found then."""
    from pilotage_runtime.sources.s3 import S3Store  # noqa: PLC0415

    old, new = large_model(1000), large_model(1000)
    put(store, "replaced/model.onnx", old)
    asked_of, asked = getattr(S3Store, while_it), []

    def deleted(self: S3Store, file: RemoteFile, *part: int) -> Any:
        asked.append(file)
        if len(asked) == 1:
            (store.bucket / "replaced" / "model.onnx").unlink()
        return asked_of(self, file, *part)

    monkeypatch.setattr(S3Store, while_it, deleted)
    stated = store.settings(tmp_path, "s3://models/replaced/model.onnx")
    fetched = fetching.fetch(stated, sleep=lambda _: put(store, "replaced/model.onnx", new))
    assert fetched.digest == sha256(new)


def test_a_store_that_comes_back_is_gone_on_with(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotage_runtime.sources.s3 import S3Store  # noqa: PLC0415

    content = large_model(3 * PART_BYTES)
    put(store, "steady/model.onnx", content)
    read, asked = S3Store.read, []

    def unsteady(self: S3Store, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        asked.append(start)
        if len(asked) == 3:
            raise StartFailure(Stage.DOWNLOAD, Reason.STORE_UNAVAILABLE, "gone")
        return read(self, file, start, end)

    monkeypatch.setattr(S3Store, "read", unsteady)
    stated = store.settings(tmp_path, "s3://models/steady", parallel_downloads=1)
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(content)
    assert asked == [at * PART_BYTES for at in (0, 1, 2, 2, 3)]


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC32"])
def test_what_does_not_have_the_stores_checksum_is_damaged(
    store: Store, tmp_path: Path, models: Path, algorithm: str
) -> None:
    content = (models / "iris" / "1" / "model.onnx").read_bytes()
    key = f"summed-{algorithm.lower()}/model.onnx"
    put(store, key, content, ChecksumAlgorithm=algorithm)
    uri = f"s3://models/{key}"
    assert fetching.fetch(store.settings(tmp_path, uri, model_dir=tmp_path / "a")).digest == sha256(content)
    # What the disk under the store loses, the store does not notice.
    with (store.bucket / key).open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"damaged")
    failure = fails(store.settings(tmp_path, uri))
    assert (failure.reason, failure.exit_code) == ("Truncated", 75)
    assert "arrived damaged" in failure.message


def test_an_empty_object_and_a_missing_name_do_not_break_a_folder(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.bucket / "fraud" / "1", store.bucket / "withempty")
    object_of(store, "withempty/EMPTY", b"")
    stated = store.settings(tmp_path, "s3://models/withempty")
    fetching.fetch(stated)
    assert (model_root(stated.model_dir) / "EMPTY").read_bytes() == b""


def test_an_endpoint_cannot_send_the_fetch_to_a_private_address(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address in a URL is asked of no resolver, so sockets are judged too."""
    from pilotage_runtime.sources import address  # noqa: PLC0415

    store.write_key("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
    monkeypatch.setattr(address, "resolve", lambda host, port, *, allow_private: ["192.0.2.1"])
    failure = fails(store.settings(tmp_path, "s3://models/fraud/1", allow_private_addresses=False))
    assert failure.reason == "AddressNotAllowed"
    assert "127.0.0.1" in failure.message


def test_a_file_that_left_the_store_between_two_tries_is_not_part_of_the_model(
    store: Store, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotage_runtime.sources.s3 import S3Store  # noqa: PLC0415

    put(store, "shrinking/model.onnx", (models / "iris" / "1" / "model.onnx").read_bytes())
    put(store, "shrinking/below/gone.txt", b"gone")
    read, asked = S3Store.read, []

    def interrupted(self: S3Store, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        asked.append(file.name)
        if len(asked) == 2:
            (store.bucket / "shrinking" / "below" / "gone.txt").unlink()
            raise StartFailure(Stage.DOWNLOAD, Reason.STORE_UNAVAILABLE, "gone")
        return read(self, file, start, end)

    monkeypatch.setattr(S3Store, "read", interrupted)
    stated = store.settings(tmp_path, "s3://models/shrinking", parallel_downloads=1)
    fetching.fetch(stated, sleep=lambda _: None)
    assert asked == ["below/gone.txt", "model.onnx", "model.onnx"]
    assert [path.name for path in model_root(stated.model_dir).iterdir()] == ["model.onnx"]
