"""The clients that people have, each in a process and an environment of its own, against one real server."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pilotage_dev import environment
from tests.runtime.conftest import Server, Servers, free_port

HERE = Path(__file__).parent / "clients"
CLASSES = [[0, 2], [2, 3], "float32", 2.0]
WRONG = "input 'X': shape [1, 3] came, [-1, 4] is expected (-1 is any size); a row is sepal length (cm)"


def run(name: str, script: str, *arguments: str) -> dict[str, Any]:
    result = subprocess.run(
        [environment.binaries(HERE / f"{name}.txt") / "python", HERE / script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def addresses(models: Path, serve_for_module: Servers) -> tuple[str, str, Server]:
    port = free_port()
    server = serve_for_module(models / "iris" / "1", "iris", grpc_port=port)
    return f"127.0.0.1:{server.port}", f"127.0.0.1:{port}", server


def test_tritonclient_over_http_and_grpc_and_their_asyncio_forms(addresses: tuple[str, str, Server]) -> None:
    seen = run("triton", "triton.py", *addresses[:2])
    tensor = {"name": "X", "datatype": "FP32", "shape": [-1, 4]}
    assert seen["http.live"] == seen["grpc.live"] == [True, True, True]
    assert "binary_tensor_data" in seen["http.server"]
    assert seen["http.server"] == seen["grpc.server"]
    assert seen["http.model"] == [[tensor], ["1"]]
    assert seen["grpc.model"] == [[{**tensor, "shape": ["-1", "4"]}], ["1"]]
    assert seen["http.index"] == [{"name": "iris", "version": "1", "state": "READY", "reason": ""}]
    assert seen["grpc.index"] == {"models": [{"name": "iris", "version": "1", "state": "READY"}]}
    for way in ("http.infer", "http.json", "http.gzip", "http.async", "http.timeout", "grpc.infer"):
        assert seen[way] == CLASSES, way
    assert seen["http.mixed"] == [*CLASSES, "7"]
    assert seen["http.aio"] == seen["grpc.aio"] == [True, *CLASSES]
    assert seen["grpc.outputs"] == [[0, 2], None, "9"]
    unknown = "model 'nobody' is unknown; served are iris"
    assert seen["http.unknown"] == ["404", unknown]
    assert seen["grpc.unknown"] == ["StatusCode.NOT_FOUND", unknown]
    assert seen["http.load"][0] == "403"
    assert seen["grpc.load"][0] == "StatusCode.PERMISSION_DENIED"
    assert seen["grpc.wrong"][0] == "StatusCode.INVALID_ARGUMENT"
    assert seen["grpc.wrong"][1].startswith(WRONG)
    first, second, third = seen["grpc.stream"]
    assert (first, third) == (CLASSES, CLASSES)
    assert second.startswith(WRONG)


def test_kserves_client_over_rest_and_grpc(addresses: tuple[str, str, Server]) -> None:
    seen = run("kserve", "kserve_client.py", *addresses[:2])
    assert seen["rest.live"] == seen["grpc.live"] == [True, True, True]
    for way in ("rest.infer.False", "rest.infer.True", "grpc.infer.False", "grpc.infer.True"):
        assert seen[way] == CLASSES[:2], way


def test_grpc_requests_enter_the_same_metrics_as_rest(addresses: tuple[str, str, Server]) -> None:
    server = addresses[2]
    before = {code: server.metric("inference_requests_total", code=code) for code in ("200", "400", "404")}
    run("triton", "triton.py", *addresses[:2])
    after = {code: server.metric("inference_requests_total", code=code) for code in before}
    assert {code: after[code] - before[code] for code in before} == {"200": 12, "400": 2, "404": 2}
    assert server.metric("inference_requests_in_flight") == 0
