"""Metrics as Prometheus reads them."""

import math
import os
import socket
from pathlib import Path

import pytest

from pilotage_runtime.roster import UNKNOWN_NUMBER
from pilotage_runtime.telemetry import LATENCY_BOUNDS, Exposition, ModelLabels, Sheet
from tests.runtime.conftest import Servers, eventually
from tests.runtime.test_http import request


def scraped(*sheets: Sheet) -> str:
    return Exposition(lambda: {1: ModelLabels("m", "7")}, sheets).text().decode()


def test_after_the_load_every_series_is_there_at_zero(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris")
    for code in ("200", "400", "404", "413", "500", "503", "504"):
        assert server.metric("inference_requests_total", code=code) == 0
    for bound in LATENCY_BOUNDS:
        assert server.metric("inference_request_duration_seconds_bucket", le=str(float(bound))) == 0
    assert server.metric("inference_prediction_confidence_sum") == 0
    assert server.metric("inference_prediction_confidence_count") == 0
    assert server.metric("inference_rows_total") == 0
    assert server.metric("inference_requests_in_flight") == 0
    assert server.metric("inference_model_load_seconds") > 0


def test_answers_are_counted_by_code_rows_and_duration_and_probes_are_not(
    models: Path, serve: Servers
) -> None:
    server = serve(models / "iris" / "1", "iris")
    row = request()["inputs"][0]["data"]
    for _ in range(3):
        server.infer(request(shape=[5, 4], data=row * 5))
    server.infer(request(name="Y"))
    server.client.post("/v2/models/other/infer", json=request())
    server.client.get("/v2/health/ready")
    server.client.get("/nowhere")
    assert server.metric("inference_requests_total", code="200") == 3
    assert server.metric("inference_requests_total", code="400") == 1
    assert server.metric("inference_requests_total", code="404") == 1
    assert server.metric("inference_rows_total") == 15
    assert server.metric("inference_prediction_confidence_count") == 15
    assert server.metric("inference_request_duration_seconds_count") == 5
    assert server.metric("inference_request_duration_seconds_bucket", le="+Inf") == 5
    assert server.metric("inference_request_duration_seconds_sum") > 0


def test_requests_that_were_pinned_to_a_revision_are_no_evidence_of_it(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris")
    assert server.infer(request(), x_pilotage_pinned="true").status_code == 200
    assert server.infer(request(name="Y"), x_pilotage_pinned="true").status_code == 400
    assert server.metric("inference_pinned_requests_total") == 2
    assert server.metric("inference_requests_in_flight") == 0
    server.infer(request())
    assert server.metric("inference_requests_total", code="200") == 1
    assert server.metric("inference_requests_total", code="400") == 0
    for series in ("request_duration_seconds_count", "prediction_confidence_count", "rows_total"):
        assert server.metric(f"inference_{series}") == 1


def test_the_bounds_are_the_latency_thresholds_that_an_objective_may_name() -> None:
    allowed = [
        5,
        10,
        25,
        50,
        75,
        100,
        150,
        200,
        250,
        300,
        400,
        500,
        750,
        1000,
        1500,
        2000,
        2500,
        5000,
        10000,
        30000,
    ]
    assert [round(bound * 1000) for bound in LATENCY_BOUNDS] == allowed


def test_a_duration_on_a_bound_counts_below_it() -> None:
    sheet = Sheet()
    slot = sheet.slot(1)
    slot.start(0.1)
    for seconds in (0.25, 0.2500001, 31):
        slot.enter()
        slot.leave(200, seconds)
    text = scraped(sheet)
    assert 'bucket{le="0.25",model="m",version="7"} 1.0' in text
    assert 'bucket{le="0.3",model="m",version="7"} 2.0' in text
    assert 'bucket{le="30.0",model="m",version="7"} 2.0' in text
    assert 'bucket{le="+Inf",model="m",version="7"} 3.0' in text


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_enters_no_sum(poison: float) -> None:
    sheet = Sheet()
    slot = sheet.slot(1)
    slot.start(0.1)
    slot.predicted(3, [0.5, poison, 0.25])
    text = scraped(sheet)
    assert 'inference_prediction_confidence_sum{model="m",version="7"} 0.75' in text
    assert 'inference_prediction_confidence_count{model="m",version="7"} 2.0' in text


def test_sheets_add_up_and_a_successor_goes_on_counting_without_what_was_in_flight() -> None:
    descriptor = os.memfd_create("sheet")
    other, first = Sheet(), Sheet(descriptor)
    other.slot(1).start(0.1)
    first.slot(1).start(2.0)
    for sheet in (other, first):
        sheet.slot(1).enter()
        sheet.slot(1).leave(500, 0.01)
    first.slot(1).enter()
    successor = Sheet(descriptor)
    successor.slot(1).start(0.5)
    text = scraped(other, first)
    assert 'inference_requests_total{code="500",model="m",version="7"} 2.0' in text
    assert 'inference_requests_in_flight{model="m",version="7"} 0.0' in text
    assert 'inference_model_load_seconds{model="m",version="7"} 0.5' in text


def test_the_connections_of_a_worker_die_with_it() -> None:
    descriptor = os.memfd_create("sheet")
    first = Sheet(descriptor)
    first.slot(1).start(0.1)
    for _ in range(3):
        first.connected(1)
    assert 'inference_worker_connections{worker="0"} 3.0' in scraped(first)
    Sheet(descriptor).ended([])
    successor = Sheet(descriptor)
    successor.connected(1)
    assert 'inference_worker_connections{worker="1"} 1.0' in scraped(Sheet(), successor)


def test_requests_in_flight_die_with_their_worker() -> None:
    sheet = Sheet()
    for number in (UNKNOWN_NUMBER, 3):
        sheet.slot(number).enter()
    sheet.ended([UNKNOWN_NUMBER, 3])
    assert [sheet.slot(number).in_flight for number in (UNKNOWN_NUMBER, 3)] == [0, 0]


def test_a_code_that_is_rare_has_a_series_once_it_has_come() -> None:
    sheet = Sheet()
    slot = sheet.slot(1)
    slot.start(0.1)
    assert 'code="415"' not in scraped(sheet)
    slot.enter()
    slot.leave(415, 0.01)
    assert 'inference_requests_total{code="415",model="m",version="7"} 1.0' in scraped(sheet)
    assert 'code="501"' not in scraped(sheet)


def test_models_count_apart() -> None:
    sheet = Sheet()
    for number in (1, 2):
        sheet.slot(number).start(0.1)
    sheet.slot(2).enter()
    sheet.slot(2).leave(200, 0.01)
    models = {1: ModelLabels("a", "1"), 2: ModelLabels("b", "3")}
    text = Exposition(lambda: models, [sheet]).text().decode()
    assert 'inference_requests_total{code="200",model="a",version="1"} 0.0' in text
    assert 'inference_requests_total{code="200",model="b",version="3"} 1.0' in text


def test_how_evenly_connections_spread_over_the_workers_is_told(models: Path, serve: Servers) -> None:
    server = serve(models / "iris" / "1", "iris", workers=2)
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(8)]

    def spread() -> list[float]:
        return [
            value
            for (name, labels), value in sorted(server.metrics().items(), key=str)
            if name == "inference_worker_connections"
        ]

    # Those of the test's own client, which asked whether the server is ready, are held too.
    eventually(lambda: sum(spread()) >= 8)
    assert len(spread()) == 2
    for client in clients:
        client.close()
    server.client.close()
    eventually(lambda: sum(spread()) == 0)


def test_before_the_load_there_is_no_series() -> None:
    assert scraped(Sheet()) == ""
