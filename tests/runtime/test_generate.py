"""Models that answer piece by piece: over server-sent events, whole, and when somebody leaves in the middle."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from pilotage_runtime.digest import digest
from pilotage_runtime.protocol import messages
from tests.runtime.conftest import Server, Servers, eventually, free_port

METHODS = messages.load()
MODEL = """
import time
import numpy as np


class Counter:
    def predict(self, inputs, parameters):
        for number in range(int(inputs["count"].ravel()[0])):
            if number == parameters.get("fail_at"):
                raise ValueError("told to fail")
            time.sleep(parameters.get("seconds", 0))
            yield {"word": np.array([f"word {number}" + "x" * parameters.get("more", 0)], dtype=object)}
"""
CONTRACT = {
    "inputs": [{"name": "count", "datatype": "INT64", "shape": [-1]}],
    "outputs": [{"name": "word", "datatype": "BYTES", "shape": [-1]}],
    "sample": {"request": {"inputs": [{"name": "count", "datatype": "INT64", "shape": [1], "data": [1]}]}},
}


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory, serve_for_module: Servers) -> Server:
    return serve_counter(tmp_path_factory, serve_for_module)


def serve_counter(folders: pytest.TempPathFactory, servers: Servers, **settings: Any) -> Server:
    folder = folders.mktemp("streaming") / "model"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "contract.json").write_text(json.dumps(CONTRACT))
    return servers(folder, "counter", trusted=True, model_digest=digest(folder), **settings)


@pytest.fixture(scope="module")
def counter_over_grpc(tmp_path_factory: pytest.TempPathFactory, serve_for_module: Servers) -> Iterator[Any]:
    port = free_port()
    serve_counter(tmp_path_factory, serve_for_module, grpc_port=port)
    method = METHODS["ModelStreamInfer"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_stream(
            f"/{messages.SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=method.response.FromString,
        )


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


def test_pieces_come_as_events(counter: Server) -> None:
    answer = counter.client.post("/v2/models/counter/generate_stream", json={"count": 3, "id": "7"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event["word"] for event in events(answer)] == ["word 0", "word 1", "word 2"]
    assert {(event["model_name"], event["model_version"], event["id"]) for event in events(answer)} == {
        ("counter", "1", "7")
    }


def test_each_piece_is_sent_as_soon_as_it_is_there(counter: Server) -> None:
    body = {"count": 3, "parameters": {"seconds": 0.3}}
    with counter.client.stream("POST", "/v2/models/counter/generate_stream", json=body) as answer:
        came = [time.monotonic() for chunk in answer.iter_raw() if chunk.startswith(b"data")]
    assert len(came) == 3
    assert came[-1] - came[0] > 0.4


def test_generate_and_infer_give_all_pieces_as_one(counter: Server) -> None:
    answer = counter.client.post("/v2/models/counter/versions/1/generate", json={"count": 3})
    assert answer.json()["word"] == ["word 0", "word 1", "word 2"]
    tensor = {"name": "count", "datatype": "INT64", "shape": [1], "data": [2]}
    assert counter.infer({"inputs": [tensor]}).json()["outputs"][0]["data"] == ["word 0", "word 1"]


def test_a_failure_in_the_middle_is_the_last_event_and_counted_as_the_models(counter: Server) -> None:
    before = counter.metric("inference_requests_total", code="500")
    body = {"count": 3, "parameters": {"fail_at": 1}}
    told = events(counter.client.post("/v2/models/counter/generate_stream", json=body))
    assert told[0]["word"] == "word 0"
    assert told[1] == {"error": "model 'counter' failed: told to fail"}
    assert counter.metric("inference_requests_total", code="500") == before + 1


def test_a_failure_before_the_first_piece_decides_the_status(counter: Server) -> None:
    body = {"count": 3, "parameters": {"fail_at": 0}}
    for end in ("generate", "generate_stream"):
        answer = counter.client.post(f"/v2/models/counter/{end}", json=body)
        assert (answer.status_code, answer.json()) == (500, {"error": "model 'counter' failed: told to fail"})


def test_a_caller_that_leaves_closes_the_models_generator(counter: Server) -> None:
    body = {"count": 100_000, "parameters": {"seconds": 0.01}}
    with counter.client.stream("POST", "/v2/models/counter/generate_stream", json=body) as answer:
        next(answer.iter_raw())
    eventually(lambda: counter.metric("inference_requests_in_flight") == 0)
    assert counter.metric("inference_requests_total", code="499") >= 1
    # The one thread of the model is free again.
    assert counter.client.post("/v2/models/counter/generate", json={"count": 1}).status_code == 200


def test_time_up_ends_a_stream_with_an_event_that_says_so(counter: Server) -> None:
    body = {"count": 100_000, "parameters": {"seconds": 0.001}}

    def stream(_: int) -> httpx.Response:
        return counter.client.post(
            "/v2/models/counter/generate_stream", json=body, headers={"x-envoy-expected-rq-timeout-ms": "200"}
        )

    with ThreadPoolExecutor(8) as callers:
        for answer in callers.map(stream, range(48)):
            assert answer.status_code == 200
            assert events(answer)[-1] == {"error": "no answer within the 200 ms that the caller waits"}
    eventually(lambda: counter.metric("inference_requests_in_flight") == 0)


def test_a_caller_that_does_not_read_is_cut_off_behind_its_deadline(counter: Server) -> None:
    body = json.dumps({"count": 100_000, "parameters": {"more": 100_000}}).encode()
    head = f"host: x\r\ncontent-length: {len(body)}\r\nx-envoy-expected-rq-timeout-ms: 200\r\n\r\n"
    with socket.create_connection(("127.0.0.1", counter.port)) as caller:
        caller.sendall(b"POST /v2/models/counter/generate_stream HTTP/1.1\r\n" + head.encode() + body)
        eventually(lambda: counter.metric("inference_requests_in_flight") == 1)
        eventually(lambda: counter.metric("inference_requests_in_flight") == 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_never_comes_back_does_not_keep_its_server_from_ending(
    tmp_path_factory: pytest.TempPathFactory, serve: Servers, workers: int
) -> None:
    server = serve_counter(tmp_path_factory, serve, workers=workers)
    answer = server.client.post(
        "/v2/models/counter/generate_stream",
        json={"count": 1, "parameters": {"seconds": 1000}},
        headers={"x-envoy-expected-rq-timeout-ms": "200"},
    )
    assert answer.status_code == 504
    server.client.close()
    server.terminate()
    assert server.wait_exit() == 0
    assert "ends without waiting for a model that still runs or loads" in server.log()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "input 'count' is missing; the model takes count"),
        ([1], "the body should be an object with the model's inputs by name"),
        ({"count": "three"}, "INT64 takes whole numbers, but data holds strings"),
        ({"count": 1, "parameters": [1]}, "'parameters' should be an object"),
        ({"count": 1, "odd": {}}, "parameter 'odd' should be a string, a number, true or false"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(counter: Server, body: Any, sentence: str) -> None:
    answer = counter.client.post("/v2/models/counter/generate", json=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]


def test_a_model_that_does_not_stream_gives_one_event(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris")
    body = {"X": [5.1, 3.5, 1.4, 0.2]}
    told = events(server.client.post("/v2/models/iris/generate_stream", json=body))
    assert [event["output_label"] for event in told] == [0]
    assert server.client.post("/v2/models/iris/generate", json=body).json()["output_label"] == 0
    assert "generate" in server.client.get("/v2").json()["extensions"]


@pytest.mark.parametrize("end", ["generate", "generate_stream"])
def test_the_timeout_that_the_body_names_ends_it(counter: Server, end: str) -> None:
    body = {"count": 100_000, "parameters": {"seconds": 0.001, "timeout": 200_000}}
    answer = counter.client.post(f"/v2/models/counter/{end}", json=body)
    told = events(answer)[-1] if end == "generate_stream" else answer.json()
    assert told == {"error": "no answer within the 200 ms that the caller waits"}
    assert answer.status_code == (200 if end == "generate_stream" else 504)


def test_what_is_pinned_to_a_revision_enters_no_figure(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris")
    body = {"X": [5.1, 3.5, 1.4, 0.2]}
    for end in ("generate", "generate_stream"):
        server.client.post(f"/v2/models/iris/{end}", json=body, headers={"x-pilotage-pinned": "1"})
    assert server.metric("inference_pinned_requests_total") == 2
    assert server.metric("inference_rows_total") == 0
    assert server.metric("inference_requests_total", code="200") == 0


@pytest.mark.parametrize("version", ["", "1"])
def test_grpc_streams_the_pieces_of_every_version_until_the_time_is_up(
    counter_over_grpc: Any, version: str
) -> None:
    asked = METHODS["ModelInfer"].request(model_name="counter", model_version=version)
    asked.inputs.add(name="count", datatype="INT64", shape=[1]).contents.int64_contents.append(3)
    answers = list(counter_over_grpc(iter([asked])))
    assert [len(answer.infer_response.outputs) for answer in answers] == [1, 1, 1]
    asked.inputs[0].contents.int64_contents[0] = 100_000
    asked.parameters["seconds"].double_param = 0.001
    asked.parameters["timeout"].int64_param = 200_000
    assert [answer.error_message for answer in counter_over_grpc(iter([asked]))][-1] == (
        "no answer within the time that the caller waits"
    )
