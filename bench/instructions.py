"""Instructions a request on the infer path, counted by callgrind: the figure that a change must not worsen.

    .venv/bin/python -m bench.instructions [--write]

One row of iris goes through the real connection, parser, engine, metrics and access log of one process; 32
connections ask in each turn of the loop, as under load. Only the sockets are left out: the transport is a stand-in.
Counting begins behind the first requests; the difference of two runs of different length is free of what switching it
on costs. The kept figure is in instructions.json, beside the versions that it was counted with; the exit code is 1
where a request costs more than 3 % above it. Needs valgrind (Debian: valgrind). Takes about a minute.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo.models import build

KEPT = Path(__file__).with_suffix(".json")
ROOT = KEPT.parent.parent
WARM, SHORT, LONG = 320, 640, 1280
CONNECTIONS = 32
ALLOWED = 1.03
_LIBRARIES = ("numpy", "onnxruntime", "orjson", "uvicorn", "httptools", "uvloop")


def main() -> None:
    """Count, print, and compare with the kept figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="keep the new figure")
    parser.add_argument("--requests", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.requests:
        asyncio.run(_drive(options.models, options.requests))
        return
    with tempfile.TemporaryDirectory() as folder:
        build.main(Path(folder))
        counts = [_counted(Path(folder), requests) for requests in (SHORT, LONG)]
    found = round((counts[1] - counts[0]) / (LONG - SHORT))
    versions = {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    print(f"{found:,} instructions a request; kept: {kept.get('instructions', 0):,}")
    if options.write:
        KEPT.write_text(json.dumps({"instructions": found, "versions": versions}, indent=2) + "\n")
        return
    if kept.get("versions") != versions:
        print(f"counted with other versions than the kept figure: {kept.get('versions')}")
    elif found > kept["instructions"] * ALLOWED:
        sys.exit(f"a request costs {found / kept['instructions'] - 1:.1%} more than kept")


def _counted(models: Path, requests: int) -> int:
    command = [
        "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={models}/callgrind.%p", sys.executable,
        "-m", "bench.instructions", "--requests", str(requests), "--models", str(models),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    match = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode or match is None:
        sys.exit(f"callgrind failed:\n{result.stderr[-2000:]}")
    print(f"{requests} requests: {int(match[1]):,} instructions in all", flush=True)
    return int(match[1])


class _Transport(asyncio.Transport):
    """Stands in for a socket: counts the answers that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not bytes(data[:12]) == b"HTTP/1.1 200":
            raise RuntimeError(bytes(data[:500]))
        self.answers += 1

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise RuntimeError("a connection was closed")


def _count(switch: str) -> None:
    subprocess.run(
        ["callgrind_control", "-i", switch, str(os.getpid())],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )


async def _drive(models: Path, requests: int) -> None:
    from uvicorn.server import ServerState  # noqa: PLC0415 - only in the counted process

    from pilotage_runtime import app  # noqa: PLC0415
    from pilotage_runtime.catalog import Location  # noqa: PLC0415
    from pilotage_runtime.loading import Loading  # noqa: PLC0415
    from pilotage_runtime.repository import Repository  # noqa: PLC0415
    from pilotage_runtime.settings import ServeSettings  # noqa: PLC0415
    from pilotage_runtime.telemetry import Sheet  # noqa: PLC0415

    settings = ServeSettings(model_name="iris", threads=1)
    repository = Repository(Sheet())
    Loading(settings, repository).load_all({1: Location("iris", "1", models / "iris" / "1")})
    engine = repository.engine("iris")
    engine._seconds = [0.0] * len(engine._seconds)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - valgrind's time is not the model's
    engine._learn = lambda *_: None  # type: ignore[method-assign]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    server = app.server(
        settings,
        repository,
        None,  # pyright: ignore[reportArgumentType]
        on_started=lambda: None,
        on_answered=lambda: None,
    )
    config = server.config
    config.load()
    state = ServerState()
    connect: Any = config.http_protocol_class
    connections = [connect(config=config, server_state=state, app_state={}) for _ in range(CONNECTIONS)]
    transports = [_Transport() for _ in connections]
    for connection, transport in zip(connections, transports, strict=True):
        connection.connection_made(transport)
    body = (models / "requests" / "iris.json").read_bytes().strip()
    request = (
        b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    for turn in range(requests // CONNECTIONS):
        if turn == WARM // CONNECTIONS:
            _count("on")
        for connection in connections:
            connection.data_received(request)
        while sum(transport.answers for transport in transports) % CONNECTIONS:  # noqa: ASYNC110 - as a loop turns
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    _count("off")
    if sum(transport.answers for transport in transports) != requests:
        raise RuntimeError("not every request was answered")


if __name__ == "__main__":
    main()
