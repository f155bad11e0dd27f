"""Requests and responses as a sink receives them: sampled, redacted, bounded, and at nobody's expense."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import orjson
import pytest

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.protocol import v2
from pilotage_runtime.repository import Repository
from pilotage_runtime.services import payload_event, payload_log
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.payload_event import Redaction
from pilotage_runtime.services.payload_log import PayloadLog, from_settings, sampled
from pilotage_runtime.services.payload_sink import FileSink, HttpSink, UnsentError
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Sheet
from tests.runtime import scripted
from tests.runtime.conftest import Servers, eventually, free_port
from tests.runtime.test_grpc import METHODS, Client
from tests.runtime.test_http import request

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FEATURES = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
# No number that could be there for another reason.
ROW = [6.28125, 3.4375, 4.71875, 1.84375]


class Collector(ThreadingHTTPServer):
    """Takes what the runtime posts, in the time and with the status that a test says."""

    def __init__(self) -> None:
        received: list[tuple[str, bytes]] = []
        statuses: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(outer.seconds)
                status = statuses.pop(0) if statuses else 200
                if status == 200:
                    received.append((self.headers["content-type"], body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        outer = self
        self.received = received
        self.statuses = statuses
        self.seconds = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/events"

    def events(self) -> list[dict[str, Any]]:
        return [event for _, body in self.received for event in json.loads(body)]


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def by_kind(events: list[dict[str, Any]], subject: str) -> dict[str, dict[str, Any]]:
    of = [event for event in events if event["subject"] == subject]
    assert len(of) <= 2
    return {event["type"].removeprefix("dev.pilotage.inference."): event for event in of}


def test_an_inference_is_two_events_that_its_request_id_joins(
    models: Path, serve: Servers, collector: Collector
) -> None:
    port = free_port()
    server = serve(models / "iris" / "1", "iris", payload_log_url=collector.url, grpc_port=port)
    answer = server.infer(request(), x_request_id="rest", traceparent=TRACEPARENT).json()
    row = dict(zip(FEATURES, ROW, strict=True))
    assert server.client.post("/predict", json=row, headers={"x-request-id": "rows"}).status_code == 200
    generated = server.client.post(
        "/v2/models/iris/generate", json={"X": [ROW]}, headers={"x-request-id": "generate"}
    )
    assert generated.status_code == 200
    server.infer(request(name="Y"), x_request_id="refused")
    message = METHODS["ModelInfer"].request(model_name="iris", id="mine")
    message.inputs.add(name="X", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend(ROW)
    import grpc  # noqa: PLC0415 - as in the other tests of the protocol

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        Client(channel).ModelInfer(message, metadata=[("x-request-id", "grpc")])
    server.terminate()
    assert server.wait_exit() == 0
    assert collector.url not in server.log()  # in an address a secret may stand
    events = collector.events()
    assert {kind for kind, _ in collector.received} == {"application/cloudevents-batch+json"}
    assert {event["subject"] for event in events} == {"rest", "rows", "generate", "grpc"}
    assert len({(event["source"], event["id"]) for event in events}) == 8
    rest = by_kind(events, "rest")
    for event in rest.values():
        assert event["specversion"] == "1.0"
        assert event["source"] == "/v2/models/iris/versions/1"
        assert event["datacontenttype"] == "application/json"
        assert event["traceparent"] == TRACEPARENT
        assert event["time"].endswith("Z")
        assert event["id"].startswith("rest.")
    assert rest["request"]["time"] < rest["response"]["time"]
    assert rest["request"]["data"] == request()
    assert rest["response"]["data"] == answer
    assert rest["response"]["statuscode"] == 200
    for subject in ("rows", "generate", "grpc"):
        pair = by_kind(events, subject)
        assert pair["request"]["data"]["inputs"][0]["data"] == ROW
        assert len(pair["response"]["data"]["outputs"][1]["data"]) == 3
        assert "traceparent" not in pair["request"]
    assert by_kind(events, "grpc")["response"]["data"]["id"] == "mine"


def test_what_is_redacted_is_nowhere_in_what_was_sent(
    models: Path, serve: Servers, collector: Collector
) -> None:
    names = "petal width (cm), sepal length (cm),not there"
    server = serve(models / "iris" / "1", "iris", payload_log_url=collector.url, payload_log_redact=names)
    document = request(data=ROW)
    assert server.infer(document, x_request_id="rest").status_code == 200
    row = dict(zip(FEATURES, ROW, strict=True))
    assert server.client.post("/predict", json=row).status_code == 200
    eventually(lambda: len(collector.events()) == 4)
    sent = b"".join(body for _, body in collector.received)
    for hidden, shown in ((b"1.84375", b"3.4375"), (b"6.28125", b"4.71875")):
        assert hidden not in sent
        assert sent.count(shown) == 2
    (tensor,) = by_kind(collector.events(), "rest")["request"]["data"]["inputs"]
    assert tensor["data"] == [None, ROW[1], ROW[2], None]
    assert tensor["parameters"] == {"redacted": "sepal length (cm),petal width (cm)"}
    assert "no model here has an input, output or feature of this name: not there" in server.log()
    refused = server.infer(request(datatype="INT8", data=[98765] * 4))
    assert (refused.status_code, "98765" in refused.text) == (400, True)
    eventually(lambda: '"status":400' in server.log())
    assert "1.84375" not in server.log()
    assert "98765" not in server.log()


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64", "INT64", "UINT8", "BOOL", "BYTES"])
def test_a_column_is_replaced_before_it_waits_whatever_its_datatype(datatype: str) -> None:
    spec = TensorSpec("X", datatype, (-1, 2))
    values = [["open", "secret"], ["fine", "secret"]] if datatype == "BYTES" else [[1, 3], [0, 3]]
    given = np.array(values, dtype=spec.dtype)
    kept = Redaction(["b"]).tensor(spec, given, ("a", "b"))
    assert b"secret" not in orjson.dumps(kept.values.tolist()) or datatype != "BYTES"
    column = kept.values[:, 1]
    assert all(value is None or np.isnan(value) for value in column.tolist())
    written = json.loads(orjson.dumps(v2.data(spec, kept.values), option=orjson.OPT_SERIALIZE_NUMPY))
    assert written[1::2] == [None, None]
    assert written[0::2] == given[:, 0].astype(np.float32 if datatype == "BF16" else spec.dtype).tolist()
    assert given[0, 1] is not None
    assert given[0, 1] in ("secret", 1, 3, ml_dtypes.bfloat16(3))  # the model's own is left alone
    assert (
        json.loads(orjson.dumps(v2.data(spec, Redaction(["X"]).tensor(spec, given).values), default=str))
        == [None] * 4
    )


def test_columns_that_cannot_be_told_apart_are_all_replaced() -> None:
    spec = TensorSpec("X", "FP32", (-1, -1))
    kept = Redaction(["b"]).tensor(spec, np.ones((2, 3), np.float32), ("a", "b"))
    assert kept.values.tolist() == [[None] * 3] * 2
    assert kept.redacted == ("X",)


def test_a_parameter_is_replaced_by_its_name() -> None:
    assert Redaction(["customer"]).parameters({"customer": "c-7", "top": 3}) == {"customer": None, "top": 3}


def test_which_names_mean_something_is_told_over_all_models() -> None:
    contracts = [scripted.contract(), Contract((TensorSpec("X", "FP32", (-1, 1)),), (), ("age",))]
    assert Redaction(["age", "x", "y", "agee"]).unknown(contracts) == ["agee"]


def test_the_sample_is_the_same_for_all_that_see_an_id_and_of_the_right_size() -> None:
    ids = [f"request-{number}" for number in range(20_000)]
    tenth = {one for one in ids if sampled(one, 0.1)}
    assert 0.09 < len(tenth) / len(ids) < 0.11
    assert tenth <= {one for one in ids if sampled(one, 0.3)}
    assert not any(sampled(one, 0) for one in ids)
    assert all(sampled(one, 1) for one in ids)
    # Whoever else samples can do it the same way, so it may never change: the first 8 bytes of SHA-256.
    assert [sampled("0af7651916cd43dd", share) for share in (0.479, 0.48)] == [False, True]


def test_request_and_response_are_in_the_sample_together(
    models: Path, serve: Servers, collector: Collector
) -> None:
    server = serve(
        models / "iris" / "1", "iris", payload_log_url=collector.url, payload_log_sample=0.5, workers=2
    )
    ids = [f"r{number}" for number in range(60)]
    for one in ids:
        assert httpx.post(
            f"{server.client.base_url}{server.infer_path}",
            json=request(),
            headers={"x-request-id": one},
            trust_env=False,
        ).is_success
    wanted = {one for one in ids if sampled(one, 0.5)}
    eventually(lambda: len(collector.events()) >= 2 * len(wanted))
    assert {event["subject"] for event in collector.events()} == wanted
    for one in wanted:
        assert by_kind(collector.events(), one).keys() == {"request", "response"}
    eventually(lambda: server.metric("inference_payloads_total", result="sent") == 2 * len(wanted))


def test_a_file_takes_one_event_a_line_and_what_is_left_at_the_end(
    models: Path, serve: Servers, tmp_path: Path
) -> None:
    path = tmp_path / "payloads.jsonl"
    server = serve(models / "iris" / "1", "iris", payload_log_file=path)
    for number in range(5):
        server.infer(request(), x_request_id=f"r{number}")
    server.terminate()  # before the events have gathered
    assert server.wait_exit() == 0
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["subject"] for event in events] == [f"r{number // 2}" for number in range(10)]


def test_a_sink_that_is_away_disturbs_nobody_and_is_told_once(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris", payload_log_url=f"http://127.0.0.1:{free_port()}/")
    assert [server.infer(request()).status_code for _ in range(20)] == [200] * 20
    eventually(lambda: server.metric("inference_payloads_total", result="failed") == 40)
    assert server.infer(request()).status_code == 200
    started = time.monotonic()
    server.terminate()
    assert server.wait_exit() == 0
    assert time.monotonic() - started < payload_log.FLUSH_SECONDS + 3
    assert server.log().count("payloads cannot be sent") == 1


def test_switched_off_nothing_is_logged_nor_imported(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris")
    server.infer(request())
    for result in ("sent", "dropped", "failed"):
        assert server.metric("inference_payloads_total", result=result) == 0
    assert from_settings(ServeSettings(), Repository(Sheet())) is None


def test_an_address_and_a_file_together_are_refused(models: Path, serve: Servers, tmp_path: Path) -> None:
    for settings, sentence in (
        ({"payload_log_url": "http://x/", "payload_log_file": tmp_path / "f"}, "not to both"),
        ({"payload_log_url": "file:///etc"}, "PAYLOAD_LOG_URL"),
        ({"payload_log_sample": "1.5"}, "PAYLOAD_LOG_SAMPLE"),
    ):
        server = serve.start(models / "iris" / "1", "iris", **settings)
        assert server.wait_exit() != 0
        assert sentence in server.log()


class Held:
    """A sink that takes nothing until it is told to."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.taken: list[bytes] = []
        self.most = 0

    async def send(self, events: Any) -> None:
        self.most = max(self.most, len(events))
        await self.free.wait()
        self.taken += events

    async def close(self) -> None:
        pass


def inference(size: int = 1) -> tuple[v2.InferRequest, tuple[list[TensorSpec], list[np.ndarray]]]:
    values = np.ones(size, np.float32)
    return v2.InferRequest(None, {"x": values}, ()), (list(scripted.contract().outputs), [values])


def counted(engine: Any) -> list[float]:
    at = payload_log_place()
    return list(engine.slot.values[at : at + 3])


def payload_log_place() -> int:
    from pilotage_runtime import telemetry  # noqa: PLC0415

    return telemetry._PAYLOADS


def test_what_does_not_fit_is_dropped_and_counted_and_memory_is_bounded() -> None:
    async def run() -> None:
        engine, sink = scripted.engine(), Held()
        log = PayloadLog(sink)
        await log.start()
        asked, answer = inference(size=50_000)  # 400 kB both ways
        for _ in range(1000):
            log.note(Exchange("POST", "/", []), engine, asked, 200, answer)
        assert log.bytes_held <= payload_log.MAX_BYTES
        kept = payload_log.MAX_BYTES // payload_event.weigh(asked, answer[1])
        assert counted(engine) == [0, 2 * (1000 - kept), 0]
        sink.free.set()
        await log.stop()
        assert counted(engine) == [2 * kept, 2 * (1000 - kept), 0]
        assert len(sink.taken) == 2 * kept
        assert log.bytes_held == 0
        # Small ones by their number, and too large a one whatever room there is.
        small, answered = inference()
        for _ in range(payload_log.MAX_EVENTS):
            log.note(Exchange("POST", "/", []), engine, small, 200, answered)
        huge, _ = inference(size=payload_log.MAX_PAYLOAD_BYTES // 4)
        before = counted(engine)[1]
        log.note(Exchange("POST", "/", []), engine, huge, 200)
        assert before == 2 * (1000 - kept) + payload_log.MAX_EVENTS
        assert counted(engine)[1] == before + 2

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_queued_payload_holds_no_part_of_a_body_or_a_batch() -> None:
    async def run() -> None:
        engine = scripted.engine()
        log = PayloadLog(Held())
        body, batch = np.ones(100_000, np.float32), np.ones(100_000, np.float32)
        asked = v2.InferRequest(None, {"x": body[:1]}, ())
        log.note(
            Exchange("POST", "/", []), engine, asked, 200, (list(scripted.contract().outputs), [batch[:1]])
        )
        (waiting,) = log._queue
        for tensor in (*waiting.inputs, *waiting.outputs):
            assert tensor.values.base is None
        body[:1] = 7  # as a model would that writes over its inputs
        assert json.loads(payload_event.events(waiting)[0])["data"]["inputs"][0]["data"] == [1.0]

    asyncio.run(run())


def test_of_a_failed_inference_there_is_the_status_and_no_sentence() -> None:
    async def run() -> None:
        async with scripted.serving(run=broken) as world:
            log = PayloadLog(Held())
            caller = await world.caller()
            world.handler.payloads = log
            answer = await caller.infer(7, x_request_id="r")
            assert answer.status == 500
            assert "secret 7" in answer.error
            (waiting,) = log._queue
            asked, answered = payload_event.events(waiting)
            assert json.loads(asked)["data"]["inputs"][0]["data"] == [7.0]
            assert json.loads(answered)["statuscode"] == 500
            assert "data" not in json.loads(answered)
            assert b"secret" not in asked + answered

    asyncio.run(run())


def broken(inputs: Any, outputs: Any) -> list[Any]:
    raise ValueError(f"secret {inputs['x'][0]:g}")


def test_a_sink_that_recovers_gets_everything_and_one_that_refuses_is_not_asked_again(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload_log, "_FIRST_PAUSE_SECONDS", 0.01)

    async def run() -> None:
        engine = scripted.engine()
        log = PayloadLog(HttpSink(collector.url))
        await log.start()
        collector.statuses[:] = [503, 429]
        asked, answer = inference()
        log.note(Exchange("POST", "/", []), engine, asked, 200, answer)
        while not counted(engine)[0]:  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0.01)
        assert len(collector.events()) == 2
        collector.statuses[:] = [400, 302]
        for failed in (2, 4):
            log.note(Exchange("POST", "/", []), engine, asked, 200, answer)
            while counted(engine)[2] < failed:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        await log.stop()
        assert counted(engine) == [2, 0, 4]
        assert not collector.statuses

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_slow_sink_holds_up_neither_an_attempt_nor_the_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotage_runtime.services import payload_sink  # noqa: PLC0415

    monkeypatch.setattr(payload_sink, "ATTEMPT_SECONDS", 0.1)
    monkeypatch.setattr(payload_log, "FLUSH_SECONDS", 0.3)
    collector.seconds = 1

    async def run() -> None:
        with pytest.raises(UnsentError) as unsent:
            await HttpSink(collector.url).send([b"{}"])
        assert unsent.value.again
        engine, sink = scripted.engine(), Held()
        log = PayloadLog(sink)
        await log.start()
        asked, answer = inference()
        log.note(Exchange("POST", "/", []), engine, asked, 200, answer)
        started = time.monotonic()
        await log.stop()
        assert time.monotonic() - started < 1
        assert counted(engine) == [0, 2, 0]
        assert log.bytes_held == 0

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_sink_that_answers_a_byte_at_a_time_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from pilotage_runtime.services import payload_sink  # noqa: PLC0415

    monkeypatch.setattr(payload_sink, "ATTEMPT_SECONDS", 0.2)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx: ")
        for _ in range(100):
            writer.write(b"x")
            await asyncio.sleep(0.02)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        started = time.monotonic()
        with pytest.raises(UnsentError):
            await HttpSink(f"http://127.0.0.1:{port}/").send([b"{}"])
        assert time.monotonic() - started < 1.5
        server.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_file_that_cannot_be_written_fails_its_events_and_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        engine = scripted.engine()
        log = PayloadLog(FileSink(tmp_path / "nowhere" / "f"))
        await log.start()
        asked, answer = inference()
        log.note(Exchange("POST", "/", []), engine, asked, 200, answer)
        await log.stop()
        assert counted(engine) == [0, 0, 2]

    asyncio.run(asyncio.wait_for(run(), 20))
