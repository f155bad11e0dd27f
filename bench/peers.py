"""The runtime against its peers: iris ONNX, one worker, 32 connections.

    .venv/bin/python -m bench.peers [--pairs 3] [--seconds 4] [--connections 32] [--starts 3] [--only mlserver,ray]

One after the other, each peer takes turns with the runtime, so that whatever else the machine does falls on both
(bench/serving.py says how they run). A peer that does not install or start is named, and the rest go on. Printed
are medians: from the command to the first answer, memory of all processes idle and after the load, requests a
second, p99, and the ratio of the pairs.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import wrk
from bench.serving import PEERS, Server, Setup, serving
from demo.models import build

_IDLE_SECONDS = 1.0


def main() -> None:
    """Compare with all peers that can be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="turns of load")
    parser.add_argument("--seconds", type=float, default=4, help="length of a turn")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--starts", type=int, default=3, help="starts of each, the last of which is loaded")
    parser.add_argument("--only", default=",".join(PEERS), help="names, with commas")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PEERS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    wrk.required()
    with tempfile.TemporaryDirectory() as folder:
        build.main(Path(folder))
        setup = Setup(Path(folder) / "iris" / "1" / "model.onnx")
        for peer in options.only.split(","):
            try:
                _compare(peer, setup, options)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                print(f"{peer:9} could not be measured: {str(error)[:600]}", flush=True)


def _compare(name: str, setup: Setup, options: argparse.Namespace) -> None:
    kinds = ("runtime", name)
    ready: dict[str, list[float]] = {kind: [] for kind in kinds}
    loads: dict[str, list[wrk.Load]] = {kind: [] for kind in kinds}
    for _ in range(options.starts - 1):
        for kind in kinds:
            with serving(kind, setup) as server:
                ready[kind].append(server.ready_seconds)
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(serving(kind, setup)) for kind in kinds}
        for kind, server in servers.items():
            ready[kind].append(server.ready_seconds)
        time.sleep(_IDLE_SECONDS)
        idle = {kind: server.memory() for kind, server in servers.items()}
        for server in servers.values():
            _load(server, options.connections, 2.0)
        for pair in range(options.pairs):
            # Who goes first changes, or a machine that warms up would favour one of them.
            for kind in sorted(loads, reverse=bool(pair % 2)):
                loads[kind].append(_load(servers[kind], options.connections, options.seconds))
        loaded = {kind: server.memory() for kind, server in servers.items()}
    for kind, of_kind in loads.items():
        print(
            f"{kind:9} ready {statistics.median(ready[kind]):5.1f} s  idle {idle[kind] / 2**20:4.0f} MiB  "
            f"loaded {loaded[kind] / 2**20:4.0f} MiB  {statistics.median(load.rate for load in of_kind):6.0f}/s  "
            f"p99 {statistics.median(load.p99_ms for load in of_kind):6.2f} ms"
        )
    ratios = [own.rate / other.rate for own, other in zip(loads["runtime"], loads[name], strict=True)]
    print(
        f"          {statistics.median(ratios):.1f} times {name} ({min(ratios):.1f} to {max(ratios):.1f})",
        flush=True,
    )


def _load(server: Server, connections: int, seconds: float) -> wrk.Load:
    return wrk.load(server.port, server.asks, connections=connections, seconds=seconds)


if __name__ == "__main__":
    main()
