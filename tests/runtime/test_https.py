"""Fetching by https from a real server with a certificate of its own authority."""

import datetime as dt
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pilotage_runtime import fetch as fetching
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.fetched import model_root
from tests.runtime.test_fetch import fails, settings, sha256


class Store(http.server.ThreadingHTTPServer):
    """Answers each path by what the test put there."""

    content = b""
    asked: list[str]
    flaky = 0


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
            case "flaky" if self.server.flaky:
                self.server.flaky -= 1
                self.answer(503)
            case "flaky":
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

    def answer(self, status: int, body: bytes = b"", length: int | None = None, location: str = "") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body) if length is None else length))
        if location:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


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
    server.asked = []
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


@pytest.mark.parametrize("path", ["model.onnx", "model.onnx?token=1", "unsized", "moved"])
def test_a_model_is_fetched_and_its_certificate_checked_by_name(
    store: Store, tmp_path: Path, path: str
) -> None:
    stated = settings(tmp_path, model_uri=uri(store, path), allow_private_addresses=True)
    assert fetching.fetch(stated).digest == sha256(store.content)
    assert len(list(model_root(stated.model_dir).iterdir())) == 1


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


def test_an_unknown_name_and_a_closed_port_are_the_infrastructures_fault(tmp_path: Path) -> None:
    for unreachable in ("https://store.invalid/m", "https://localhost:1/m"):
        failure = fails(settings(tmp_path, model_uri=unreachable, allow_private_addresses=True))
        assert (failure.reason, failure.exit_code) == ("StoreUnavailable", 75)
