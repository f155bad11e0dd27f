"""What holds for each store alike: Google's and Azure's by their emulators, Hugging Face's by its paths."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilotage_runtime import fetch as fetching
from pilotage_runtime import sources
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.fetched import model_root
from pilotage_runtime.settings import FetchSettings
from pilotage_runtime.sources.checksum import Checksum
from pilotage_runtime.sources.parts import PART_BYTES, RemoteFile
from tests.runtime.emulators import Emulator, Hub, azure, google, hugging_face, serving
from tests.runtime.test_archive import tar
from tests.runtime.test_fetch import fails, settings, sha256
from tests.runtime.test_https import large_model

KINDS = {"gs": google, "az": azure, "hf": hugging_face}


@pytest.fixture(scope="module", params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with KINDS[request.param](tmp_path_factory.mktemp(request.param)) as emulator:
        yield emulator


@pytest.fixture
def store_class(store: Emulator) -> Any:
    module = __import__(f"pilotage_runtime.sources.{store.scheme}", fromlist=["x"])
    return getattr(module, f"{store.scheme.capitalize()}Store")


@pytest.fixture
def content(models: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (models / "fraud" / "1").iterdir()}


def test_a_file_is_fetched(store: Emulator, tmp_path: Path, content: dict[str, bytes]) -> None:
    store.put("one/1/model.onnx", content["model.onnx"])
    marker = fetching.fetch(store.settings(tmp_path, "one/1/model.onnx"))
    assert (marker.digest, marker.bytes) == (sha256(content["model.onnx"]), len(content["model.onnx"]))


def test_a_folder_is_fetched_with_or_without_its_slash_and_nothing_beside_it(
    store: Emulator, tmp_path: Path, content: dict[str, bytes]
) -> None:
    for name, data in {**content, "below/deep/labels.txt": b"yes\nno\n"}.items():
        store.put(f"fraud/2/{name}", data)
    store.put("fraud/22/model.onnx", b"another")
    for at, name in enumerate(("fraud/2", "fraud/2/")):
        stated = store.settings(tmp_path, name, model_dir=tmp_path / str(at))
        fetching.fetch(stated)
        root = model_root(stated.model_dir)
        found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert found == {**content, "below/deep/labels.txt": b"yes\nno\n"}


@pytest.mark.parametrize("name", ["fraud/9", "fraud/2/none.onnx"])
def test_what_is_not_there_is_not_found(
    store: Emulator, tmp_path: Path, content: dict[str, bytes], name: str
) -> None:
    store.put("fraud/2/model.onnx", content["model.onnx"])
    failure = fails(store.settings(tmp_path, name))
    assert (failure.reason, failure.exit_code) == ("NotFound", 1)


def test_the_size_limit_counts_the_whole_folder(
    store: Emulator, tmp_path: Path, content: dict[str, bytes]
) -> None:
    for name, data in content.items():
        store.put(f"sized/{name}", data)
    size = sum(map(len, content.values()))
    failure = fails(store.settings(tmp_path, "sized", max_model_bytes=size - 1))
    assert (failure.reason, failure.exit_code) == ("TooLarge", 1)
    assert f"the model is {size} bytes" in failure.message


def test_a_large_file_comes_in_parts_of_one_version(
    store: Emulator, store_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = large_model(3 * PART_BYTES), large_model(3 * PART_BYTES)
    store.put("large/model.onnx", old)
    read, asked = store_class.read, []

    def overwritten(self: Any, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        asked.append(start)
        if len(asked) == 2:
            store.put("large/model.onnx", new)
        return read(self, file, start, end)

    monkeypatch.setattr(store_class, "read", overwritten)
    # It would find a mixture too, but only at the end.
    monkeypatch.setattr(store_class, "checksum", lambda *_: None)
    stated = store.settings(tmp_path, "large/model.onnx", parallel_downloads=1)
    found = fetching.fetch(stated, sleep=lambda _: None).digest
    # A hub's commit still has what it had; elsewhere the fetch begins anew, and nothing is ever mixed.
    assert found == sha256(old if store.scheme == "hf" else new)


def test_a_store_that_comes_back_is_gone_on_with(
    store: Emulator, store_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = large_model(3 * PART_BYTES)
    store.put("steady/model.onnx", data)
    read, asked = store_class.read, []

    def unsteady(self: Any, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        asked.append(start)
        if len(asked) == 3:
            raise StartFailure(Stage.DOWNLOAD, Reason.STORE_UNAVAILABLE, "gone")
        return read(self, file, start, end)

    monkeypatch.setattr(store_class, "read", unsteady)
    stated = store.settings(tmp_path, "steady/model.onnx", parallel_downloads=1)
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(data)
    assert asked == [at * PART_BYTES for at in (0, 1, 2, 2, 3)]


def test_the_stores_checksums_are_compared(
    store: Emulator,
    store_class: Any,
    tmp_path: Path,
    content: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.put("summed/model.onnx", content["model.onnx"])
    store.put("summed/small.txt", b"small")
    stated, checksum = [], store_class.checksum

    def noted(self: Any, file: RemoteFile) -> Checksum | None:
        stated.append(checksum(self, file))
        return stated[-1]

    monkeypatch.setattr(store_class, "checksum", noted)
    fetching.fetch(store.settings(tmp_path, "summed", model_dir=tmp_path / "first"))
    assert len([each for each in stated if each]) == 2
    read = store_class.read
    monkeypatch.setattr(store_class, "read", lambda *asked: damaged(read(*asked)))
    failure = fails(store.settings(tmp_path, "summed"))
    assert (failure.reason, failure.exit_code) == ("Truncated", 75)
    assert "arrived damaged" in failure.message


def test_a_file_that_was_damaged_on_the_way_is_brought_anew(
    store: Emulator,
    store_class: Any,
    tmp_path: Path,
    content: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What an earlier try brought is gone on behind, but not behind damage."""
    store.put("damaged/model.onnx", content["model.onnx"])
    read, asked = store_class.read, []

    def once(self: Any, *wanted: Any) -> Iterator[bytes]:
        asked.append(wanted)
        parts = read(self, *wanted)
        return damaged(parts) if len(asked) == 1 else parts

    monkeypatch.setattr(store_class, "read", once)
    stated = store.settings(tmp_path, "damaged/model.onnx")
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(content["model.onnx"])
    assert len(asked) == 2


def damaged(parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield part[:-1] + bytes([part[-1] ^ 1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_private_endpoint_is_refused_where_the_install_does_not_allow_it(
    store: Emulator, tmp_path: Path, content: dict[str, bytes], host: str
) -> None:
    store.put("one/1/model.onnx", content["model.onnx"])
    failure = fails(store.settings(tmp_path, "one/1/model.onnx", host, allow_private_addresses=False))
    assert (failure.reason, failure.exit_code) == ("AddressNotAllowed", 75)


def test_a_store_that_is_down_is_the_infrastructures_fault(store: Emulator, tmp_path: Path) -> None:
    stated = store.settings(tmp_path, "one/1/model.onnx")
    for key in stated.credentials_dir.iterdir():
        key.write_text(key.read_text().replace(str(store.port), "1"))
    failure = fails(stated)
    assert (failure.reason, failure.exit_code) == ("StoreUnavailable", 75)


class Redirecting(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302)
        self.send_header("location", "http://169.254.169.254/latest/meta-data/iam")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_redirect_to_the_metadata_service_is_never_followed(
    store: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where private addresses are allowed, and without a name that a resolver could judge."""
    asked: list[str] = []
    monkeypatch.setattr(Redirecting, "asked", asked, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stated = store.settings(tmp_path, "one/1/model.onnx")
    for key in stated.credentials_dir.iterdir():
        key.write_text(key.read_text().replace(str(store.port), str(server.server_address[1])))
    failure = fails(stated)
    server.shutdown()
    server.server_close()
    assert asked
    assert (failure.reason, failure.exit_code) == ("AddressNotAllowed", 75)
    assert "169.254.169.254" in failure.message


def test_a_secret_without_its_key_is_named(store: Emulator, tmp_path: Path) -> None:
    stated = store.settings(tmp_path, "one/1/model.onnx")
    for key in stated.credentials_dir.iterdir():
        key.unlink()
    empty = fails(stated)
    assert (empty.reason, empty.exit_code) == ("CredentialsMissing", 75)
    assert "not there, or is empty" in empty.message
    (stated.credentials_dir / "OTHER").write_text("x")
    other = fails(stated)
    assert other.reason == "CredentialsMissing"
    assert "AZURE_STORAGE_ACCOUNT_NAME" in other.message or "lacks" in other.message


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_what_is_stored_in_a_content_coding_arrives_as_it_is_stored(tmp_path: Path, kind: str) -> None:
    """The digest is the file's, and a small part must not unpack to a large one."""
    packed = tar(tmp_path / "packed", {"model.onnx": large_model(2 * PART_BYTES)}, "w:gz").read_bytes()
    with KINDS[kind](tmp_path) as store:
        store.put("coded/model.tar.gz", packed, "gzip")
        stated = store.settings(tmp_path, "coded/model.tar.gz")
        assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(packed)


def with_key(stated: FetchSettings, **keys: str) -> FetchSettings:
    for name, value in keys.items():
        (stated.credentials_dir / name).write_text(value)
    return stated


def test_azures_wrong_key_is_denied_and_a_malformed_string_shown_to_nobody(tmp_path: Path) -> None:
    with azure(tmp_path / "store") as store:
        stated = store.settings(tmp_path, "one/model.onnx")
        path = stated.credentials_dir / "AZURE_STORAGE_CONNECTION_STRING"
        path.write_text(path.read_text().replace("Eby8", "AAAA"))
        denied = fails(stated)
        assert (denied.reason, denied.exit_code) == ("AccessDenied", 75)
        path.write_text("AccountKey=secret")
        malformed = fails(stated)
        assert malformed.reason == "CredentialsMissing"
        assert "secret" not in malformed.message


def test_the_hubs_wrong_token_is_denied_and_a_missing_one_asked_for(tmp_path: Path) -> None:
    with hugging_face(tmp_path) as store:
        denied = fails(with_key(store.settings(tmp_path, "one"), HF_TOKEN="hf_wrong"))
        assert (denied.reason, denied.exit_code) == ("AccessDenied", 75)
        stated = store.settings(tmp_path, "one")
        (stated.credentials_dir / "HF_TOKEN").unlink()
        missing = fails(stated)
        assert (missing.reason, missing.exit_code) == ("CredentialsMissing", 75)
        assert "HF_TOKEN" in missing.message


def test_the_hubs_token_is_for_the_hub_and_not_for_where_it_sends_us(
    tmp_path: Path, content: dict[str, bytes]
) -> None:
    """Both names lead to one address here: it goes by the name."""
    hub = Hub()
    hub.cdn = f"http://127.0.0.1:{hub.server_address[1]}"
    with serving(hub) as store:
        store.put("model.onnx", content["model.onnx"])
        stated = with_key(
            store.settings(tmp_path, "", model_uri="hf://acme/fraud"),
            HF_ENDPOINT=f"http://localhost:{store.port}",
        )
        assert fetching.fetch(stated).digest == sha256(content["model.onnx"])
    assert set(hub.cdn_was_told) == {None}


def test_a_hub_that_answers_with_all_of_a_file_is_read_in_parts_all_the_same(tmp_path: Path) -> None:
    hub, data = Hub(), large_model(PART_BYTES + 1000)
    hub.ranges = False
    with serving(hub) as store:
        store.put("model.onnx", data)
        stated = store.settings(tmp_path, "", model_uri="hf://acme/fraud")
        assert fetching.fetch(stated).digest == sha256(data)


def test_a_hubs_revision_is_taken_and_an_unknown_one_not_found(
    tmp_path: Path, content: dict[str, bytes]
) -> None:
    with hugging_face(tmp_path) as store:
        for name, data in content.items():
            store.put(name, data)
        commit = hub_commit(store.port)
        store.put("model.onnx", b"later")
        stated = store.settings(tmp_path, "", model_uri=f"hf://acme/fraud@{commit}")
        fetching.fetch(stated)
        assert (model_root(stated.model_dir) / "model.onnx").read_bytes() == content["model.onnx"]
        other = fails(
            store.settings(tmp_path, "", model_uri="hf://acme/fraud@v9", model_dir=tmp_path / "other")
        )
        assert (other.reason, other.exit_code) == ("NotFound", 1)


def hub_commit(port: int) -> str:
    answer = httpx.get(
        f"http://localhost:{port}/api/models/acme/fraud", headers={"authorization": "Bearer hf_right"}
    )
    return answer.json()["sha"]


@pytest.mark.parametrize(
    "key",
    [
        {"type": "external_account", "token_url": "http://10.0.0.1/", "audience": "a"},
        {"type": "service_account", "token_uri": "http://169.254.169.254/token"},
        {"type": "impersonated_service_account"},
        [],
    ],
)
def test_googles_key_file_cannot_send_the_library_elsewhere(tmp_path: Path, key: Any) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "GOOGLE_APPLICATION_CREDENTIALS").write_text(json.dumps(key))
    failure = fails(settings(tmp_path, model_uri="gs://models/m", credentials_dir=tmp_path / "keys"))
    assert (failure.reason, failure.exit_code) == ("CredentialsMissing", 75)
    assert "should be the JSON" in failure.message or "taken are service_account and" in failure.message


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket", "gs://B_AD/key", "gs://bucket/key?x", "az://container", "az://Con/key", "hf://gpt2",
        "hf://a/b/../../c@", "hf://a/b?x", "file://elsewhere/m",
    ],
)  # fmt: skip
def test_a_uri_that_says_too_little_or_too_much_is_refused(tmp_path: Path, uri: str) -> None:
    failure = fails(settings(tmp_path, model_uri=uri))
    assert (failure.reason, failure.exit_code) == ("InvalidURI", 1)


@pytest.mark.parametrize(("scheme", "driver"), [("gs", "gcsfs"), ("az", "adlfs"), ("hf", "httpx2")])
def test_a_missing_driver_is_named_with_its_extra(
    tmp_path: Path, scheme: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.setitem(sys.modules, f"{driver}.core", None)
    monkeypatch.delitem(sys.modules, f"pilotage_runtime.sources.{scheme}", raising=False)
    monkeypatch.delattr(sources, scheme, raising=False)
    failure = fails(settings(tmp_path, model_uri=f"{scheme}://a/b"))
    assert (failure.reason, failure.exit_code) == ("InvalidURI", 1)
    assert f"pip install 'pilotage[{scheme}]'" in failure.message
