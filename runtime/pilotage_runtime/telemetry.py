"""Metrics: plain numbers in shared slots while serving, Prometheus families when scraped.

Each worker owns one slot, a row of doubles in shared memory. It alone adds to it, so a count is one
memory write without a lock; whoever is scraped sums the slots. A slot outlives its worker: the next one
goes on counting in it, so that no counter ever falls.
"""

import math
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

# The histogram's bounds are the latency thresholds that an objective may name.
LATENCY_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 10, 30,
)  # fmt: skip
# Shown at 0 from the start, so that the first error is a rise and not a series' birth.
CODES_FROM_START = (200, 400, 404, 413, 500, 503, 504)
CODES = (*CODES_FROM_START, 405, 408, 415)
_CODE_AT = {code: at for at, code in enumerate(CODES)}

_BUCKETS = len(CODES)
_DURATION_SUM = _BUCKETS + len(LATENCY_BOUNDS) + 1
_CONFIDENCE_SUM = _DURATION_SUM + 1
_CONFIDENCE_COUNT = _DURATION_SUM + 2
_ROWS = _DURATION_SUM + 3
_LOAD_SECONDS = _DURATION_SUM + 4
_IN_FLIGHT = _DURATION_SUM + 5
_LOADED = _DURATION_SUM + 6
_PINNED = _DURATION_SUM + 7
_WIDTH = _DURATION_SUM + 8
SLOT_BYTES = _WIDTH * 8


class Slot:
    """One worker's numbers."""

    def __init__(self, descriptor: int = -1) -> None:
        """Map the memory behind `descriptor`, or memory of this process alone."""
        if descriptor != -1:
            os.ftruncate(descriptor, SLOT_BYTES)
        self.values = memoryview(mmap.mmap(descriptor, SLOT_BYTES)).cast("d")

    def start(self, load_seconds: float) -> None:
        """Begin, or go on after a worker that died: what was in flight died with it."""
        self.values[_IN_FLIGHT] = 0
        self.values[_LOAD_SECONDS] = load_seconds
        self.values[_LOADED] = 1

    def enter(self) -> None:
        """Count a request in."""
        self.values[_IN_FLIGHT] += 1

    def leave(self, code: int, seconds: float) -> None:
        """Count a request out, with its code and duration."""
        values = self.values
        values[_IN_FLIGHT] -= 1
        values[_CODE_AT[code]] += 1
        values[_BUCKETS + bisect_left(LATENCY_BOUNDS, seconds)] += 1
        values[_DURATION_SUM] += seconds

    def leave_pinned(self) -> None:
        """Count a request out whose caller chose the revision: it is no evidence, so it is counted by itself."""
        self.values[_IN_FLIGHT] -= 1
        self.values[_PINNED] += 1

    def abandon(self) -> None:
        """Count out a request whose caller left before it was whole."""
        self.values[_IN_FLIGHT] -= 1

    @property
    def loaded(self) -> bool:
        """Whether a worker has ever been ready to count here."""
        return bool(self.values[_LOADED])

    @property
    def in_flight(self) -> int:
        """How many requests this worker is at."""
        return int(self.values[_IN_FLIGHT])

    def predicted(self, rows: int, confidences: Sequence[float]) -> None:
        """Count answered rows and each row's highest probability; what is no number enters no sum."""
        values = self.values
        values[_ROWS] += rows
        for confidence in confidences:
            if math.isfinite(confidence):
                values[_CONFIDENCE_SUM] += confidence
                values[_CONFIDENCE_COUNT] += 1


class ModelCollector(Collector):
    """The series of one model over the slots of all its workers."""

    def __init__(self, model: str, slots: Sequence[Slot]) -> None:
        self._model = model
        self._slots = slots

    def collect(self) -> Iterable[Metric]:
        """Sum the slots into Prometheus families; nothing before the model is loaded."""
        rows = [list(slot.values) for slot in self._slots if slot.values[_LOADED]]
        if not rows:
            return
        total = [math.fsum(column) for column in zip(*rows, strict=True)]
        model = [self._model]
        requests = CounterMetricFamily(
            "inference_requests", "Inference requests by status code.", labels=["model", "code"]
        )
        for code, at in _CODE_AT.items():
            if code in CODES_FROM_START or total[at]:
                requests.add_metric([self._model, str(code)], total[at])
        yield requests

        cumulated, buckets = 0.0, list[tuple[str, float]]()
        for bound, count in zip((*LATENCY_BOUNDS, math.inf), total[_BUCKETS:_DURATION_SUM], strict=True):
            cumulated += count
            buckets.append(("+Inf" if math.isinf(bound) else repr(float(bound)), cumulated))
        duration = HistogramMetricFamily(
            "inference_request_duration_seconds",
            "Time from a request's head to its answer.",
            labels=["model"],
        )
        duration.add_metric(model, buckets, total[_DURATION_SUM])
        yield duration

        confidence = SummaryMetricFamily(
            "inference_prediction_confidence", "Highest class probability of each row.", labels=["model"]
        )
        confidence.add_metric(model, int(total[_CONFIDENCE_COUNT]), total[_CONFIDENCE_SUM])
        yield confidence
        yield self._counter("inference_rows", "Rows answered.", total[_ROWS])
        yield self._counter(
            "inference_pinned_requests",
            "Requests whose caller chose the revision by header: in no other figure of requests.",
            total[_PINNED],
        )
        yield self._gauge(
            "inference_model_load_seconds",
            "Time to load and warm up the model, the slowest worker's.",
            max(row[_LOAD_SECONDS] for row in rows),
        )
        yield self._gauge("inference_requests_in_flight", "Requests being served now.", total[_IN_FLIGHT])

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(name, documentation, labels=["model"])
        family.add_metric([self._model], value)
        return family

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=["model"])
        family.add_metric([self._model], value)
        return family


class Exposition:
    """What a scrape of /metrics is answered."""

    def __init__(self, model: str, slots: Sequence[Slot]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(ModelCollector(model, slots))

    def text(self) -> bytes:
        """Render the Prometheus text format."""
        return generate_latest(self._registry)
