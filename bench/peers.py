"""The runtime against its peers: iris ONNX, one worker, 32 connections, requests a second and p99.

    .venv/bin/python -m bench.peers [--pairs 3] [--seconds 4] [--connections 32] [--only mlserver,litserve]

Every peer runs in an environment of its own, with the packages that bench/peer_servers/NAME.txt pins, made once and
kept; its server is the file beside it, written as its own documentation would. One after the other, each peer takes
turns with the runtime, server and load pinned to a core each, so that whatever else the machine does falls on
both. The load is wrk (Debian: wrk). A peer that does not install or start is named, and the rest go on.
Printed are medians: requests a second, p99, the server's memory (all its processes), and the ratio of the pairs.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.runtime import LOAD_CORE, ROOT, SERVER_CORE, free_port
from demo.models import build

HERE = ROOT / "bench" / "peer_servers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pilotage"
ROW = [5.1, 3.5, 1.4, 0.2]
V2 = json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": ROW}]})
PLAIN = json.dumps({"data": [ROW]})
START_SECONDS = 90
# No peer may tell its maker that it was started.
_QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


class Peer(NamedTuple):
    """How to start a server and what to ask it."""

    path: str
    body: str
    command: Callable[
        [Path, str, int, Path], list[str]
    ]  # its environment's bin, model, port, a folder for files


def _mlserver(binaries: Path, model: str, port: int, folder: Path) -> list[str]:
    settings = {"parallel_workers": 0, "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
                "host": "127.0.0.1", "debug": False}  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    described = {"name": "iris", "implementation": "mlserver_model.Iris", "parameters": {"uri": model}}
    (folder / "model-settings.json").write_text(json.dumps(described))
    shutil.copy(HERE / "mlserver_model.py", folder)
    return [str(binaries / "mlserver"), "start", str(folder)]


def _script(name: str) -> Callable[[Path, str, int, Path], list[str]]:
    def command(binaries: Path, model: str, port: int, folder: Path) -> list[str]:
        del folder
        return [str(binaries / "python"), str(HERE / name), model, str(port)]

    return command


def _bentoml(binaries: Path, model: str, port: int, folder: Path) -> list[str]:
    del model
    shutil.copy(HERE / "bentoml_service.py", folder)
    return [str(binaries / "bentoml"), "serve", "bentoml_service:Iris", "--host", "127.0.0.1", "--port", str(port),
            "--working-dir", str(folder)]  # fmt: skip


PEERS = {
    "mlserver": Peer("/v2/models/iris/infer", V2, _mlserver),
    "kserve": Peer("/v2/models/iris/infer", V2, _script("kserve_server.py")),
    "litserve": Peer("/predict", PLAIN, _script("litserve_server.py")),
    "bentoml": Peer("/predict", PLAIN, _bentoml),
    "ray": Peer("/predict", PLAIN, _script("ray_server.py")),
}


class Load(NamedTuple):
    """What one spell of load came to."""

    rate: float
    p99_ms: float


def main() -> None:
    """Compare with all peers that can be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default=",".join(PEERS))
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("bench.peers needs wrk (Debian: apt install wrk)")
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        build.main(models)
        for peer in options.only.split(","):
            try:
                _compare(peer, models, options)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                print(f"{peer:9} could not be measured: {str(error)[:300]}", flush=True)


def _compare(name: str, models: Path, options: argparse.Namespace) -> None:
    model = str(models / "iris" / "1" / "model.onnx")
    binaries = _environment(name)
    loads: dict[str, list[Load]] = {"runtime": [], name: []}
    with tempfile.TemporaryDirectory() as scratch:
        ports = {"runtime": free_port(), name: free_port()}
        commands = {
            "runtime": [sys.executable, "-m", "pilotage_runtime", "serve"],
            name: PEERS[name].command(binaries, model, ports[name], Path(scratch)),
        }
        asked = {"runtime": PEERS["mlserver"], name: PEERS[name]}
        with (
            _running(commands["runtime"], _runtime_environment(model, ports["runtime"])) as own,
            _running(commands[name], {"IRIS": model, "HOME": scratch, "TMPDIR": scratch}) as other,
        ):
            pids = {"runtime": own, name: other}
            for kind in loads:
                _wait(ports[kind], asked[kind], pids[kind])
                _load(ports[kind], asked[kind], options.connections, 2.0)
            for pair in range(options.pairs):
                for kind in sorted(loads, reverse=bool(pair % 2)):
                    loads[kind].append(_load(ports[kind], asked[kind], options.connections, options.seconds))
            memory = {kind: _memory(pid) for kind, pid in pids.items()}
    ratios = [one.rate / other.rate for one, other in zip(loads["runtime"], loads[name], strict=True)]
    for kind, of_kind in loads.items():
        rate = statistics.median(load.rate for load in of_kind)
        p99 = statistics.median(load.p99_ms for load in of_kind)
        print(f"{kind:9} {rate:8.0f}/s  p99 {p99:7.2f} ms  {memory[kind] / 2**20:5.0f} MiB")
    print(
        f"          {statistics.median(ratios):.1f} times {name} ({min(ratios):.1f} to {max(ratios):.1f})",
        flush=True,
    )


def _environment(name: str) -> Path:
    pins = HERE / f"{name}.txt"
    key = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = CACHE / "peers" / f"{name}-{key}"
    mark = folder / "complete"
    if not mark.exists():
        uv = CACHE / "uv" / "bin" / "uv"
        python = folder / "bin" / "python"
        print(f"{name}: making its environment", flush=True)
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", python, "--requirement", pins], check=True
        )
        mark.touch()
    return folder / "bin"


def _runtime_environment(model: str, port: int) -> dict[str, str]:
    return {
        "PILOTAGE_MODEL_NAME": "iris",
        "PILOTAGE_MODEL_DIR": model,
        "PILOTAGE_HOST": "127.0.0.1",
        "PILOTAGE_HTTP_PORT": str(port),
        "PILOTAGE_METRICS_PORT": "0",
        "PILOTAGE_THREADS": "1",
        "PILOTAGE_DRAIN_SECONDS": "0",
    }


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Generator[int]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *command],
            cwd=ROOT,
            env={**os.environ, **_QUIET, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def _wait(port: int, peer: Peer, pid: int) -> None:
    import urllib.request  # noqa: PLC0415

    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{peer.path}", peer.body.encode(), {"Content-Type": "application/json"}
    )
    until = time.monotonic() + START_SECONDS
    last: Any = None
    while time.monotonic() < until:
        if not Path(f"/proc/{pid}").exists():
            break
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
        except OSError as error:
            last = error
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"it did not answer within {START_SECONDS} s: {last}")


def _load(port: int, peer: Peer, connections: int, seconds: float) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{peer.body}]==]\n'
        )
        script.flush()
        output = subprocess.check_output(
            [
                "taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--latency",
                "-s", script.name, f"http://127.0.0.1:{port}{peer.path}",
            ],
            text=True,
        )  # fmt: skip
    if "Non-2xx" in output:
        raise RuntimeError(f"not every answer was good: {output}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    assert rate, output
    assert p99, output
    return Load(float(rate[1]), float(p99[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[p99[2]])


def _memory(leader: int) -> int:
    """Sum the proportional memory of a session's processes: what several share is counted once."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[3]) == leader:
                rollup = (status.parent / "smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1]) * 1024  # pyright: ignore[reportOptionalSubscript]
        except OSError:
            continue
    return total


if __name__ == "__main__":
    main()
