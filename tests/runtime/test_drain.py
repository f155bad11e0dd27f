"""SIGTERM loses no request: not ready, still accepting, then finishing what is in flight."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

from pilotage_runtime.log import AccessLog
from pilotage_runtime.services import admin
from pilotage_runtime.services import server as draining
from pilotage_runtime.services.edge import Edge
from pilotage_runtime.services.infer import InferHandler
from pilotage_runtime.services.listener import listen
from tests.runtime.conftest import Servers, eventually
from tests.runtime.scripted import serving
from tests.runtime.test_faults import first_measure, requests
from tests.runtime.test_http import request


@pytest.mark.parametrize("workers", [1, 2])
def test_draining_is_not_ready_but_still_serves_and_says_close(
    models: Path, serve: Servers, workers: int
) -> None:
    server = serve(models / "iris" / "1", "iris", drain_seconds=2, workers=workers)
    server.terminate()
    eventually(lambda: httpx.get(f"{server.client.base_url}/v2/health/ready").status_code == 503)
    fresh = httpx.post(f"{server.client.base_url}{server.infer_path}", json=request())
    assert fresh.status_code == 200
    assert fresh.headers["connection"] == "close"
    assert httpx.get(f"{server.client.base_url}/v2/health/live").status_code == 200
    unready = httpx.get(f"{server.client.base_url}/v2/health/ready")
    assert unready.json() == {"ready": False, "error": "draining: this server is about to stop"}
    assert unready.headers["connection"] == "close"
    assert server.wait_exit() == 0
    with pytest.raises(httpx.ConnectError):
        server.client.get("/v2/health/live")


def test_what_is_in_flight_at_the_end_of_the_drain_is_finished(models: Path, serve: Servers) -> None:
    server = serve(models / "fraud" / "bad-latency", drain_seconds=0)
    slowest = max(requests(models), key=first_measure)
    server.infer(slowest)
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(server.infer(slowest)))
    caller.start()
    eventually(lambda: server.metric("inference_requests_in_flight") == 1)
    server.terminate()
    caller.join()
    assert server.wait_exit() == 0
    assert [answer.status_code for answer in answers] == [200]


async def test_the_last_lines_of_the_access_log_are_written_before_the_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draining, "FLUSH_SECONDS", 3600)  # so that no beat writes them
    reading, writing = os.pipe()
    log = AccessLog(writing)
    async with serving() as world:
        inference = InferHandler(world.repository, log, world.handler.held)
        app = Edge(admin.build(world.repository, world.lifecycle, world.handler.held), world.lifecycle, log)
        started = asyncio.Event()
        server = draining.DrainingServer(
            app, inference, world.lifecycle, drain_seconds=0, access_log=log, on_started=started.set
        )
        listener = listen("127.0.0.1", 0)
        world.port = listener.getsockname()[1]
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await started.wait()
        assert (await (await world.caller()).infer(1)).status == 200
        server.stop()
        await running
    os.close(writing)
    with os.fdopen(reading) as lines:
        [line] = lines
    assert json.loads(line)["path"] == "/v2/models/m/infer"


@pytest.mark.parametrize("workers", [1, 2])
def test_new_connections_are_refused_while_the_last_requests_are_finished(
    models: Path, serve: Servers, workers: int
) -> None:
    server = serve(models / "fraud" / "bad-latency", drain_seconds=0, workers=workers)
    slowest = max(requests(models), key=first_measure)
    answers: list[int] = []

    def call(number: int) -> None:
        alone = slowest | {"parameters": {"caller": number}}  # shares its run with no other
        answer = httpx.post(f"{server.client.base_url}{server.infer_path}", json=alone, timeout=60)
        answers.append(answer.status_code)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    eventually(lambda: server.metric("inference_requests_in_flight") > 0 or answers)
    server.terminate()

    def refused() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 0.2):
            return False
        return True

    eventually(refused)
    assert any(caller.is_alive() for caller in callers)
    for caller in callers:
        caller.join()
    assert answers == [200] * len(callers)
    assert server.wait_exit() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_restart_under_steady_load_loses_no_request(models: Path, serve: Servers, workers: int) -> None:
    server = serve(models / "iris" / "1", "iris", drain_seconds=1, workers=workers)
    stop, failures, answered = threading.Event(), [], []

    def call() -> None:
        # A caller like Envoy: keeps its connection until told to close, stops when the server is not ready.
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            while not stop.is_set():
                try:
                    answer = client.post(server.infer_path, json=request())
                    answered.append(answer.status_code)
                except httpx.TransportError as error:
                    failures.append(repr(error))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    eventually(lambda: len(answered) > 50)
    server.terminate()
    eventually(lambda: httpx.get(f"{server.client.base_url}/v2/health/ready").status_code == 503)
    so_far = len(answered)
    eventually(lambda: len(answered) > so_far + 50)
    stop.set()
    for caller in callers:
        caller.join()
    assert server.wait_exit() == 0
    assert failures == []
    assert set(answered) == {200}


def test_a_second_signal_changes_nothing_and_an_interrupt_stops_at_once(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris", drain_seconds=300)
    server.terminate()
    server.terminate()
    eventually(lambda: not server.ready())
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    assert server.wait_exit() == 0


def test_a_failed_load_says_why_and_never_opens_the_port(
    models: Path, serve: Servers, tmp_path: Path
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    for workers in (1, 2):
        server = serve.start(
            models / "broken" / "truncated.onnx", "fraud", termination_log=message, workers=workers
        )
        assert server.wait_exit() == 1
        fields = json.loads(message.read_text())
        assert (fields["stage"], fields["reason"]) == ("Load", "InvalidModel")
        assert "truncated.onnx" in fields["message"]
        assert "Traceback" not in server.log()
