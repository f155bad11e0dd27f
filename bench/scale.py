"""The runtime and its peers as one thing grows: connections, models in a process, or workers.

    .venv/bin/python -m bench.scale [--rounds 3] [--seconds 3] [--only runtime,mlserver]

Connections: 1, 8, 32, 128 and 512 to one model. Models: 1, 10 and 100 copies of iris in one process, asked in turns
over 32 connections. Workers: 1 and 2; all servers share one core (bench/serving.py), so two show how a server
behaves with more processes than cores, and not their speed. Printed are, of every server in the same run, requests a
second and p99, medians of the rounds, and from the command to the first answer of all models and the memory after
the load. Whoever does not start or does not answer every request is named with what it said.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import wrk
from bench.serving import PEERS, Server, Setup, serving
from demo.models import build

CONNECTIONS = (1, 8, 32, 128, 512)
MODELS = (1, 10, 100)
WORKERS = (1, 2)
_USUAL = 32
_KINDS = ("runtime", *PEERS)
_WARM_SECONDS = 1.0


def main() -> None:
    """Measure the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="spells of load at each point")
    parser.add_argument("--seconds", type=float, default=3, help="length of a spell")
    parser.add_argument("--only", default=",".join(_KINDS), help="names, with commas")
    options = parser.parse_args()
    kinds = options.only.split(",")
    if unknown := set(kinds) - set(_KINDS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(_KINDS)}")
    wrk.required()
    with tempfile.TemporaryDirectory() as folder:
        build.main(Path(folder))
        file = Path(folder) / "iris" / "1" / "model.onnx"
        for kind in kinds:
            _measure(kind, Setup(file), "connections", CONNECTIONS, options)
            for models in MODELS[1:]:
                _measure(kind, Setup(file, models=models), f"{models} models", (_USUAL,), options)
            for workers in WORKERS[1:]:
                _measure(kind, Setup(file, workers=workers), f"{workers} workers", (_USUAL,), options)


def _measure(
    kind: str, setup: Setup, what: str, connections: Sequence[int], options: argparse.Namespace
) -> None:
    try:
        with serving(kind, setup) as server:
            for number in connections:
                _point(kind, server, f"{number} {what}" if len(connections) > 1 else what, number, options)
            print(
                f"{kind:9} {what:15} ready {server.ready_seconds:5.1f} s  {server.memory() / 2**20:5.0f} MiB after the load",
                flush=True,
            )
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"{kind:9} {what:15} could not be measured: {' '.join(str(error).split())[:600]}", flush=True)


def _point(kind: str, server: Server, what: str, connections: int, options: argparse.Namespace) -> None:
    wrk.load(server.port, server.asks, connections=connections, seconds=_WARM_SECONDS)
    loads = [
        wrk.load(server.port, server.asks, connections=connections, seconds=options.seconds)
        for _ in range(options.rounds)
    ]
    rate = statistics.median(load.rate for load in loads)
    p50, p99 = (
        statistics.median(load.p50_ms for load in loads),
        statistics.median(load.p99_ms for load in loads),
    )
    print(f"{kind:9} {what:15} {rate:7.0f}/s  p50 {p50:8.2f} ms  p99 {p99:8.2f} ms", flush=True)


if __name__ == "__main__":
    main()
