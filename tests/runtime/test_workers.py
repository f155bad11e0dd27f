"""Several workers: one port, one set of counters, one life."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.runtime.conftest import Server, Servers, environment, eventually
from tests.runtime.test_http import request


def worker_pids(server: Server) -> list[int]:
    return [int(pid) for pid in re.findall(r'"worker serves".*?"pid":(\d+)', server.log())]


def infer_on_new_connections(server: Server, count: int) -> None:
    for _ in range(count):
        answer = httpx.post(f"{server.client.base_url}{server.infer_path}", json=request(), trust_env=False)
        assert answer.status_code == 200


def test_a_workers_death_lowers_no_counter_and_it_is_replaced(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris", workers=2)
    first, second = eventually(lambda: len(pids := worker_pids(server)) == 2 and pids)
    infer_on_new_connections(server, 20)
    assert server.metric("inference_requests_total", code="200") == 20
    server.client.close()
    os.kill(first, signal.SIGKILL)
    third = eventually(lambda: len(pids := worker_pids(server)) == 3 and pids[2])
    assert third not in (first, second)
    assert server.metric("inference_requests_total", code="200") == 20
    os.kill(second, signal.SIGKILL)
    eventually(lambda: len(worker_pids(server)) == 4)
    infer_on_new_connections(server, 20)
    assert server.metric("inference_requests_total", code="200") == 40
    assert server.metric("inference_rows_total") == 40
    assert server.metric("inference_requests_in_flight") == 0
    server.terminate()
    assert server.wait_exit() == 0


def test_workers_end_with_their_supervisor(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris", workers=2)
    pids = eventually(lambda: len(pids := worker_pids(server)) == 2 and pids)
    server.process.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def test_workers_that_keep_dying_end_the_pod_with_a_reason(
    models: Path, serve: Servers, tmp_path: Path
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    server = serve(models / "iris" / "1", "iris", workers=2, termination_log=message)
    killed: set[int] = set()
    until = time.monotonic() + 60
    while server.process.poll() is None and time.monotonic() < until:
        # Always the newest: the same place dies again and again.
        newest = worker_pids(server)[-1]
        if newest not in killed and len(worker_pids(server)) >= 2:
            killed.add(newest)
            os.kill(newest, signal.SIGKILL)
        time.sleep(0.02)
    assert server.wait_exit() == 1
    fields = json.loads(message.read_text())
    assert (fields["stage"], fields["reason"]) == ("Serve", "WorkersCrashed")
    assert "SIGKILL" in fields["message"]


def test_the_supervisor_imports_no_model_library() -> None:
    script = "import sys, pilotage_runtime.supervisor; print(*sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", script], env=environment(), text=True)
    assert not {"onnxruntime", "numpy", "fastapi", "s3fs", "httpx"} & set(output.split())
