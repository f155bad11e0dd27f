"""What callers see: answers, refusals, one shape of error everywhere."""

import http.client
import json
import socket
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime.conftest import Server, Servers

ROW = [5.1, 3.5, 1.4, 0.2]


def request(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": ROW, **changes}]}


@pytest.fixture(scope="module")
def iris(models: Path, serve_for_module: Servers) -> Server:
    return serve_for_module(models / "iris" / "1", "iris", max_body_bytes=100_000)


def test_a_row_is_classified_with_label_and_probabilities(iris: Server) -> None:
    answer = iris.infer({"id": "42", **request()})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model_name"], body["id"]) == ("iris", "42")
    label, probability = body["outputs"]
    assert (label["name"], label["datatype"], label["shape"], label["data"]) == (
        "output_label",
        "INT64",
        [1],
        [0],
    )
    assert (probability["datatype"], probability["shape"]) == ("FP32", [1, 3])
    assert sum(probability["data"]) == pytest.approx(1, abs=1e-5)
    assert max(probability["data"]) == probability["data"][0]


def test_nested_and_flat_data_give_the_same_answer(iris: Server) -> None:
    flat = iris.infer(request(shape=[2, 4], data=[*ROW, *ROW])).json()
    nested = iris.infer(request(shape=[2, 4], data=[ROW, ROW])).json()
    assert flat == nested
    assert flat["outputs"][1]["shape"] == [2, 3]


def test_only_the_outputs_asked_for_are_sent(iris: Server) -> None:
    body = iris.infer({**request(), "outputs": [{"name": "output_label"}]}).json()
    assert [output["name"] for output in body["outputs"]] == ["output_label"]


def test_every_answer_says_when_it_was_given(iris: Server) -> None:
    for answer in (iris.infer(request()), iris.infer({}), iris.client.get("/v2")):
        assert parsedate_to_datetime(answer.headers["date"]).tzname() == "UTC"


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (request(name="Y"), "input 'X' is missing; input 'Y' is unknown; expected: 'X' FP32 [-1, 4]"),
        (request(datatype="FP64"), "input 'X': datatype FP64 came, FP32 is expected"),
        (request(datatype="FLOAT"), "input 'X': datatype 'FLOAT' is unknown; known are BOOL"),
        (request(shape=[1, 5], data=[*ROW, 1]), "input 'X': shape [1, 5] came, [-1, 4] is expected"),
        (request(shape=[1, 5], data=[*ROW, 1]), "a row is sepal length (cm)"),
        (request(shape=[4]), "input 'X': shape [4] came, [-1, 4] is expected"),
        (request(shape=[2, 4]), "input 'X': data holds 4 values, but shape [2, 4] needs 8"),
        (request(shape=[-1, 4]), "shape should be a list of whole numbers from 0 up, but is [-1, 4]"),
        (request(shape=[True, 4]), "shape should be a list of whole numbers"),
        (request(shape=[10**18, 10**18]), "data holds 4 values, but shape [1000000000000000000, 1000"),
        (request(shape=[0, 4], data=[]), "shape [0, 4] holds no element"),
        (request(data=[ROW[:3], ROW]), "data is a list of uneven or too deep lists"),
        (request(data=["a", "b", "c", "d"]), "FP32 takes numbers, but data holds strings"),
        (request(data=["1", "2", "3", "4"]), "FP32 takes numbers, but data holds strings"),
        (request(data=[1, 2, 3, None]), "FP32 takes numbers, but data holds null"),
        (request(data=[True, False, True, True]), "FP32 takes numbers, but data holds true or false"),
        (request(data=[1, 2, 3, 1e39]), "data holds a number too large for FP32"),
        (request(data=None), "'data' should be a list of numbers, but is absent"),
        (request(data={"0": 1}), "'data' should be a list of numbers, but is an object"),
        (
            {**request(), "outputs": [{"name": "score"}]},
            "output 'score' is unknown; the model has output_label",
        ),
        ({**request(), "outputs": "all"}, "'outputs' should be a list, but is 'all'"),
        ({**request(), "id": 7}, "'id' should be a string, but is 7"),
        ({"inputs": request()["inputs"] * 2}, "input 'X' came twice"),
        ({"inputs": [5]}, "inputs[0] should be an object with a 'name', but is 5"),
        ({"inputs": []}, "'inputs' should be a list of tensors"),
        ({}, "'inputs' should be a list of tensors, but is absent"),
        ([1], "the body should be a JSON object"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_a_sentence(
    iris: Server, document: Any, sentence: str
) -> None:
    answer = iris.infer(document)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"inputs": [{"name": "\xc3\x28"}]}',
        b"[" * 50_000,
        b'{"inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "data": '
        + b"[" * 500
        + b"]" * 500
        + b"}]}",
        b'{"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [NaN, 1, 1, 1]}]}',
        b"\x00" * 1000,
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_hostile_bodies_are_the_callers_fault_and_the_server_lives(iris: Server, body: bytes) -> None:
    answer = iris.client.post(iris.infer_path, content=body)
    assert answer.status_code == 400
    assert "Traceback" not in answer.text
    assert answer.json()["error"]
    assert iris.infer(request()).status_code == 200


def test_a_body_beyond_the_cap_is_413_by_its_header_and_by_its_bytes(iris: Server) -> None:
    large = b" " * 200_000
    declared = iris.client.post(iris.infer_path, content=large)
    chunked = iris.client.post(iris.infer_path, content=iter([large[:50_000]] * 4))
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert "at most 100000 are taken" in declared.json()["error"]
    assert declared.headers["connection"] == "close"


def test_a_content_type_other_than_json_is_refused_and_none_is_taken(iris: Server) -> None:
    body = json.dumps(request())
    xml = iris.client.post(iris.infer_path, content=body, headers={"content-type": "text/xml"})
    assert xml.status_code == 415
    assert xml.json()["error"].startswith("content type text/xml came, application/json is expected")
    assert iris.client.post(iris.infer_path, content=body).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/iris/versions/3/infer", 404),
        ("POST", "/v2/models/iris/infer/infer", 404),
        ("GET", "/v2/models/iris/versions/3", 404),
        ("GET", "/v2/models/iris/infer", 405),
        ("DELETE", "/v2/models/iris", 405),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_what_is_not_served_is_told_in_the_one_shape(
    iris: Server, method: str, path: str, status: int
) -> None:
    answer = iris.client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert answer.headers["x-request-id"]
    assert (status == 405) == ("allow" in answer.headers)


def test_health_and_metadata(iris: Server) -> None:
    assert iris.client.get("/v2/health/live").json() == {"live": True}
    assert iris.client.get("/v2/health/ready").json() == {"ready": True}
    assert iris.client.get("/v2/models/iris/ready").json() == {"name": "iris", "ready": True}
    assert iris.client.get("/v2").json()["name"] == "pilotage"
    assert iris.client.get("/v2/models/iris").json() == {
        "name": "iris",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "output_label", "datatype": "INT64", "shape": [-1]},
            {
                "name": "output_probability",
                "datatype": "FP32",
                "shape": [-1, 3],
                "parameters": {"labels": ["setosa", "versicolor", "virginica"]},
            },
        ],
        "parameters": {
            "version": "1",
            "batching": "on",
            "feature_names": [
                "sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)",
            ],
        },
    }  # fmt: skip


@pytest.mark.parametrize("below", ["", "/versions/1"])
def test_openapi_describes_every_way_to_infer_with_an_example_that_works(iris: Server, below: str) -> None:
    paths = iris.client.get("/openapi.json").json()["paths"]
    for end, kind in (
        ("infer", "application/json"),
        ("generate", "application/json"),
        ("generate_stream", "text/event-stream"),
    ):
        path = f"/v2/models/iris{below}/{end}"
        operation = paths[path]["post"]
        answer = iris.client.post(
            path, json=operation["requestBody"]["content"]["application/json"]["example"]
        )
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind), path
        assert kind in operation["responses"]["200"]["content"]
    named = [
        one["post"]["operationId"] for one in paths.values() if "post" in one and "operationId" in one["post"]
    ]
    assert len(named) == len(set(named))


def test_openapi_describes_inference_from_the_contract_with_an_example_that_works(iris: Server) -> None:
    assert iris.client.get("/docs").status_code == 200
    operation = iris.client.get("/openapi.json").json()["paths"]["/v2/models/iris/infer"]["post"]
    media = operation["requestBody"]["content"]["application/json"]
    tensor = media["schema"]["properties"]["inputs"]["items"]["oneOf"][0]
    assert tensor["properties"]["datatype"]["enum"] == ["FP32"]
    assert iris.infer(media["example"]).status_code == 200


def test_a_request_id_is_taken_if_sane_and_made_otherwise(iris: Server) -> None:
    taken = iris.infer(request(), X_Request_ID="call-7.a")
    assert taken.headers["x-request-id"] == "call-7.a"
    made = [
        iris.infer(request(), X_Request_ID=bad).headers["x-request-id"] for bad in ('a"b', "x" * 200, "a b")
    ]
    assert all(identifier.isalnum() and len(identifier) == 32 for identifier in made)
    assert len(set(made)) == 3


def test_the_access_log_is_json_with_the_request_id_and_leaves_probes_out(
    models: Path, serve: Servers
) -> None:
    server = serve(models / "iris" / "1", "iris")
    server.infer(request(name="Y"), X_Request_ID="log-me")
    server.client.get('/quo"te')
    server.terminate()
    assert server.wait_exit() == 0
    lines = [json.loads(line) for line in server.log().splitlines()]
    access = [line for line in lines if line["logger"] == "access"]
    assert [(line["path"], line["status"]) for line in access] == [(server.infer_path, 400), ('/quo"te', 404)]
    assert access[0]["request_id"] == "log-me"
    assert "input 'Y' is unknown" in access[0]["error"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /v2?" + b"x" * 600_000, 431),
        (b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400),
    ],
)
def test_a_malformed_or_endless_head_gets_an_answer_and_the_end(
    iris: Server, head: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", iris.port), timeout=10) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(head)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except (ConnectionResetError, BrokenPipeError):
            # Closed while we still sent: an answer may be lost then, the server may not.
            answer = None
    if answer is not None:
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b'{"error":' in answer
        assert b"content-type: application/json" in answer
    assert iris.infer(request()).status_code == 200


def test_the_limit_on_heads_holds_for_every_request_of_a_connection(iris: Server) -> None:
    small = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    large = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 40_000 + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", iris.port), timeout=10) as connection:
        for head, status in ((small, 200), (small, 200), (large, 431)):
            connection.sendall(head)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
            assert answer.status == status


def test_a_head_in_many_pieces_is_put_together(iris: Server) -> None:
    with socket.create_connection(("127.0.0.1", iris.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_upgrade_or_a_head_request_disturbs_nobody(iris: Server) -> None:
    upgraded = iris.client.get("/v2", headers={"connection": "upgrade", "upgrade": "websocket"})
    assert upgraded.status_code == 200
    assert iris.client.head("/v2/health/live").status_code == 405
    assert iris.infer(request()).status_code == 200


def test_idle_connections_outlive_the_gateways_idle_time_out() -> None:
    from pilotage_runtime.services.listener import KEEP_ALIVE_SECONDS  # noqa: PLC0415

    destination_rule_idle_seconds = 60
    assert destination_rule_idle_seconds + 15 <= KEEP_ALIVE_SECONDS


def test_metrics_are_not_on_the_port_of_inference(iris: Server) -> None:
    assert iris.client.get("/metrics").status_code == 404
    assert httpx.get(f"http://127.0.0.1:{iris.metrics_port}/v2").status_code == 404
