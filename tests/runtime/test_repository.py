"""Many models, many versions: found in a folder, served by path, loaded and unloaded while others serve."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pilotage_runtime import budget, catalog, loading
from pilotage_runtime.errors import Refused
from pilotage_runtime.failure import StartFailure
from tests.runtime import scripted
from tests.runtime.conftest import Server, Servers, eventually
from tests.runtime.test_http import request
from tests.runtime.test_workers import worker_pids


def scale(path: Path, by: float, padding_mib: int = 0) -> Path:
    """A model that multiplies, and that is as large as asked for."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    weights = [numpy_helper.from_array(np.array([by], np.float32), "by")]
    nodes = [helper.make_node("Mul", ["x", "by"], ["scaled"])]
    if padding_mib:
        ballast = np.random.default_rng(7).random(padding_mib * 2**18, dtype=np.float32)
        weights.append(numpy_helper.from_array(ballast, "ballast"))
        nodes += [
            helper.make_node("ReduceMax", ["ballast"], ["most"], keepdims=1),
            helper.make_node("Mul", ["scaled", "most"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["scaled"], ["y"]))
    graph = helper.make_graph(nodes, "g", [value], [answer], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)
    return path


def ask(server: Server, path: str, **more: Any) -> httpx.Response:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    return server.client.post(f"/v2/models/{path}/infer", json={"inputs": [tensor], **more})


def factor(server: Server, path: str) -> float:
    answer = ask(server, path)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"][0]


def index(server: Server) -> dict[tuple[str, str], str]:
    entries = server.client.post("/v2/repository/index").json()
    return {(entry["name"], entry["version"]): entry["state"] for entry in entries}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    scale(folder / "double" / "1" / "model.onnx", 2)
    scale(folder / "double" / "10" / "model.onnx", 20)
    scale(folder / "double" / "9" / "model.onnx", 18)
    scale(folder / "triple" / "model.onnx", 3)
    return folder


# What a folder holds.


def test_a_file_or_a_folder_with_a_file_is_one_model(tmp_path: Path) -> None:
    model = scale(tmp_path / "m" / "model.onnx", 1)
    assert catalog.discover(model, "fraud") == [("fraud", "1", model)]
    assert catalog.discover(model.parent, "fraud") == [("fraud", "1", model.parent)]


def test_numbered_folders_are_versions_and_named_ones_models(repository: Path) -> None:
    assert [one[1] for one in catalog.discover(repository / "double", "fraud")] == ["1", "9", "10"]
    assert [one[:2] for one in catalog.discover(repository, "fraud")] == [
        ("double", "1"), ("double", "9"), ("double", "10"), ("triple", "1"),
    ]  # fmt: skip


def test_what_is_no_model_is_passed_over(repository: Path) -> None:
    (repository / ".git").mkdir()
    (repository / "lost+found").mkdir()
    (repository / "double" / "9.tmp").mkdir()
    (repository / "double" / ".partial").mkdir()
    assert len(catalog.discover(repository, "fraud")) == 2


def test_a_folder_whose_name_can_be_no_models_does_not_stop_the_others(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = catalog.discover(repository, "fraud")
    scale(repository / "old models" / "model.onnx", 1)
    assert catalog.discover(repository, "fraud") == whole
    assert "'old models' cannot be a model's name" in caplog.text
    assert "is left out" in caplog.text


def test_a_repository_with_no_name_that_can_be_a_models_is_refused(tmp_path: Path) -> None:
    scale(tmp_path / "old models" / "model.onnx", 1)
    with pytest.raises(StartFailure, match="'old models' cannot be a model's name"):
        catalog.discover(tmp_path, "fraud")


# Serving them.


def test_each_version_answers_by_its_path_and_the_latest_where_none_is_named(
    repository: Path, serve: Servers
) -> None:
    server = serve(repository)
    assert (factor(server, "double"), factor(server, "triple")) == (20, 3)
    assert [factor(server, f"double/versions/{version}") for version in (1, 9, 10)] == [2, 18, 20]
    assert ask(server, "double").json()["model_version"] == "10"
    metadata = server.client.get("/v2/models/double").json()
    assert (metadata["versions"], metadata["parameters"]["version"]) == (["1", "9", "10"], "10")
    assert server.client.get("/v2/models/double/versions/9").json()["parameters"]["version"] == "9"
    assert server.client.get("/v2/models/double/versions/9/ready").json()["ready"]
    assert ("/v2/models/double/infer") in server.client.get("/openapi.json").json()["paths"]


def test_each_version_has_its_own_metrics_and_unknown_ones_are_blamed_on_nobody(
    repository: Path, serve: Servers
) -> None:
    server = serve(repository)
    for path in ("double", "double/versions/1", "double/versions/1", "double/versions/7", "nobody"):
        ask(server, path)
    name, codes = "inference_requests_total", {"code": "200"}
    assert server.metric(name, model="double", version="10", **codes) == 1
    assert server.metric(name, model="double", version="1", **codes) == 2
    assert server.metric(name, model="triple", version="1", **codes) == 0
    assert server.metric(name, model="_unknown", version="", code="404") == 2


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("double/versions/7", "model 'double' has no version '7'; it has 1, 9, 10"),
        ("double/versions/x", "model 'double' has no version 'x'; it has 1, 9, 10"),
        ("nobody", "model 'nobody' is unknown; served are double, triple"),
        ("nobody/versions/1", "model 'nobody' is unknown; served are double, triple"),
    ],
)
def test_what_is_not_there_is_404_and_says_what_is(
    repository: Path, serve: Servers, path: str, sentence: str
) -> None:
    server = serve(repository)
    for answer in (
        ask(server, path),
        *(server.client.get(f"/v2/models/{path}{end}") for end in ("", "/ready")),
    ):
        assert (answer.status_code, answer.json()) == (404, {"error": sentence})


def test_one_failing_model_does_not_stop_the_others(repository: Path, serve: Servers) -> None:
    (repository / "broken").mkdir()
    (repository / "broken" / "model.onnx").write_bytes(b"\x08\x09garbage")
    (repository / "double" / "10" / "model.onnx").write_bytes(b"")
    server = serve(repository)
    assert index(server)["broken", "1"] == "UNAVAILABLE"
    assert (factor(server, "triple"), factor(server, "double")) == (3, 18)
    answer = ask(server, "broken")
    assert answer.status_code == 503
    assert answer.json()["error"].startswith("model 'broken' version 1 is UNAVAILABLE: ")
    assert ask(server, "double/versions/10").status_code == 503
    only = server.client.post("/v2/repository/index", json={"ready": True}).json()
    assert [(entry["name"], entry["version"]) for entry in only] == [
        ("double", "1"), ("double", "9"), ("triple", "1"),
    ]  # fmt: skip


def test_if_all_fail_there_is_nothing_to_serve(tmp_path: Path, serve: Servers) -> None:
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "model.onnx").write_bytes(b"\x00")
    server = serve.start(tmp_path / "all")
    assert server.wait_exit() == 1


# Loading and unloading while others serve.


def test_without_the_setting_nobody_can_load_or_unload(repository: Path, serve: Servers) -> None:
    server = serve(repository)
    for step in ("load", "unload"):
        answer = server.client.post(f"/v2/repository/models/double/{step}")
        assert answer.status_code == 403
        assert "PILOTAGE_REPOSITORY_CONTROL" in answer.json()["error"]


@pytest.mark.parametrize("workers", [1, 2])
def test_models_come_and_go_on_all_workers_under_load(repository: Path, serve: Servers, workers: int) -> None:
    server = serve(repository, repository_control=True, workers=workers)
    stop, failures = threading.Event(), list[Any]()

    def call() -> None:
        while not stop.is_set():
            with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
                for _ in range(5):
                    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
                    answer = client.post("/v2/models/double/infer", json={"inputs": [tensor]})
                    if answer.status_code != 200:
                        failures.append(answer.text)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    scale(repository / "double" / "11" / "model.onnx", 22)
    scale(repository / "five" / "model.onnx", 5)
    shutil.rmtree(repository / "double" / "1")
    assert server.client.post("/v2/repository/models/five/load").status_code == 200
    assert server.client.post("/v2/repository/models/double/load").status_code == 200
    for _ in range(4 * workers):  # whichever worker answers
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
            for path, expected in (("double", 22), ("five", 5), ("double/versions/9", 18)):
                answer = client.post(f"/v2/models/{path}/infer", json={"inputs": [tensor]})
                assert answer.json()["outputs"][0]["data"] == [expected]
            assert (
                client.post("/v2/models/double/versions/1/infer", json={"inputs": [tensor]}).status_code
                == 404
            )
    assert server.client.post("/v2/repository/models/triple/unload").status_code == 200
    for _ in range(4 * workers):
        answer = httpx.post(f"{server.client.base_url}/v2/models/triple/infer", json={}, trust_env=False)
        assert answer.status_code == 404
    stop.set()
    for caller in callers:
        caller.join()
    assert failures == []
    again = server.client.post("/v2/repository/models/triple/unload")
    assert (again.status_code, again.json()["error"]) == (404, "model 'triple' is not loaded")
    assert server.client.post("/v2/repository/models/triple/load").status_code == 200
    assert factor(server, "triple") == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_load_that_fails_changes_nothing(repository: Path, serve: Servers, workers: int) -> None:
    server = serve(repository, repository_control=True, workers=workers)
    before = index(server)
    scale(repository / "double" / "11" / "model.onnx", 22)
    (repository / "double" / "12").mkdir()
    (repository / "double" / "12" / "model.onnx").write_bytes(b"no model")
    answer = server.client.post("/v2/repository/models/double/load")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("model 'double' cannot be loaded: UnknownFormat: ")
    assert index(server) == before
    assert factor(server, "double") == 20
    for name in ("nobody", "..", "%2e%2e%2fsecret", "x" * 300):
        assert server.client.post(f"/v2/repository/models/{name}/load").status_code in (400, 404)


def test_a_changed_model_is_loaded_anew_and_an_unchanged_one_is_kept(
    repository: Path, serve: Servers
) -> None:
    server = serve(repository, repository_control=True)
    ask(server, "triple")
    scale(repository / "triple" / "model.onnx", 33)
    assert factor(server, "triple") == 3
    assert server.client.post("/v2/repository/models/triple/load").status_code == 200
    assert factor(server, "triple") == 33
    assert server.metric("inference_requests_total", model="triple", code="200") == 3
    assert server.log().count('"model ready"') == 5
    assert server.client.post("/v2/repository/models/triple/load").status_code == 200
    assert server.log().count('"model ready"') == 5


def test_a_worker_that_starts_anew_serves_what_is_wanted_now(repository: Path, serve: Servers) -> None:
    server = serve(repository, repository_control=True, workers=2)
    scale(repository / "five" / "model.onnx", 5)
    server.client.post("/v2/repository/models/five/load")
    server.client.post("/v2/repository/models/triple/unload")
    server.client.close()
    for pid in worker_pids(server):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(worker_pids(server)) == 4)
    server.client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=20, trust_env=False)
    assert factor(server, "five") == 5
    assert ask(server, "triple").status_code == 404


def test_a_worker_that_starts_anew_serves_no_other_files_than_the_rest(
    repository: Path, serve: Servers
) -> None:
    server = serve(repository, workers=2)
    first, _ = eventually(lambda: len(pids := worker_pids(server)) == 2 and pids)
    scale(repository / "triple" / "model.onnx", 33)
    server.client.close()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(worker_pids(server)) == 3)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    url = f"{server.client.base_url}/v2/models/triple/infer"
    answers = [httpx.post(url, json={"inputs": [tensor]}, trust_env=False) for _ in range(40)]
    assert {answer.json()["outputs"][0]["data"][0] for answer in answers} == {33}


def test_a_worker_starts_anew_though_models_change_faster_than_it_starts(
    repository: Path, serve: Servers
) -> None:
    server = serve(repository, workers=2, repository_control=True)
    first, _ = eventually(lambda: len(pids := worker_pids(server)) == 2 and pids)
    server.client.close()
    os.kill(first, signal.SIGKILL)

    def changed() -> bool:
        for step in ("unload", "load"):
            # Of a worker that dies, the connections do.
            with contextlib.suppress(httpx.TransportError):
                httpx.post(f"{server.client.base_url}/v2/repository/models/triple/{step}", trust_env=False)
        return len(worker_pids(server)) == 3

    eventually(changed)
    url = f"{server.client.base_url}/v2/models/triple/ready"
    assert {httpx.get(url, trust_env=False).status_code for _ in range(40)} == {200}


def test_one_models_folder_is_no_repository(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris", repository_control=True)
    answer = server.client.post("/v2/repository/models/iris/load")
    assert answer.status_code == 409
    assert server.infer(request()).status_code == 200


def test_versions_of_one_model_can_be_added(repository: Path, serve: Servers) -> None:
    server = serve(repository / "double", "double", repository_control=True)
    scale(repository / "double" / "12" / "model.onnx", 24)
    assert server.client.post("/v2/repository/models/double/load").status_code == 200
    assert factor(server, "double") == 24
    assert server.client.post("/v2/repository/models/other/load").status_code == 404


# Memory.


def loaded(**idle: float) -> list[budget.Loaded]:
    return [budget.Loaded(name, 100, seconds) for name, seconds in idle.items()]


def test_the_longest_unused_go_first_and_no_more_than_needed() -> None:
    args = {"model": "new", "resident": 900, "budget": 1000, "loaded": loaded(a=5, b=50, c=20), "evict": True}
    assert budget.evictions(need=100, **args) == []
    assert budget.evictions(need=101, **args) == ["b"]
    assert budget.evictions(need=250, **args) == ["b", "c"]
    with pytest.raises(Refused, match="needs about"):
        budget.evictions(need=401, **args)
    assert budget.evictions(need=150, **{**args, "model": "b"}) == ["c"]


def test_a_model_beyond_the_budget_is_refused_or_makes_the_longest_unused_go(
    repository: Path, serve: Servers
) -> None:
    scale(repository / "large" / "model.onnx", 1, padding_mib=60)
    server = serve(repository, repository_control=True)
    resident = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096
    server.terminate()
    server.wait_exit()

    (repository / "other").mkdir()
    shutil.move(repository / "large" / "model.onnx", repository / "other" / "model.onnx")
    shutil.rmtree(repository / "large")
    room = {"repository_control": True, "memory_budget_bytes": resident + 30 * 2**20}
    strict = serve(repository, **room)
    scale(repository / "large" / "model.onnx", 1, padding_mib=60)
    answer = strict.client.post("/v2/repository/models/large/load")
    assert answer.status_code == 503
    assert "model 'large' needs about 72 MiB" in answer.json()["error"]
    assert ask(strict, "other").status_code == 200
    strict.terminate()
    strict.wait_exit()

    shutil.move(repository / "large", repository.parent / "large")
    giving = serve(repository, evict_models=True, **room)
    for path in ("double", "double/versions/1", "double/versions/9", "triple"):
        ask(giving, path)
    shutil.move(repository.parent / "large", repository / "large")
    assert giving.client.post("/v2/repository/models/large/load").status_code == 200
    assert ("other", "1") not in index(giving)
    assert index(giving)["large", "1"] == "READY"
    told = [json.loads(line) for line in giving.log().splitlines()]
    assert [line["model"] for line in told if line.get("message") == "unloading the longest unused"] == [
        "other"
    ]


def test_fifty_loads_and_unloads_of_a_large_model_leave_no_memory_behind(
    tmp_path: Path, serve: Servers
) -> None:
    folder = tmp_path / "repository"
    scale(folder / "small" / "model.onnx", 2)
    server = serve(folder, repository_control=True)
    scale(folder / "large" / "model.onnx", 1, padding_mib=200)

    def resident() -> float:
        return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096 / 2**20

    def cycle() -> None:
        assert server.client.post("/v2/repository/models/large/load", timeout=60).status_code == 200
        assert ask(server, "large").status_code == 200
        assert server.client.post("/v2/repository/models/large/unload").status_code == 200

    def settled() -> float:
        eventually(lambda: resident() < 250)
        return resident()

    for _ in range(2):
        cycle()
    second = settled()
    for _ in range(48):
        cycle()
    assert settled() - second < 20


def test_a_hard_limit_ends_a_load_and_not_the_machine(tmp_path: Path, serve: Servers) -> None:
    scale(tmp_path / "m" / "model.onnx", 1, padding_mib=300)
    server = serve.start(tmp_path / "m", address_space_bytes=600 * 2**20)
    assert server.wait_exit() == 1
    assert '"LoadFailed"' in server.log()


async def test_a_model_that_is_let_go_answers_whom_it_owes() -> None:
    def slow(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        time.sleep(0.05)
        return scripted.double(inputs, outputs)

    made = scripted.engine(slow)
    made.unbatched = "each runs alone, so that all but one wait"
    inputs = {"x": np.ones(1, np.float32)}
    owed = [asyncio.create_task(made.infer(inputs)) for _ in range(4)]
    await asyncio.sleep(0)
    await loading._close_when_idle([made])
    assert all(task.done() for task in owed)
    assert [values[0].tolist() for _, values in await asyncio.gather(*owed)] == [[2.0]] * 4
