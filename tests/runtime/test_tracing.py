"""Traces as a collector receives them, and W3C trace context."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.tracing import Tracing, from_environment, trace_context
from tests.runtime.conftest import Servers
from tests.runtime.test_http import request

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(HTTPServer):
    """Takes what the exporter sends."""

    def __init__(self) -> None:
        received: list[ExportTraceServiceRequest] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                received.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.received = received

    def spans(self) -> list[Span]:
        return [
            span
            for message in self.received
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_inference_is_a_span_of_its_callers_trace_with_wait_and_run_inside(
    models: Path, serve: Servers, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "iris-pods")
    server = serve(models / "iris" / "1", "iris")
    server.infer(request(), traceparent=f"00-{TRACE}-{PARENT}-01", x_request_id="seen")
    server.infer(request(), traceparent=f"00-{TRACE}-{PARENT}-00", x_request_id="unsampled")
    server.infer(request(name="Y"), x_request_id="refused")
    server.terminate()
    assert server.wait_exit() == 0
    spans = {
        attribute.value.string_value: span
        for span in collector.spans()
        for attribute in span.attributes
        if attribute.key == "pilotage.request_id"
    }
    assert spans.keys() == {"seen", "refused"}
    seen = spans["seen"]
    assert (seen.name, seen.kind) == ("infer iris", Span.SPAN_KIND_SERVER)
    assert (seen.trace_id.hex(), seen.parent_span_id.hex()) == (TRACE, PARENT)
    inside = {span.name: span for span in collector.spans() if span.parent_span_id == seen.span_id}
    assert inside.keys() == {"wait", "run"}
    wait, run = inside["wait"], inside["run"]
    assert seen.start_time_unix_nano == wait.start_time_unix_nano
    assert (
        wait.end_time_unix_nano
        == run.start_time_unix_nano
        < run.end_time_unix_nano
        <= seen.end_time_unix_nano
    )
    attributes = {attribute.key: attribute.value for attribute in seen.attributes}
    assert attributes["pilotage.rows"].int_value == 1
    assert attributes["http.response.status_code"].int_value == 200
    refused = spans["refused"]
    assert refused.trace_id.hex() != TRACE
    assert refused.status.code == Status.STATUS_CODE_UNSET  # the caller's fault
    resource = {
        item.key: item.value.string_value
        for item in collector.received[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "iris-pods"
    lines = [json.loads(line) for line in server.log().splitlines()]
    traced = {line["request_id"]: line.get("trace_id") for line in lines if line["logger"] == "access"}
    assert traced == {"seen": TRACE, "unsampled": TRACE, "refused": None}


def test_a_collector_that_is_away_disturbs_nobody(
    models: Path, serve: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    server = serve(models / "iris" / "1", "iris")
    assert [server.infer(request()).status_code for _ in range(20)] == [200] * 20
    server.terminate()
    assert server.wait_exit() == 0


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, StatusCode.UNSET), (429, StatusCode.UNSET), (500, StatusCode.ERROR), (504, StatusCode.ERROR)],
)
def test_only_what_is_not_the_callers_fault_is_a_failed_span(status: int, code: StatusCode) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    Tracing(provider).ended(Exchange("POST", "/v2", []), status, 0.1, model=("m", "1"))
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is code
    assert (span.attributes or {})["http.response.status_code"] == status


@pytest.mark.parametrize(
    ("endpoint", "disabled", "traces"),
    [("http://127.0.0.1:9", "", True), ("http://127.0.0.1:9", "True", False), ("", "", False)],
)
def test_the_environment_switches_traces_on_and_off(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, disabled: str, traces: bool
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    tracing = from_environment()
    assert (tracing is not None) == traces
    if tracing is not None:
        tracing.close()


@pytest.mark.parametrize(
    ("header", "context"),
    [
        (f"00-{TRACE}-{PARENT}-01", (int(TRACE, 16), int(PARENT, 16), True)),
        (f"00-{TRACE}-{PARENT}-00", (int(TRACE, 16), int(PARENT, 16), False)),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-brings", (int(TRACE, 16), int(PARENT, 16), True)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_trace_context_is_read_as_the_standard_says(header: str, context: object) -> None:
    assert trace_context(header.encode()) == context
    assert trace_context(None) is None
