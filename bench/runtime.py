"""The runtime against its floor: iris ONNX, one worker, requests a second.

    .venv/bin/python -m bench.runtime [--pairs 7] [--seconds 4] [--connections 32]

Floor and runtime run in turns, one pair after the other, so that whatever else the machine does falls on
both; the server and the load have a core each. Printed are the median of the pairs' ratios, their spread,
and the medians of both: requests a second, and the server's CPU time a request. Rate times CPU time near one
says that the server had its core to itself, far below one that neighbours took it. Load comes from `wrk` where
it is installed, else from a client in this file.
"""

import argparse
import asyncio
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from demo.models import build

SERVER_CORE, LOAD_CORE = 0, 1
PATH = "/v2/models/iris/infer"
ROOT = Path(__file__).resolve().parent.parent


class Running(NamedTuple):
    """A server under measurement."""

    port: int
    pid: int


class Load(NamedTuple):
    """What one spell of load came to."""

    rate: float  # requests a second
    cpu_us: float  # the server's CPU time a request


def main() -> None:
    """Run all pairs and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--load", metavar="PORT", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--body", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        body = options.body.read_bytes()
        print(*asyncio.run(_client(options.load, body, options.connections, options.seconds)))
        return
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("bench.runtime needs two cores: one for the server, one for the load")
    with tempfile.TemporaryDirectory() as folder:
        build.main(Path(folder))
        _compare(Path(folder), options)


def _compare(models: Path, options: argparse.Namespace) -> None:
    loads: dict[str, list[Load]] = {"floor": [], "runtime": []}
    print(
        f"load by {'wrk' if shutil.which('wrk') else 'the built-in client'}, {options.connections} connections"
    )
    with _server("floor", models) as floor_server, _server("runtime", models) as runtime_server:
        servers = {"floor": floor_server, "runtime": runtime_server}
        for server in servers.values():
            _measure(server, models, options.connections, 1.0)
        for pair in range(options.pairs):
            # Who goes first changes, or a machine that warms up would favour one of them.
            for kind in sorted(loads, reverse=bool(pair % 2)):
                loads[kind].append(_measure(servers[kind], models, options.connections, options.seconds))
            floor, runtime = loads["floor"][-1], loads["runtime"][-1]
            print(
                f"pair {pair + 1}: floor {floor.rate:8.0f}/s {floor.cpu_us:6.1f} us"
                f"  runtime {runtime.rate:8.0f}/s {runtime.cpu_us:6.1f} us  ratio {runtime.rate / floor.rate:.3f}"
            )
    for kind, of_kind in loads.items():
        rate = statistics.median(load.rate for load in of_kind)
        cpu_us = statistics.median(load.cpu_us for load in of_kind)
        print(f"{kind:7} median {rate:8.0f}/s {cpu_us:6.1f} us of CPU a request")
    ratios = [
        runtime.rate / floor.rate for floor, runtime in zip(loads["floor"], loads["runtime"], strict=True)
    ]
    print(f"ratio   median {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")


@contextmanager
def _server(kind: str, models: Path) -> Generator[Running]:
    model, port = models / "iris" / "1" / "model.onnx", free_port()
    command = {
        "floor": [sys.executable, "bench/floor.py", str(model), str(port)],
        "runtime": [sys.executable, "-m", "pilotage_runtime", "serve"],
    }[kind]
    environment = {
        **os.environ,
        "PILOTAGE_MODEL_NAME": "iris",
        "PILOTAGE_MODEL_DIR": str(model.parent),
        "PILOTAGE_HOST": "127.0.0.1",
        "PILOTAGE_HTTP_PORT": str(port),
        "PILOTAGE_METRICS_PORT": "0",
        "PILOTAGE_THREADS": "1",
        "PILOTAGE_DRAIN_SECONDS": "0",
    }
    # The access log is written, as in a pod, only nobody reads it.
    process = subprocess.Popen(
        _pinned(SERVER_CORE, command), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        _wait(port, models)
        yield Running(port, process.pid)  # taskset has become the server
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(port: int, models: Path) -> None:
    body = (models / "requests" / "iris.json").read_bytes()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}", body, {"Content-Type": "application/json"}
    )
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                answer.read()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def _measure(server: Running, models: Path, connections: int, seconds: float) -> Load:
    before = _cpu_seconds(server.pid)
    requests, rate = _load(server.port, models, connections, seconds)
    return Load(rate, (_cpu_seconds(server.pid) - before) / requests * 1e6)


def _cpu_seconds(pid: int) -> float:
    """Read the CPU time of all threads of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _load(port: int, models: Path, connections: int, seconds: float) -> tuple[int, float]:
    """Load a server; give the requests answered, and those a second."""
    body = models / "requests" / "iris.json"
    if not shutil.which("wrk"):
        command = [
            sys.executable, "-m", "bench.runtime", "--load", str(port), "--body", str(body),
            "--connections", str(connections), "--seconds", str(seconds),
        ]  # fmt: skip
        answered, rate = subprocess.check_output(_pinned(LOAD_CORE, command), cwd=ROOT, text=True).split()
        return int(answered), float(rate)
    script = models / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = [[{body.read_text().strip()}]]\n"
    )
    command = [
        "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script),
        f"http://127.0.0.1:{port}{PATH}",
    ]  # fmt: skip
    output = subprocess.check_output(_pinned(LOAD_CORE, command), text=True)
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"port {port} did not answer every request:\n{output}")
    found = re.search(r"(\d+) requests in .*Requests/sec:\s+([\d.]+)", output, re.DOTALL)
    assert found, output
    return int(found[1]), float(found[2])


def _pinned(core: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command]


async def _client(port: int, body: bytes, connections: int, seconds: float) -> tuple[int, float]:
    """Send one request after the other on each connection; give the answers, and those a second."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    until = time.perf_counter() + seconds

    async def connection() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = 0
        while time.perf_counter() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                raise RuntimeError(head.decode())
            await reader.readexactly(int(length[1]))
            answered += 1
        writer.close()
        return answered

    started = time.perf_counter()
    answered = sum(await asyncio.gather(*(connection() for _ in range(connections))))
    return answered, answered / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
