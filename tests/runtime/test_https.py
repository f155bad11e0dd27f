"""Fetching by https from a real server with a certificate of its own authority."""

import datetime as dt
import gzip
import http.server
import ipaddress
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pilotage_runtime import fetch as fetching
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.fetched import model_root
from pilotage_runtime.settings import FetchSettings
from pilotage_runtime.sources.parts import PART_BYTES
from tests.runtime.conftest import environment, eventually
from tests.runtime.test_fetch import a_disk_that_takes, fails, settings, sha256


class Store(http.server.ThreadingHTTPServer):
    """Answers each path by what the test put there."""

    content = b""
    asked: list[str]
    flaky = 0
    etag = '"1"'
    shift = 0
    """How far behind the asked bytes those lie that are answered, but for the first part."""
    ranges: list[str]
    withheld = 0
    """How many bytes each part lacks, which its own length admits and its range does not."""
    before_part: Callable[[int], None] = staticmethod(lambda start: None)
    """Called with the first byte of each range before it is answered."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content, port = self.server.content, self.server.server_port
        match self.path.split("?")[0].split("/")[1]:
            case "model.onnx":
                self.answer(200, content)
            case "short":
                self.answer(200, content[:-10], length=len(content))
            case "unsized":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)
            case "ranged":
                self.answer_range(self.headers["range"])
            case "flaky" if self.server.flaky:
                self.server.flaky -= 1
                self.answer(503)
            case "flaky":
                self.answer(200, content)
            case "coded" if "gzip" in self.headers["accept-encoding"]:
                self.answer(200, gzip.compress(content), coding="gzip")
            case "coded":
                self.answer(200, content)
            case "moved":
                self.answer(302, location=f"https://localhost:{port}/model.onnx")
            case "loop":
                self.answer(302, location="/loop")
            case "downgrade":
                self.answer(302, location=f"http://localhost:{port}/model.onnx")
            case "to-metadata":
                self.answer(302, location="https://169.254.169.254/latest/meta-data")
            case code:
                self.answer(int(code))

    def answer_range(self, asked: str | None) -> None:
        if asked is None or self.headers["if-range"] not in (None, self.server.etag):
            self.send_response(200)
            begin, end = 0, len(self.server.content)
        else:
            begin, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            self.server.ranges.append(asked)
            self.server.before_part(begin)
            begin += self.server.shift if begin else 0
            end = min(last + 1, len(self.server.content))
            self.send_response(206)
            self.send_header("content-range", f"bytes {begin}-{end - 1}/{len(self.server.content)}")
        end -= self.server.withheld
        self.send_header("etag", self.server.etag)
        self.send_header("content-length", str(end - begin))
        self.end_headers()
        self.wfile.write(self.server.content[begin:end])

    def answer(
        self, status: int, body: bytes = b"", length: int | None = None, location: str = "", coding: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body) if length is None else length))
        if location:
            self.send_header("location", location)
        if coding:
            self.send_header("content-encoding", coding)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


_WITHOUT_PAUSES = """
import sys
from pilotage_runtime import fetch
from pilotage_runtime.__main__ import main
fetch._FIRST_PAUSE_SECONDS = 0
sys.argv[1:] = ["fetch"]
sys.exit(main())
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def store(models: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    server = Store(("127.0.0.1", 0), Handler)
    server.content = (models / "iris" / "1" / "model.onnx").read_bytes()
    server.asked, server.ranges = [], []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def uri(store: Store, path: str) -> str:
    return f"https://localhost:{store.server_port}/{path}"


@pytest.mark.parametrize("path", ["model.onnx", "model.onnx?token=1", "unsized", "moved", "coded"])
def test_a_model_is_fetched_and_its_certificate_checked_by_name(
    store: Store, tmp_path: Path, path: str
) -> None:
    stated = settings(tmp_path, model_uri=uri(store, path), allow_private_addresses=True)
    assert fetching.fetch(stated).digest == sha256(store.content)
    assert len(list(model_root(stated.model_dir).iterdir())) == 1


def test_the_secret_in_a_presigned_address_is_in_no_line_of_the_log(store: Store, tmp_path: Path) -> None:
    """Neither when it works nor when it fails; the rest of the address is told."""
    for path in ("model.onnx", "404", "500"):
        stated = environment(
            model_uri=uri(store, f"{path}?signature=s3cret"), allow_private_addresses=True,
            model_dir=tmp_path / "models", termination_log=tmp_path / "none", pinned_digest_file=tmp_path / "none",
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_PAUSES], env=stated, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == (path == "model.onnx")
        assert uri(store, path) in done.stdout
        assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "reason", "status"),
    [
        ("404", "NotFound", 1),
        ("410", "NotFound", 1),
        ("401", "AccessDenied", 75),
        ("403", "AccessDenied", 75),
        ("429", "StoreUnavailable", 75),
        ("500", "StoreUnavailable", 75),
        ("400", "InvalidURI", 1),
        ("short", "Truncated", 75),
        ("loop", "InvalidURI", 1),
        ("downgrade", "InvalidURI", 1),
        ("to-metadata", "AddressNotAllowed", 75),
    ],
)
def test_every_failure_has_its_reason(
    store: Store, tmp_path: Path, path: str, reason: str, status: int
) -> None:
    failure = fails(settings(tmp_path, model_uri=uri(store, path), allow_private_addresses=True))
    assert (failure.stage, failure.reason, failure.exit_code) == ("Download", reason, status)
    transient = reason in {"StoreUnavailable", "Truncated"}
    assert (len(store.asked) == fetching.ATTEMPTS) == transient
    # Five redirects are followed, and no more.
    assert path != "loop" or len(store.asked) == 1 + 5


def test_an_unsteady_store_is_asked_again(store: Store, tmp_path: Path) -> None:
    store.flaky = 3
    stated = settings(tmp_path, model_uri=uri(store, "flaky"), allow_private_addresses=True)
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(store.content)
    assert len(store.asked) == 4


def test_the_size_limit_holds_without_an_announced_size(store: Store, tmp_path: Path) -> None:
    failure = fails(
        settings(tmp_path, model_uri=uri(store, "unsized"), allow_private_addresses=True, max_model_bytes=100)
    )
    assert failure.reason == "TooLarge"


def test_a_private_address_is_refused_before_anything_is_sent(store: Store, tmp_path: Path) -> None:
    failure = fails(settings(tmp_path, model_uri=uri(store, "model.onnx")))
    assert (failure.reason, failure.exit_code) == ("AddressNotAllowed", 75)
    assert store.asked == []


def test_a_certificate_of_an_unknown_authority_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    failure = fails(settings(tmp_path, model_uri=uri(store, "model.onnx"), allow_private_addresses=True))
    assert failure.reason == "StoreUnavailable"
    assert "CERTIFICATE_VERIFY_FAILED" in failure.message
    assert store.asked == []


def test_the_connection_goes_to_the_address_that_was_judged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotage_runtime.sources import address  # noqa: PLC0415

    asked: list[str] = []
    resolve = address.resolve

    def once(host: str, port: int, *, allow_private: bool) -> list[str]:
        asked.append(host)
        return resolve("127.0.0.1", port, allow_private=allow_private)

    # A name that no resolver knows: were it resolved anywhere else, the fetch would fail.
    monkeypatch.setattr(address, "resolve", once)
    unknown = f"https://store.invalid:{store.server_port}/model.onnx"
    with pytest.raises(StartFailure, match=r"Hostname mismatch|not valid for 'store.invalid'"):
        fetching.fetch(
            settings(tmp_path, model_uri=unknown, allow_private_addresses=True), sleep=lambda _: None
        )
    assert set(asked) == {"store.invalid"}


def test_no_proxy_of_the_environment_is_asked(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would resolve the name itself, where nobody judges the address."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    stated = settings(tmp_path, model_uri=uri(store, "model.onnx"), allow_private_addresses=True)
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(store.content)


def test_an_unknown_name_and_a_closed_port_are_the_infrastructures_fault(tmp_path: Path) -> None:
    for unreachable in ("https://store.invalid/m", "https://localhost:1/m"):
        failure = fails(settings(tmp_path, model_uri=unreachable, allow_private_addresses=True))
        assert (failure.reason, failure.exit_code) == ("StoreUnavailable", 75)


def large_model(size: int) -> bytes:
    """An empty graph with a long doc string: an ONNX file of any size."""
    length, text = size, bytearray()
    while length > 0x7F:
        text.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\x08\x09\x32" + bytes(text) + bytes([length]) + os.urandom(size) + b"\x3a\x00"


def asked_for(*parts: int, of: bytes) -> list[str]:
    """The ranges of these parts; the first one is asked for before the size is known."""
    ends = [PART_BYTES if part == 0 else min((part + 1) * PART_BYTES, len(of)) for part in parts]
    return [f"bytes={part * PART_BYTES}-{end - 1}" for part, end in zip(parts, ends, strict=True)]


@pytest.fixture
def large(store: Store) -> Store:
    store.content = large_model(3 * PART_BYTES + 1000)
    return store


def ranged(store: Store, tmp_path: Path, **changes: Any) -> FetchSettings:
    return settings(tmp_path, model_uri=uri(store, "ranged"), allow_private_addresses=True, **changes)


def test_a_large_model_comes_in_parts_several_at_a_time(large: Store, tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=10)
    large.before_part = lambda start: start and together.wait()
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)
    assert sorted(large.ranges) == sorted(asked_for(0, 1, 2, 3, of=large.content))


def test_a_broken_off_download_goes_on_where_it_stopped(large: Store, tmp_path: Path) -> None:
    def break_off(start: int) -> None:
        if start == 2 * PART_BYTES and len(large.ranges) == 3:
            raise ConnectionResetError

    large.before_part = break_off
    stated = ranged(large, tmp_path, parallel_downloads=1)
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(large.content)
    # The first part of the second try is the question how large the model is; nobody read the answer.
    assert large.ranges == asked_for(0, 1, 2, 0, 2, 3, of=large.content)


def test_content_that_is_overwritten_in_the_middle_is_never_mixed(large: Store, tmp_path: Path) -> None:
    other = large_model(3 * PART_BYTES + 1000)

    def overwrite(start: int) -> None:
        if start == 3 * PART_BYTES and large.etag == '"1"':
            large.etag, large.content = '"2"', other

    large.before_part = overwrite
    # The last of four parts would come from the new content.
    stated = ranged(large, tmp_path, parallel_downloads=1)
    assert fetching.fetch(stated, sleep=lambda _: None).digest == sha256(other)


def test_another_range_than_was_asked_for_is_not_taken_for_it(large: Store, tmp_path: Path) -> None:
    large.shift = 16
    failure = fails(ranged(large, tmp_path))
    assert failure.reason == "Truncated"
    assert "was overwritten in its store while it was read" in failure.message


def test_of_a_model_that_is_refused_no_parts_are_kept(large: Store, tmp_path: Path) -> None:
    """Going on behind them would only lead to the same content."""
    assert fails(ranged(large, tmp_path, model_digest=sha256(b"other"))).reason == "DigestMismatch"
    assert not (tmp_path / "models" / ".partial").exists()


def test_a_part_that_is_shorter_than_its_range_says_is_no_part(large: Store, tmp_path: Path) -> None:
    large.withheld = 10
    failure = fails(ranged(large, tmp_path, parallel_downloads=1))
    assert failure.reason == "Truncated"
    assert f"{PART_BYTES} bytes were asked for, {PART_BYTES - 10} came" in failure.message


def test_a_part_of_which_the_disk_took_less_is_no_part(large: Store, tmp_path: Path) -> None:
    """Nor is it one to the next run, which finds a disk with room."""
    with a_disk_that_takes(2 * PART_BYTES - 1000):
        assert "File too large" in fails(ranged(large, tmp_path, parallel_downloads=1)).message
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)


def test_a_weak_etag_vouches_for_nothing(large: Store, tmp_path: Path) -> None:
    large.etag = 'W/"1"'
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)
    assert large.ranges == asked_for(0, of=large.content)


def killed_in_the_middle(large: Store, tmp_path: Path) -> None:
    """Leave what a fetch leaves that is killed while its third part is on the way."""
    released = threading.Event()
    large.before_part = lambda start: start == 2 * PART_BYTES and released.wait(30)
    process = subprocess.Popen(
        [sys.executable, "-m", "pilotage_runtime", "fetch"],
        env=environment(
            model_uri=uri(large, "ranged"), allow_private_addresses=True, model_dir=tmp_path / "models",
            termination_log=tmp_path / "none", pinned_digest_file=tmp_path / "none", parallel_downloads=1,
        ),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    eventually(lambda: len(large.ranges) == 3)
    process.kill()
    process.wait(10)
    released.set()
    large.before_part = lambda start: None
    large.ranges.clear()


def test_a_killed_fetch_is_gone_on_with_by_the_next_one(large: Store, tmp_path: Path) -> None:
    killed_in_the_middle(large, tmp_path)
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)
    assert sorted(large.ranges) == sorted(asked_for(0, 2, 3, of=large.content))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".fetched.json", "model"]


def test_parts_of_content_that_was_overwritten_between_two_runs_are_not_gone_on_behind(
    large: Store, tmp_path: Path
) -> None:
    """As large as before: only the store's own word tells them apart, where nobody stated a digest."""
    killed_in_the_middle(large, tmp_path)
    large.content, large.etag = large_model(3 * PART_BYTES + 1000), '"2"'
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)
    assert len(large.ranges) == 4


@pytest.mark.parametrize("other", ["boot", "uri"])
def test_nothing_is_taken_from_before_a_restart_of_the_machine_or_of_another_uri(
    large: Store, tmp_path: Path, other: str
) -> None:
    killed_in_the_middle(large, tmp_path)
    journal = tmp_path / "models" / ".partial" / "journal"
    head, _, rest = journal.read_text().partition("\n")
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() in head
    journal.write_text(head.replace(f'"{other}":"', f'"{other}":"x') + "\n" + rest)
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)
    assert len(large.ranges) == 4


def test_parts_that_do_not_fit_are_fetched_anew_before_the_model_is_blamed(
    large: Store, tmp_path: Path
) -> None:
    killed_in_the_middle(large, tmp_path)
    part = tmp_path / "models" / ".partial" / "files" / "ranged"
    with part.open("r+b") as file:
        file.write(b"rubbish")
    stated = ranged(large, tmp_path, model_digest=sha256(large.content))
    assert fetching.fetch(stated).digest == sha256(large.content)
    assert len(large.ranges) == 3 + 4


@pytest.mark.parametrize("left", [None, 0, PART_BYTES + 1000])
def test_parts_that_are_noted_but_gone_are_fetched_anew(
    large: Store, tmp_path: Path, left: int | None
) -> None:
    killed_in_the_middle(large, tmp_path)
    part = tmp_path / "models" / ".partial" / "files" / "ranged"
    if left is None:
        part.unlink()
    else:
        os.truncate(part, left)
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)
    assert len(large.ranges) == 4


def test_a_run_whose_last_word_did_not_fit_on_the_disk_is_done_anew(large: Store, tmp_path: Path) -> None:
    in_the_way = tmp_path / "models" / ".fetched.json.new"
    in_the_way.mkdir(parents=True)
    with pytest.raises(StartFailure, match="cannot write"):
        fetching.fetch(ranged(large, tmp_path))
    in_the_way.rmdir()
    assert fetching.fetch(ranged(large, tmp_path)).digest == sha256(large.content)


def test_progress_is_told_with_its_share_and_its_rate(
    large: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pilotage_runtime.sources import transfer  # noqa: PLC0415

    monkeypatch.setattr(transfer, "_PROGRESS_SECONDS", 0.0)
    caplog.set_level("INFO")
    fetching.fetch(ranged(large, tmp_path, parallel_downloads=1))
    told = [record for record in caplog.records if record.message == "downloading"]
    shares = [vars(record)["percent"] for record in told]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert vars(told[-1])["of"] == vars(told[-1])["bytes"] == len(large.content)
    assert vars(told[-1])["bytes_per_second"] > 0
