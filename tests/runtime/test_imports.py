"""Starting an ONNX model loads what serving it takes, and nothing else."""

import subprocess
import sys
from pathlib import Path

from tests.runtime.conftest import environment

ABSENT = {
    "torch", "tensorflow", "scipy", "sklearn", "onnx", "kopf", "kubernetes", "s3fs", "aiobotocore", "botocore",
    "aiohttp", "fsspec", "gcsfs", "google", "adlfs", "azure", "huggingface_hub", "httpx", "httpx2", "grpc", "opentelemetry", "pilotage_operator",
}  # fmt: skip

START = """
import os, sys, threading, time, urllib.request
from pilotage_runtime.__main__ import main

def look():
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{os.environ['PILOTAGE_HTTP_PORT']}/v2/health/ready").read()
            break
        except OSError:
            time.sleep(0.05)
    print("MODULES", *{name.partition(".")[0] for name in sys.modules}, flush=True)
    os._exit(0)

threading.Thread(target=look, daemon=True).start()
main(["serve"])
"""


def test_a_served_onnx_model_has_imported_none_of_the_heavy_libraries(models: Path) -> None:
    from tests.runtime.conftest import free_port  # noqa: PLC0415

    settings = environment(
        model_dir=models / "iris" / "1",
        model_name="iris",
        host="127.0.0.1",
        http_port=free_port(),
        metrics_port=0,
    )
    output = subprocess.run(
        [sys.executable, "-c", START], env=settings, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    modules = next(line for line in output.splitlines() if line.startswith("MODULES")).split()[1:]
    assert {"onnxruntime", "fastapi", "uvloop", "httptools"} <= set(modules)
    assert ABSENT.isdisjoint(modules)
