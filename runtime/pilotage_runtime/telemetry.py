"""Metrics: plain numbers in shared slots while serving, Prometheus families when scraped.

Each worker owns a sheet of shared memory, and in it each version of a model a slot, a row of doubles. It
alone adds to it, so a count is one memory write without a lock; whoever is scraped sums the slots of all
sheets. A sheet outlives its worker: the next one goes on counting in it, so that no counter ever falls; for the
same reason a slot's number is never given to another model. Behind the doubles each slot has the names of its classes
and features (`names`).
"""

import math
import mmap
import os
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from pilotage_runtime import names
from pilotage_runtime.names import Names

# The histogram's bounds are the latency thresholds that an objective may name.
LATENCY_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 10, 30,
)  # fmt: skip
# Shown at 0 from the start, so that the first error is a rise and not a series' birth.
CODES_FROM_START = (200, 400, 404, 413, 429, 500, 503, 504)
CODES = (*CODES_FROM_START, 405, 408, 415, 499, 501)
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
_RUNS = _DURATION_SUM + 8
# Of a worker and not of a model: kept in slot 0 of its sheet.
_CONNECTIONS = _DURATION_SUM + 9
_PAYLOADS = _DURATION_SUM + 10
_CLASSES = _PAYLOADS + 3
_OUT_OF_RANGE = _CLASSES + names.PLACES
_WIDTH = _OUT_OF_RANGE + names.PLACES
# Classes and features, in this order.
_NAMES_BYTES = 2 * names.BYTES
# A number outlives its model, so this bounds how many versions one process can ever have served.
MAX_SLOTS = 4096
# Requests that no model can be blamed for: the name in their path is served by none.
UNKNOWN_MODEL = "_unknown"


class PayloadResult(IntEnum):
    """What came of an event for the log of payloads."""

    SENT = 0
    DROPPED = 1
    FAILED = 2


class ModelLabels(NamedTuple):
    """Which model a slot's numbers are of."""

    model: str
    version: str


class Sheet:
    """One worker's slots."""

    def __init__(self, descriptor: int = -1) -> None:
        """Map the memory behind `descriptor`, or memory of this process alone; pages come when written."""
        numbers = MAX_SLOTS * _WIDTH * 8
        size = numbers + MAX_SLOTS * _NAMES_BYTES
        if descriptor != -1:
            os.ftruncate(descriptor, size)
        memory = memoryview(mmap.mmap(descriptor, size))
        self._values: memoryview[float] = memory[:numbers].cast("d")
        self._names = memory[numbers:]

    def connected(self, change: int) -> None:
        """Count a worker's connection in (1) or out (-1)."""
        self._values[_CONNECTIONS] += change

    @property
    def connections(self) -> int:
        """How many connections this worker holds."""
        return int(self._values[_CONNECTIONS])

    def ended(self, numbers: Iterable[int]) -> None:
        """Its worker has died: its connections, and what was in flight in these slots, died with it."""
        self._values[_CONNECTIONS] = 0
        for number in numbers:
            self._values[number * _WIDTH + _IN_FLIGHT] = 0

    def empty(self, number: int) -> None:
        """Empty a slot in which nothing was ever counted: another version's load, which failed, has left names there."""
        begin, end = number * _WIDTH, (number + 1) * _WIDTH
        self._values[begin:end] = array("d", bytes(8 * _WIDTH))
        self._names[number * _NAMES_BYTES : (number + 1) * _NAMES_BYTES] = bytes(_NAMES_BYTES)

    def slot(self, number: int) -> "Slot":
        """Give the slot of that number."""
        return Slot(
            self._values[number * _WIDTH : (number + 1) * _WIDTH],
            self._names[number * _NAMES_BYTES : (number + 1) * _NAMES_BYTES],
        )


class Slot:
    """What one worker counts of one version of a model."""

    def __init__(self, values: "memoryview[float]", named: "memoryview[int]") -> None:
        self.values = values
        self.classes = Names(named[: names.BYTES])
        self.features = Names(named[names.BYTES :])

    def start(self, load_seconds: float) -> None:
        """Begin, or go on after a worker that died: what was in flight died with it."""
        self.values[_IN_FLIGHT] = 0
        self.values[_LOAD_SECONDS] = load_seconds
        self.values[_LOADED] = 1

    def loaded_in(self, seconds: float) -> None:
        """Note how long a version took that replaces the one that still counts here."""
        self.values[_LOAD_SECONDS] = seconds

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
        """Count a run, its rows and each row's highest probability; what is no number enters no sum."""
        values = self.values
        values[_RUNS] += 1
        values[_ROWS] += rows
        if confidences:
            total, count = math.fsum(confidences), len(confidences)
            if not math.isfinite(total):
                finite = [confidence for confidence in confidences if math.isfinite(confidence)]
                total, count = math.fsum(finite), len(finite)
            values[_CONFIDENCE_SUM] += total
            values[_CONFIDENCE_COUNT] += count

    def classified(self, place: int, rows: int) -> None:
        """Count rows of the class that has this place."""
        self.values[_CLASSES + place] += rows

    def out_of_range(self, feature: str) -> None:
        """Count a request that was refused for this feature's value."""
        self.values[_OUT_OF_RANGE + self.features.place(feature)] += 1

    def payloads(self, result: PayloadResult, events: int) -> None:
        """Count what came of events for the log of payloads."""
        self.values[_PAYLOADS + result] += events


class ModelCollector(Collector):
    """The series of all models over the sheets of all workers."""

    def __init__(self, models: Callable[[], Mapping[int, ModelLabels]], sheets: Sequence[Sheet]) -> None:
        self._models = models
        self._sheets = sheets

    def collect(self) -> Iterable[Metric]:
        """Sum the slots into Prometheus families; nothing of a model before it is loaded."""
        labels = ["model", "version"]
        requests = CounterMetricFamily(
            "inference_requests", "Inference requests by status code.", labels=[*labels, "code"]
        )
        duration = HistogramMetricFamily(
            "inference_request_duration_seconds", "Time from a request's head to its answer.", labels=labels
        )
        confidence = SummaryMetricFamily(
            "inference_prediction_confidence", "Highest class probability of each row.", labels=labels
        )
        counters = {
            _ROWS: CounterMetricFamily("inference_rows", "Rows answered.", labels=labels),
            _RUNS: CounterMetricFamily(
                "inference_runs", "Runs of the model: rows by runs is the mean batch.", labels=labels
            ),
            _PINNED: CounterMetricFamily(
                "inference_pinned_requests",
                "Requests whose caller chose the revision by header: in no other figure of requests.",
                labels=labels,
            ),
        }
        payloads = CounterMetricFamily(
            "inference_payloads",
            "Requests and responses for the log of payloads, by what came of them; 0 where it is off.",
            labels=[*labels, "result"],
        )
        classes = CounterMetricFamily(
            "inference_predictions",
            f"Rows by the class predicted; beyond {names.MOST} classes `{names.OTHER}`.",
            labels=[*labels, "class"],
        )
        out_of_range = CounterMetricFamily(
            "inference_out_of_range",
            "Requests refused for a value out of its feature's range, by the first such feature; beyond "
            f"{names.MOST} features `{names.OTHER}`.",
            labels=[*labels, "feature"],
        )
        load = GaugeMetricFamily(
            "inference_model_load_seconds",
            "Time to load and warm up the model, the slowest worker's.",
            labels=labels,
        )
        in_flight = GaugeMetricFamily(
            "inference_requests_in_flight", "Requests being served now.", labels=labels
        )
        for number, of in self._models().items():
            slots = [slot for sheet in self._sheets if (slot := sheet.slot(number)).loaded]
            if not slots:
                continue
            # Names first: what is counted meanwhile under a new one waits for the next scrape.
            of_classes = [slot.classes.listed() for slot in slots]
            of_features = [slot.features.listed() for slot in slots]
            rows = [list(slot.values) for slot in slots]
            total = [math.fsum(column) for column in zip(*rows, strict=True)]
            for code, at in _CODE_AT.items():
                if code in CODES_FROM_START or total[at]:
                    requests.add_metric([*of, str(code)], total[at])
            cumulated, buckets = 0.0, list[tuple[str, float]]()
            for bound, count in zip((*LATENCY_BOUNDS, math.inf), total[_BUCKETS:_DURATION_SUM], strict=True):
                cumulated += count
                buckets.append(("+Inf" if math.isinf(bound) else repr(float(bound)), cumulated))
            duration.add_metric(of, buckets, total[_DURATION_SUM])
            confidence.add_metric(of, int(total[_CONFIDENCE_COUNT]), total[_CONFIDENCE_SUM])
            for at, family in counters.items():
                family.add_metric(of, total[at])
            for result in PayloadResult:
                payloads.add_metric([*of, result.name.lower()], total[_PAYLOADS + result])
            for family, begin, named in (
                (classes, _CLASSES, of_classes),
                (out_of_range, _OUT_OF_RANGE, of_features),
            ):
                for name, count in _by_name(named, rows, begin).items():
                    family.add_metric([*of, name], count)
            load.add_metric(of, max(row[_LOAD_SECONDS] for row in rows))
            in_flight.add_metric(of, total[_IN_FLIGHT])
        connections = GaugeMetricFamily(
            "inference_worker_connections",
            "Connections that each worker holds now: how evenly they spread.",
            labels=["worker"],
        )
        for index, sheet in enumerate(self._sheets):
            connections.add_metric([str(index)], sheet.connections)
        if in_flight.samples:
            yield connections
        counted = (requests, duration, confidence, classes, out_of_range, *counters.values(), payloads)
        for family in (*counted, load, in_flight):
            if family.samples:
                yield family


def _by_name(
    named: Sequence[Sequence[str]], rows: Sequence[Sequence[float]], begin: int
) -> Mapping[str, float]:
    """Add up what each worker counts by its own names."""
    total: defaultdict[str, float] = defaultdict(float)
    for of_worker, row in zip(named, rows, strict=True):
        for at, name in enumerate(of_worker):
            total[name] += row[begin + at]
        if others := row[begin + names.MOST]:
            total[names.OTHER] += others
    return total


class Exposition:
    """What a scrape of /metrics is answered."""

    def __init__(self, models: Callable[[], Mapping[int, ModelLabels]], sheets: Sequence[Sheet]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(ModelCollector(models, sheets))

    def text(self) -> bytes:
        """Render the Prometheus text format."""
        return generate_latest(self._registry)
