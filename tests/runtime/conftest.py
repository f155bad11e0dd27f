"""Real models, a real server in a process of its own, a real client."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from demo.models import build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build.main(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**settings: Any) -> dict[str, str]:
    """The environment of a subprocess: nothing of ours but what the test states."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PILOTAGE_", "AWS_"))}
    stated = {f"PILOTAGE_{name.upper()}": str(value) for name, value in settings.items()}
    return {**kept, "PYTHONPATH": str(ROOT / "runtime"), **stated}


@dataclass
class Server:
    """A `pilotage-runtime serve` process."""

    process: subprocess.Popen
    port: int
    metrics_port: int
    log_path: Path
    model: str
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20, trust_env=False)

    @property
    def infer_path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    def infer(self, document: Any, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(self.infer_path, json=document, headers=named)

    def log(self) -> str:
        return self.log_path.read_text()

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics()[name, frozenset({"model": self.model, "version": "1", **labels}.items())]

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/v2/health/ready").status_code == 200
        return False

    def wait_ready(self) -> None:
        eventually(lambda: self.process.poll() is not None or self.ready())
        assert self.process.poll() is None, self.log()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_exit(self) -> int:
        return self.process.wait(30)


def eventually(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for a condition; the limit only ends a test that has failed anyway."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)
    return value


class Servers:
    """Starts servers and ends what a test left running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Server] = []

    def __call__(self, model_dir: Path, model: str = "fraud", **settings: Any) -> Server:
        server = self.start(model_dir, model, **settings)
        server.wait_ready()
        return server

    def start(self, model_dir: Path, model: str = "fraud", **settings: Any) -> Server:
        port, metrics_port = free_port(), free_port()
        log_path = self.folder / f"{len(self.started)}-{port}.log"
        defaults = {
            "model_dir": model_dir,
            "model_name": model,
            "host": "127.0.0.1",
            "http_port": port,
            "metrics_port": metrics_port,
            "drain_seconds": 0,
            "threads": 1,
            "termination_log": self.folder / "none",
        }
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pilotage_runtime", "serve"],
                env=environment(**{**defaults, **settings}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        server = Server(process, port, metrics_port, log_path, model)
        self.started.append(server)
        return server

    def end(self) -> None:
        for server in self.started:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGINT)
                try:
                    server.process.wait(10)
                except subprocess.TimeoutExpired:
                    server.process.kill()
            server.client.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Servers]:
    servers = Servers(tmp_path)
    yield servers
    servers.end()


@pytest.fixture(scope="module")
def serve_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.end()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a model waits for; opened at the end, so that no thread of it stays."""
    event = threading.Event()
    yield event
    event.set()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that serves: it closes, times and refuses otherwise than Python's own."""
    return {"uvloop": uvloop.new_event_loop}
