"""From the command to the first answer: `pilotage serve iris.onnx`, against what its one large library takes alone.

    .venv/bin/python -m bench.start [--rounds 9]

Each round runs every command once, in turns, so that what else the machine does falls on all of them. `serve` ends
with the first 200 of /v2/health/ready: the model is loaded, warmed up and has inferred. The floor is
`python -c "import onnxruntime"`: no server in Python that serves ONNX can be there sooner.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from demo.models import build

ROOT = Path(__file__).resolve().parent.parent
_LONGEST_SECONDS = 60.0


def main() -> None:
    """Run all rounds and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        build.main(Path(folder))
        model = Path(folder) / "iris" / "1" / "model.onnx"
        commands: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: _until_end("-c", "pass"),
            "pilotage --help": lambda: _until_end("-m", "pilotage_cli", "--help"),
            "import onnxruntime": lambda: _until_end("-c", "import onnxruntime"),
            "pilotage serve": lambda: _until_ready(model),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for at in range(rounds + 1):
            for name, command in commands.items():
                took = command()
                if at:  # the first round reads everything from the disk
                    seconds[name].append(took)
    _show(seconds)


def _show(seconds: Mapping[str, list[float]]) -> None:
    for name, took in seconds.items():
        print(f"{name:20} median {statistics.median(took):.2f} s  ({min(took):.2f} to {max(took):.2f})")
    floor, serve = seconds["import onnxruntime"], seconds["pilotage serve"]
    ratios = [ours / least for ours, least in zip(serve, floor, strict=True)]
    print(
        f"{'serve / floor':20} median {statistics.median(ratios):.2f}    ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def _until_end(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=_environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _until_ready(model: Path) -> float:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pilotage_cli", "serve", str(model), "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not _ready(port):
            if process.poll() is not None or time.perf_counter() - began > _LONGEST_SECONDS:
                sys.exit(f"{' '.join(command)} did not become ready")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def _ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(
                b"GET /v2/health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            )
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _environment() -> dict[str, str]:
    folders = [str(ROOT / name) for name in ("cli", "runtime", "operator")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(folders)}


if __name__ == "__main__":
    main()
