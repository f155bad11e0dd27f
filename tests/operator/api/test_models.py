"""How objects are read: defaults, nulls, unknown fields, spelling."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pilotage_operator.api.modeldeployment import parse, validate
from pilotage_operator.api.routing import CircuitBreaker
from pilotage_operator.api.slo import LATENCY_BOUNDS_MILLISECONDS
from pilotage_operator.api.status import Condition, StatusModel
from tests.operator.api.examples import fullest, smallest, with_value


def test_the_minimal_object_gets_the_defaults_of_the_blueprint() -> None:
    spec = parse(smallest()).spec
    assert (spec.scaling.minimum, spec.scaling.maximum, spec.scaling.cpu_percent) == (2, 10, 70)
    assert spec.slo.availability.objective_percent == 99.9
    assert spec.slo.latency is None
    assert [(step.weight, step.hold_seconds) for step in spec.rollout.steps] == [(10, 60), (50, 60)]
    assert spec.rollout.bake_seconds == 600
    assert spec.routing.timeout_seconds == 10


def test_nothing_is_filled_in_below_model_and_runtime() -> None:
    spec = parse(smallest()).spec.to_dict()
    assert spec["model"] == smallest()["spec"]["model"]
    assert spec["runtime"] == {}


def test_latency_alone_keeps_the_default_availability() -> None:
    spec = parse(with_value("spec.slo.latency", {"thresholdMilliseconds": 250})).spec
    assert spec.slo.availability.objective_percent == 99.9
    assert spec.slo.latency
    assert (spec.slo.latency.threshold_milliseconds, spec.slo.latency.objective_percent) == (250, 99)


def test_a_fixed_size_is_both_the_least_and_the_most() -> None:
    scaling = parse(with_value("spec.scaling", {"replicas": 3})).spec.scaling
    assert (scaling.minimum, scaling.maximum) == (3, 3)


def test_an_empty_circuit_breaker_means_its_defaults_and_none_means_none() -> None:
    assert parse(smallest()).spec.routing.circuit_breaker is None
    assert (
        parse(with_value("spec.routing.circuitBreaker", {})).spec.routing.circuit_breaker == CircuitBreaker()
    )


def test_the_fullest_object_comes_back_as_it_was_written() -> None:
    written = fullest()
    read = validate(written).spec.to_dict()
    filled = {
        "maxPendingRequests": 50,
        "intervalSeconds": 5,
        "baseEjectionSeconds": 30,
        "maxEjectionPercent": 50,
    }
    written["spec"]["routing"]["circuitBreaker"] |= filled
    written["spec"]["rollout"]["steps"][0]["holdSeconds"] = 60
    assert read == written["spec"]


@pytest.mark.parametrize(
    "path", ["spec.x", "spec.model.x", "spec.runtime.env", "spec.scaling.min_replicas", "x"]
)
def test_an_unknown_field_is_refused_by_validate_and_ignored_from_the_cluster(path: str) -> None:
    value: Any = [{"name": "A", "value": "1", "valueFrom": {}}] if path.endswith("env") else 1
    bad = with_value(path, value)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        validate(bad)
    assert "min_replicas" not in str(parse(bad).to_dict())


def test_kubernetes_own_metadata_is_no_unknown_field() -> None:
    deployment = smallest()
    deployment["metadata"] |= {"managedFields": [{}], "ownerReferences": [], "generation": 3, "uid": "u"}
    read = validate(deployment)
    assert (read.name, read.namespace, read.metadata.generation) == ("fraud", "default", 3)


@pytest.mark.parametrize("section", ["runtime", "scaling", "routing", "rollout", "slo"])
def test_a_null_is_the_same_as_nothing(section: str) -> None:
    assert parse(with_value(f"spec.{section}", None)) == parse(smallest())


def test_a_null_in_the_place_of_what_is_needed_is_missing() -> None:
    with pytest.raises(ValidationError, match="Field required"):
        parse(with_value("spec.model.uri", None))


@pytest.mark.parametrize(
    ("value", "allowed"), [(2, True), (2.0, True), (2.5, False), ("2", False), (True, False)]
)
def test_whole_numbers_are_taken_as_json_has_them(value: Any, allowed: bool) -> None:
    wanted = with_value("spec.runtime.workers", value)
    if allowed:
        assert parse(wanted).spec.runtime.workers == 2
    else:
        with pytest.raises(ValidationError):
            parse(wanted)


@pytest.mark.parametrize("threshold", LATENCY_BOUNDS_MILLISECONDS)
def test_a_latency_threshold_is_a_bound_of_the_histogram(threshold: int) -> None:
    validate(with_value("spec.slo.latency", {"thresholdMilliseconds": threshold}))
    with pytest.raises(ValidationError, match="Input should be 5, 10"):
        validate(with_value("spec.slo.latency", {"thresholdMilliseconds": threshold + 1}))


def test_a_model_without_a_name_has_that_of_its_deployment() -> None:
    assert parse(smallest()).model_name == "fraud"
    assert parse(with_value("spec.model.name", "m")).model_name == "m"


def test_sections_cannot_be_changed() -> None:
    scaling = parse(smallest()).spec.scaling
    with pytest.raises(ValidationError, match="frozen"):
        scaling.replicas = 3  # type: ignore[misc]


def test_the_status_that_is_written_is_the_status_that_is_read() -> None:
    status = StatusModel(
        observed_generation=3,
        phase="RollingBack",
        conditions=[
            Condition(
                type="Ready",
                status="True",
                reason="Serving",
                message="Serving.",
                last_transition_time="2026-11-24T10:00:00.000Z",
                observed_generation=3,
            )
        ],
        selector="pilotage.dev/modeldeployment=fraud",
    )
    written = status.to_dict()
    assert written["observedGeneration"] == 3
    assert written["conditions"][0]["lastTransitionTime"] == "2026-11-24T10:00:00.000Z"
    assert parse(smallest() | {"status": written}).status == status


def test_a_status_of_a_newer_operator_can_be_read() -> None:
    status = {"phase": "Stable", "forecast": {"at": "x"}, "address": {"url": "http://a", "node": "b"}}
    assert parse(smallest() | {"status": status}).status.phase == "Stable"
