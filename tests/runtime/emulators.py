"""Stores that speak as Google's, Azure's and Hugging Face's do, on this machine."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import pytest

from pilotage_dev import npm
from pilotage_dev.errors import StackError
from pilotage_runtime.settings import FetchSettings
from tests.runtime.conftest import eventually, free_port
from tests.runtime.test_fetch import settings

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FAKE_GCS = CACHE / "pilotage" / "bin" / "fake-gcs-server"
# What every installation of Azurite has.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass
class Emulator:
    """A store with one bucket, container or repository."""

    scheme: str
    port: int
    put: Callable[..., Any]
    """Takes a file's name and its bytes, and where the store keeps one a content coding."""
    keys: dict[str, str]
    """The Secret that reads it; the endpoint stands in it, with the host that a test wants."""

    def uri(self, name: str) -> str:
        return f"{self.scheme}://{'acme/fraud' if self.scheme == 'hf' else 'models'}/{name}"

    def settings(self, tmp_path: Path, name: str, host: str = "localhost", **changes: Any) -> FetchSettings:
        folder = tmp_path / "keys"
        folder.mkdir(exist_ok=True)
        for key, value in self.keys.items():
            (folder / key).write_text(value.replace("HOST", f"{host}:{self.port}") + "\n")
        stated = {"model_uri": self.uri(name), "credentials_dir": folder, "allow_private_addresses": True}
        return settings(tmp_path, **{**stated, **changes})


def absent(what: str, why: str) -> None:
    sentence = f"no {what}: {why}"
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


@contextlib.contextmanager
def started(command: list[Any], port: int, folder: Path) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return bool(httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code)
        return False

    try:
        eventually(answers)
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def google(folder: Path) -> Iterator[Emulator]:
    if not FAKE_GCS.exists():
        absent("Google Cloud Storage", f"{FAKE_GCS} is missing; `dev/dev build` builds it")
    port = free_port()
    command = [
        FAKE_GCS, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory",
        "-public-host", f"localhost:{port}", "-log-level", "error",
    ]  # fmt: skip
    at = f"http://127.0.0.1:{port}"

    def put(name: str, data: bytes, coding: str = "") -> None:
        stated = f"name={quote(name, safe='')}&contentEncoding={coding}"
        url = f"{at}/upload/storage/v1/b/models/o?uploadType=media&{stated}"
        httpx.post(url, content=data, trust_env=False, timeout=60).raise_for_status()

    with started([str(word) for word in command], port, folder):
        httpx.post(f"{at}/storage/v1/b", json={"name": "models"}, trust_env=False).raise_for_status()
        yield Emulator("gs", port, put, {"STORAGE_EMULATOR_HOST": "http://HOST"})


@contextlib.contextmanager
def azure(folder: Path) -> Iterator[Emulator]:
    folder.mkdir(exist_ok=True)
    try:
        npm.install(lambda _: None)
    except (StackError, OSError, subprocess.TimeoutExpired) as error:
        absent("Azure Blob Storage", str(error))
    port = free_port()
    main = npm.folder("azurite") / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    command = [npm.NODE, main, "--blobHost", "127.0.0.1", "--blobPort", port, "--location", folder, "--silent",
               "--skipApiVersionCheck", "--disableTelemetry"]  # fmt: skip
    text = (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
        f"BlobEndpoint=http://HOST/{ACCOUNT};"
    )
    from azure.storage.blob import BlobServiceClient, ContainerClient, ContentSettings  # noqa: PLC0415

    with started([str(word) for word in command], port, folder):
        client = BlobServiceClient.from_connection_string(text.replace("HOST", f"127.0.0.1:{port}"))
        container: ContainerClient = client.create_container("models")

        def put(name: str, data: bytes, coding: str | None = None) -> None:
            stated = ContentSettings(content_encoding=coding)
            container.upload_blob(name, data, overwrite=True, content_settings=stated)

        yield Emulator("az", port, put, {"AZURE_STORAGE_CONNECTION_STRING": text})
        client.close()


@dataclass
class Hub(http.server.ThreadingHTTPServer):
    """The few paths of the Hub that reading a repository takes. Files of more than 100 bytes are large files."""

    files: dict[str, bytes] = field(default_factory=dict)
    token: str = "hf_right"
    asked: list[str] = field(default_factory=list)
    old: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cdn: str = ""
    """Before the path to which large files are redirected: another host."""
    ranges: bool = True
    """Whether large files come in parts; small ones never do."""
    cdn_was_told: list[str | None] = field(default_factory=list)
    """The header Authorization of each request for a large file's bytes."""

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)

    @property
    def commit(self) -> str:
        listed = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.files.items())
        commit = hashlib.sha1(json.dumps(listed).encode()).hexdigest()
        self.old.setdefault(commit, dict(self.files))
        return commit

    def put(self, name: str, data: bytes) -> None:
        self.files[name] = data


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("authorization") != f"Bearer {hub.token}" and not path.startswith("/cdn/"):
            return self.answer(401, b"{}", **{"x-error-code": "RepoNotFound"})
        if found := re.fullmatch(r"/api/models/acme/fraud(?:/revision/(.*))?", path):
            if found[1] not in (None, "main", *hub.old, hub.commit):
                return self.answer(404, b"{}", **{"x-error-code": "RevisionNotFound"})
            sha = found[1] if found[1] in hub.old else hub.commit
            return self.json({"id": "acme/fraud", "modelId": "acme/fraud", "sha": sha, "siblings": []})
        if found := re.fullmatch(r"/api/models/acme/fraud/(?:tree|paths-info)/([0-9a-f]{40})/?(.*)", path):
            files = hub.old[found[1]]
            if self.command == "POST":
                wanted = (
                    json.loads(body)["paths"]
                    if body[:1] == b"{"
                    else re.findall(r"paths=([^&]*)", unquote(body.decode()))
                )
                return self.json([self.entry(each, files) for each in wanted if self.known(each, files)])
            below = found[2] + "/" if found[2] else ""
            if below and not self.known(found[2], files):
                return self.answer(404, b"{}", **{"x-error-code": "EntryNotFound"})
            inside = [name for name in files if name.startswith(below)]
            if "recursive=true" not in self.path.lower():
                inside = sorted({below + name[len(below) :].split("/")[0] for name in inside})
            else:
                inside += sorted({str(Path(name).parent) for name in inside} - {".", found[2]})
            return self.json([self.entry(name, files) for name in inside])
        if found := re.fullmatch(r"/acme/fraud/resolve/([0-9a-f]{40})/(.*)", path):
            data = hub.old[found[1]].get(found[2])
            if data is None:
                return self.answer(404, **{"x-error-code": "EntryNotFound"})
            if len(data) > 100 and hub.ranges:
                return self.answer(302, location=f"{hub.cdn}/cdn/{found[1]}/{found[2]}")
            return self.answer(200, data)
        if found := re.fullmatch(r"/cdn/([0-9a-f]{40})/(.*)", path):
            data = hub.old[found[1]][found[2]]
            hub.cdn_was_told.append(self.headers.get("authorization"))
            begin, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"]).groups()  # type: ignore[union-attr]
            part = data[int(begin) : int(last) + 1]
            return self.answer(206, part, **{"content-range": f"bytes {begin}-{last}/{len(data)}"})
        return self.answer(404, b"{}", **{"x-error-code": "RepoNotFound"})

    def known(self, path: str, files: dict[str, bytes]) -> bool:
        return path in files or any(name.startswith(path + "/") for name in files)

    def entry(self, path: str, files: dict[str, bytes]) -> dict[str, Any]:
        data = files.get(path)
        if data is None:
            return {"type": "directory", "path": path, "oid": "0" * 40}
        found = {"type": "file", "path": path, "size": len(data)}
        if len(data) > 100:
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            return {**found, "oid": hashlib.sha1(b"pointer" + data).hexdigest(), "lfs": lfs}
        return {**found, "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), **{"content-type": "application/json"})

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def hugging_face(folder: Path) -> Iterator[Emulator]:
    with serving(Hub()) as emulator:
        yield emulator


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Emulator]:
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    keys = {"HF_ENDPOINT": "http://HOST", "HF_TOKEN": hub.token}
    yield Emulator("hf", hub.server_address[1], hub.put, keys)
    hub.shutdown()
    hub.server_close()
