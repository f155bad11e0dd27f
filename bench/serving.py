"""The servers that are compared: the runtime and its peers, each with one or many copies of iris.

Every peer runs in an environment of its own, with the packages that bench/peer_servers/NAME.txt pins, made once and
kept; its server is the file beside it, written as its own documentation would. All share one core, and the load has
the other.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.runtime import ROOT, SERVER_CORE, free_port
from bench.wrk import Ask
from pilotage_dev import environment

HERE = ROOT / "bench" / "peer_servers"
START_SECONDS = 120
_SAID_BYTES = 400
_ROW = [5.1, 3.5, 1.4, 0.2]
_V2 = json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": _ROW}]})
# No peer may tell its maker that it was started.
_QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


class Setup(NamedTuple):
    """What a server is to serve, and with how many processes."""

    file: Path  # the ONNX file; each model is a copy of it
    models: int = 1
    workers: int = 1

    @property
    def names(self) -> list[str]:
        """The models' names."""
        return [f"iris-{number}" for number in range(self.models)]


class Server(NamedTuple):
    """A server that answers."""

    port: int
    pid: int  # of the first process of its session
    asks: list[Ask]  # one for each model
    ready_seconds: float  # from the command until every model had answered

    def memory(self) -> int:
        """Sum the proportional memory of all its processes in bytes: what several share is counted once."""
        total = 0
        for pid in _family(self.pid):
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:  # it has ended
                continue
            pss = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            total += int(pss[1]) * 1024 if pss else 0
        return total


class _Start(NamedTuple):
    command: list[str]
    environment: dict[str, str]


def _runtime(setup: Setup, port: int, folder: Path) -> _Start:
    for name in setup.names:
        (folder / name / "1").mkdir(parents=True)
        shutil.copy(setup.file, folder / name / "1" / "model.onnx")
    settings = {
        "PILOTAGE_MODEL_DIR": str(folder),
        "PILOTAGE_HOST": "127.0.0.1",
        "PILOTAGE_HTTP_PORT": str(port),
        "PILOTAGE_METRICS_PORT": "0",
        "PILOTAGE_THREADS": "1",
        "PILOTAGE_DRAIN_SECONDS": "0",
        "PILOTAGE_WORKERS": str(setup.workers),
    }
    return _Start([sys.executable, "-m", "pilotage_runtime", "serve"], settings)


def _mlserver(setup: Setup, port: int, folder: Path) -> _Start:
    settings = {"parallel_workers": 0 if setup.workers == 1 else setup.workers, "http_port": port,
                "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1", "debug": False}  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    for name in setup.names:
        (folder / name).mkdir()
        described = {
            "name": name,
            "implementation": "mlserver_model.Iris",
            "parameters": {"uri": str(setup.file)},
        }
        (folder / name / "model-settings.json").write_text(json.dumps(described))
    return _Start([str(_binaries("mlserver") / "mlserver"), "start", str(folder)], {"PYTHONPATH": str(HERE)})


def _script(name: str) -> Callable[[Setup, int, Path], _Start]:
    def start(setup: Setup, port: int, folder: Path) -> _Start:
        del setup, folder  # both are in its environment
        return _Start([str(_binaries(name) / "python"), str(HERE / f"{name}_server.py"), str(port)], {})

    return start


def _bentoml(setup: Setup, port: int, folder: Path) -> _Start:
    del setup
    shutil.copy(HERE / "bentoml_service.py", folder)
    command = [str(_binaries("bentoml") / "bentoml"), "serve", "bentoml_service:Iris", "--host", "127.0.0.1", "--port",
               str(port), "--working-dir", str(folder)]  # fmt: skip
    return _Start(command, {})


_STARTS: dict[str, Callable[[Setup, int, Path], _Start]] = {
    "runtime": _runtime,
    "mlserver": _mlserver,
    "kserve": _script("kserve"),
    "litserve": _script("litserve"),
    "bentoml": _bentoml,
    "ray": _script("ray"),
}
PEERS = tuple(name for name in _STARTS if name != "runtime")
_SPEAK_V2 = frozenset({"runtime", "mlserver", "kserve"})


@contextmanager
def serving(kind: str, setup: Setup) -> Generator[Server]:
    """Start a server, wait until every model has answered, and end it; raise RuntimeError where it does not."""
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as log:
        folder = Path(scratch) / "served"
        folder.mkdir()
        start = _STARTS[kind](setup, port, folder)
        given = {"IRIS": str(setup.file), "MODELS": ",".join(setup.names), "WORKERS": str(setup.workers),
                 "HOME": scratch, "TMPDIR": scratch}  # fmt: skip
        began = time.monotonic()
        process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *start.command],
            cwd=ROOT,
            env={**os.environ, **_QUIET, **given, **start.environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            asks = [_ask(kind, name) for name in setup.names]
            try:
                for ask in asks:
                    _wait(port, ask, process, began + START_SECONDS)
            except RuntimeError as failure:
                log.seek(0)
                said = " ".join(log.read()[-_SAID_BYTES:].decode(errors="replace").split())
                raise RuntimeError(f"{failure}; the end of its log: {said}") from failure
            yield Server(port, process.pid, asks, time.monotonic() - began)
        finally:
            _end(process)


def _family(leader: int) -> set[int]:
    """List the processes of a session, and their descendants in whatever session."""
    parents, family = dict[int, int](), {leader}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(status.parent.name)
        parents[pid] = int(fields[1])
        if int(fields[3]) == leader:
            family.add(pid)
    while born := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= born
    return family


def _ask(kind: str, model: str) -> Ask:
    if kind in _SPEAK_V2:
        return Ask(f"/v2/models/{model}/infer", _V2)
    return Ask("/predict", json.dumps({"data": [_ROW], "model": model}))


def _wait(port: int, ask: Ask, process: subprocess.Popen[bytes], until: float) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{ask.path}", ask.body.encode(), {"Content-Type": "application/json"}
    )
    last: Exception | None = None
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"it ended by itself with code {process.returncode}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
        except OSError as error:
            last = error
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"it did not answer within {START_SECONDS} s: {last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for name in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, name)
            process.wait(15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _binaries(name: str) -> Path:
    return environment.binaries(HERE / f"{name}.txt")
