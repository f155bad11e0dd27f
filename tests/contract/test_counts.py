"""The operator's own queries, run by Prometheus' `promtool`: what is counted is what there was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pilotage_operator.api.slo import SLOSpec
from pilotage_operator.core.objectives import objectives, over, since
from tests.contract.scenario import run

SELECTOR = 'namespace="shop", modeldeployment="fraud"'
LABELS = 'namespace="shop", modeldeployment="fraud", model="fraud", revision="fraud-2"'
AVAILABILITY = objectives(SLOSpec())[0]
LATENCY = objectives(
    SLOSpec.model_validate({"latency": {"thresholdMilliseconds": 500, "objectivePercent": 99}})
)[-2]


def counter(values: str, *, pod: str = "a", code: str = "200") -> dict[str, str]:
    return {"series": f'inference_requests_total{{{LABELS}, pod="{pod}", code="{code}"}}', "values": values}


def found(
    promtool: Path, folder: Path, series: list[dict[str, str]], query: str, *, at: int, is_: float
) -> None:
    """Scrapes come every 5 s from second 0 on."""
    sample = {"labels": f"{{{LABELS}}}", "value": is_}
    expected: dict[str, Any] = {"expr": query, "eval_time": f"{at}s", "exp_samples": [sample]}
    test = {"interval": "5s", "input_series": series, "promql_expr_test": [expected]}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"tests": [test], "evaluation_interval": "5s"}, width=300))
    run(promtool, "test", "rules", str(path))


def test_requests_since_a_step_began_are_counted_exactly(promtool: Path, tmp_path: Path) -> None:
    query = AVAILABILITY.requests(SELECTOR, since(8))
    found(promtool, tmp_path, [counter("0 10 21 33")], query, at=17, is_=23)


def test_an_increase_over_the_same_time_sees_only_what_lies_between_its_scrapes(
    promtool: Path, tmp_path: Path
) -> None:
    """The control of the test above: why the operator does not count by `increase`."""
    query = f"round({AVAILABILITY.requests(SELECTOR, over('increase', '8s'))})"
    found(promtool, tmp_path, [counter("0 10 21 33")], query, at=17, is_=19)


def test_a_single_scrape_since_the_step_began_counts(promtool: Path, tmp_path: Path) -> None:
    query = AVAILABILITY.requests(SELECTOR, since(3))
    found(promtool, tmp_path, [counter("0 10 21 33")], query, at=16, is_=12)


@pytest.mark.parametrize("values", ["_ _ 4 33 stale", "_ _ 4 33 _"])
def test_a_pod_that_came_and_went_is_counted_whole(promtool: Path, tmp_path: Path, values: str) -> None:
    series = [counter(values), counter("5 5 5 5 5 6", pod="b")]
    found(promtool, tmp_path, series, AVAILABILITY.requests(SELECTOR, since(20)), at=27, is_=34)


def test_a_restarted_container_makes_no_request_negative(promtool: Path, tmp_path: Path) -> None:
    query = f"{AVAILABILITY.requests(SELECTOR, since(22))} > bool 20"
    found(promtool, tmp_path, [counter("100 110 120 0 10 20")], query, at=27, is_=1)


def test_bad_requests_are_0_where_there_is_no_series_of_them(promtool: Path, tmp_path: Path) -> None:
    query = AVAILABILITY.bad_requests(SELECTOR, since(10))
    found(promtool, tmp_path, [counter("0 10 20 30")], query, at=15, is_=0)
    series = [counter("0 10 20 30"), counter("0 0 2 5", code="503")]
    found(promtool, tmp_path, series, query, at=15, is_=5)


def test_late_answers_are_those_that_no_bucket_in_time_holds(promtool: Path, tmp_path: Path) -> None:
    base = f'{LABELS}, pod="a"'
    series = [
        {"series": f"inference_request_duration_seconds_count{{{base}}}", "values": "0 10 20 30"},
        {
            "series": f'inference_request_duration_seconds_bucket{{{base}, le="0.5"}}',
            "values": "0 10 17 24",
        },
    ]
    found(promtool, tmp_path, series, LATENCY.bad_requests(SELECTOR, since(10)), at=15, is_=6)
