"""OpenTelemetry traces: a span for each inference, and in it one for the wait and one for the model's run.

Switched on by the environment that OpenTelemetry itself names (OTEL_EXPORTER_OTLP_ENDPOINT); sampling,
headers and resource come from there as well. Spans are made when the answer is known, from times noted on the
way, so that a request that is not sampled pays for reading one header.
W3C trace context: https://www.w3.org/TR/trace-context/
"""

import logging
import os
import re
import time
from typing import Any

from pilotage_runtime.services.exchange import Exchange

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SAMPLED = 1

logger = logging.getLogger(__name__)


class Tracing:
    """Makes spans and hands them to the exporter's own thread."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("pilotage_runtime")

    def ended(
        self,
        exchange: Exchange,
        status: int,
        seconds: float,
        *,
        model: tuple[str, str] | None,
        rows: int = 0,
        ran: tuple[float, float] | None = None,
    ) -> None:
        """Note an answered inference; `ran` is when the model began and ended, by time.perf_counter."""
        from opentelemetry import trace  # noqa: PLC0415 - here only where tracing is on

        parent = None
        context = trace_context(exchange.traceparent)
        if context is not None:
            trace_id, span_id, sampled = context
            if not sampled:
                return
            remote = trace.SpanContext(
                trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(_SAMPLED)
            )
            parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        now, clock = time.time_ns(), time.perf_counter()
        end = now - int((clock - exchange.started - seconds) * 1e9)
        attributes: dict[str, Any] = {
            "http.request.method": exchange.method,
            "url.path": exchange.path,
            "http.response.status_code": status,
            "pilotage.request_id": exchange.request_id,
        }
        if model is not None:
            attributes |= {"pilotage.model": model[0], "pilotage.version": model[1], "pilotage.rows": rows}
        span = self._tracer.start_span(
            f"infer {model[0]}" if model else "infer",
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=end - int(seconds * 1e9),
        )
        if not span.is_recording():
            return
        if status >= 500:
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        if ran is not None:
            inside = trace.set_span_in_context(span)
            began, ended = (now - int((clock - moment) * 1e9) for moment in ran)
            for name, since, until in (("wait", end - int(seconds * 1e9), began), ("run", began, ended)):
                self._tracer.start_span(name, context=inside, start_time=since).end(max(since, until))
        span.end(end)

    def close(self) -> None:
        """Send what has gathered."""
        self._provider.shutdown()


def trace_context(traceparent: bytes | None) -> tuple[int, int, bool] | None:
    """Read a W3C traceparent: trace id, span id, whether it is sampled; None where it is not valid."""
    match = _TRACEPARENT.match(traceparent) if traceparent is not None else None
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5]):
        return None
    trace_id, span_id, flags = int(match[2], 16), int(match[3], 16), int(match[4], 16)
    return (trace_id, span_id, bool(flags & _SAMPLED)) if trace_id and span_id else None


def from_environment() -> Tracing | None:
    """Make what the environment asks for: nothing, unless it names where spans go."""
    wanted = any(os.environ.get(name) for name in _ENDPOINTS)
    if not wanted or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        # Traces are no reason not to serve.
        logger.warning("no traces: %s is missing: pip install 'pilotage[tracing]'", error.name)
        return None
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "pilotage-runtime")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
