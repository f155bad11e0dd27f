"""The server does what its own OpenAPI document says, asked by schemathesis in an environment of its own."""

import json
import subprocess
from pathlib import Path

from pilotage_dev import environment
from tests.runtime.conftest import Servers
from tests.runtime.test_predict import ROW

PINS = Path(__file__).parent / "clients" / "schemathesis.txt"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
SECONDS = 50
# A caller may say that it waits a microsecond: then 504 is right.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
"""


def test_every_answer_is_one_that_the_document_states(models: Path, serve: Servers, tmp_path: Path) -> None:
    folder = tmp_path / "iris"
    folder.mkdir()
    (folder / "model.onnx").write_bytes((models / "iris" / "1" / "model.onnx").read_bytes())
    # Without ranges a value near FP32's end makes the model itself answer NaN, which is a 500.
    features = [{"name": name, "minimum": 0, "maximum": 10} for name in ROW]
    (folder / "contract.json").write_text(json.dumps({"features": features}))
    server = serve(folder, "iris")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    result = subprocess.run(
        [
            environment.binaries(PINS) / "schemathesis",
            "run",
            f"{server.client.base_url}/openapi.json",
            f"--checks={','.join(CHECKS)}",
            "--phases=examples,coverage,fuzzing",
            "--max-examples=20",
            f"--max-time={SECONDS}",
            "--generation-deterministic",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS * 2,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr
    assert server.metric("inference_requests_total", code="200") > 0
    assert server.metric("inference_requests_total", code="400") > 0
    assert server.metric("inference_requests_total", code="500") == 0
    assert "Traceback" not in server.log()
    asked = {
        path
        for path in server.client.get("/openapi.json").json()["paths"]
        if path.startswith("/v2/models/iris")
    }
    for end in ("infer", "generate", "generate_stream"):
        assert {f"/v2/models/iris/{end}", f"/v2/models/iris/versions/1/{end}"} <= asked
