"""How traffic is split: weights, retries, time-outs, pinned requests and ejection."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage_operator.api.routing import RoutingSpec
from pilotage_operator.core import names
from pilotage_operator.core.children.routes import (
    destination_rule,
    revisions_in,
    virtual_service,
    weights_in,
)

BREAKER = {"circuitBreaker": {"maxConnections": 10, "consecutive5xxErrors": 7}}


def routing(**spec: Any) -> RoutingSpec:
    return RoutingSpec.model_validate(spec)


def routes(
    weights: dict[str, int],
    *,
    grpc: dict[str, int] | None = None,
    gateways: tuple[str, ...] = (),
    **spec: Any,
) -> dict[str, Any]:
    return virtual_service(
        "fraud",
        "shop",
        routing=routing(**spec),
        hosts=["fraud.example"],
        gateways=gateways,
        weights=weights,
        grpc_weights=grpc or {},
    )


def rule_of(revision: str, *, canary: bool, **spec: Any) -> dict[str, Any]:
    made = destination_rule(revision, "fraud", "shop", routing=routing(**spec), canary=canary)
    return made["spec"]["trafficPolicy"]


@pytest.mark.parametrize("header", [{}, {"versionHeader": "x-model-version"}])
@pytest.mark.parametrize("grpc", [{}, {"old": 90, "new": 10}])
def test_every_rule_repeats_only_what_never_reached_a_model(
    header: dict[str, str], grpc: dict[str, int]
) -> None:
    """Istio's own default repeats inferences, and so hides a canary's errors."""
    rules = routes({"old": 90, "new": 10}, grpc=grpc, timeoutSeconds=20, **header)["spec"]["http"]
    for rule in rules:
        assert rule["retries"] == {"attempts": 2, "retryOn": "connect-failure,refused-stream"}
        assert rule["timeout"] == "20s"


def test_the_split_names_the_revisions_own_services() -> None:
    (split,) = routes({"old": 90, "new": 10})["spec"]["http"]
    assert [(r["destination"]["host"], r["weight"]) for r in split["route"]] == [
        ("old.shop.svc.cluster.local", 90),
        ("new.shop.svc.cluster.local", 10),
    ]


def test_pinned_requests_reach_each_revision_and_are_matched_before_the_split() -> None:
    *pinned, last = routes({"old": 90, "new": 10}, versionHeader="x-v")["spec"]["http"]
    assert [rule["match"][0]["headers"]["x-v"]["exact"] for rule in pinned] == ["old", "new"]
    assert (last["name"], "match" in last) == ("split", False)


def test_who_holds_a_host_can_be_asked_by_label() -> None:
    labels = routes({"old": 100})["metadata"]["labels"]
    assert labels[names.host_label("fraud.example")] == ""
    assert names.host_label("fraud.example") != names.host_label("fraud2.example")


def test_only_the_routes_may_say_that_a_request_was_pinned() -> None:
    *pinned, last = routes({"old": 90, "new": 10}, versionHeader="x-v")["spec"]["http"]
    assert all(rule["headers"]["request"] == {"set": {"x-pilotage-pinned": "true"}} for rule in pinned)
    assert last["headers"]["request"] == {"remove": ["x-pilotage-pinned"]}


@pytest.mark.parametrize("weights", [{"old": 100, "new": 0}, {"old": 0, "new": 100}])
def test_at_weight_0_a_revision_has_neither_a_share_nor_a_header_route(weights: dict[str, int]) -> None:
    without = next(revision for revision, weight in weights.items() if weight == 0)
    spec = routes(weights, versionHeader="x-v")["spec"]
    assert without not in str(spec)
    assert len(spec["http"]) == 2


def test_callers_in_the_mesh_and_at_the_gateways_are_routed_alike() -> None:
    spec = routes({"old": 100}, gateways=("istio-system/public",))["spec"]
    assert spec["gateways"] == ["mesh", "istio-system/public"]
    assert spec["hosts"] == ["fraud.shop.svc.cluster.local", "fraud.example"]


def test_a_canary_is_never_ejected_and_the_stable_revision_may_be() -> None:
    """Ejection hides or distorts the errors that a canary is judged by."""
    assert "outlierDetection" not in rule_of("new", canary=True, **BREAKER)
    assert rule_of("old", canary=False, **BREAKER)["outlierDetection"]["consecutive5xxErrors"] == 7


@pytest.mark.parametrize("canary", [True, False])
def test_without_a_circuit_breaker_nothing_is_limited(canary: bool) -> None:
    policy = rule_of("new", canary=canary)
    assert policy == {"connectionPool": {"http": {"idleTimeout": "60s"}}}


@pytest.mark.parametrize("canary", [True, False])
def test_the_idle_timeout_is_set_beside_a_circuit_breaker_too(canary: bool) -> None:
    pool = rule_of("new", canary=canary, **BREAKER)["connectionPool"]
    assert pool["http"]["idleTimeout"] == "60s"
    assert pool["tcp"]["maxConnections"] == 10


@given(st.integers(0, 100), st.booleans())
def test_the_weights_are_read_back_as_they_were_written(weight: int, header: bool) -> None:
    weights = {"fraud-1": 100 - weight, "fraud-2": weight}
    live = routes(weights, **({"versionHeader": "x-v"} if header else {}))
    assert weights_in(live, "shop") == {revision: share for revision, share in weights.items() if share}


def test_a_lone_destination_without_a_weight_has_all_traffic() -> None:
    """The API server drops nothing, but a person may."""
    live = routes({"old": 100})
    del live["spec"]["http"][-1]["route"][0]["weight"]
    assert weights_in(live, "shop") == {"old": 100}


@pytest.mark.parametrize("live", [{}, {"spec": {}}, {"spec": {"http": [{"name": "theirs"}]}}])
def test_routes_without_our_split_have_no_weights(live: dict[str, Any]) -> None:
    assert weights_in(live, "shop") == {}


def test_calls_over_grpc_are_told_by_their_path_and_split_by_weight_to_the_ports_that_serve_them() -> None:
    weights = {"old": 90, "new": 10}
    grpc, rest = routes(weights, grpc=weights)["spec"]["http"]
    assert grpc["match"] == [{"uri": {"prefix": "/inference.GRPCInferenceService/"}}]
    assert "match" not in rest
    for rule, port in ((grpc, 9000), (rest, 80)):
        assert [(r["destination"]["host"], r["destination"]["port"], r["weight"]) for r in rule["route"]] == [
            ("old.shop.svc.cluster.local", {"number": port}, 90),
            ("new.shop.svc.cluster.local", {"number": port}, 10),
        ]


def test_calls_over_grpc_can_be_pinned_and_only_the_routes_may_say_so() -> None:
    weights = {"old": 90, "new": 10}
    old, new, split, *rest = routes(weights, grpc=weights, versionHeader="x-v")["spec"]["http"]
    for rule, revision in ((old, "old"), (new, "new")):
        (match,) = rule["match"]
        assert match["uri"]["prefix"] == "/inference.GRPCInferenceService/"
        assert match["headers"] == {"x-v": {"exact": revision}}
        (route,) = rule["route"]
        assert route["destination"]["host"].startswith(revision)
        assert rule["headers"]["request"] == {"set": {"x-pilotage-pinned": "true"}}
    assert split["headers"]["request"] == {"remove": ["x-pilotage-pinned"]}
    assert len({rule["name"] for rule in (old, new, split, *rest)}) == 6


def test_the_weights_of_grpc_are_not_taken_for_those_of_the_split() -> None:
    live = routes({"old": 0, "new": 100}, grpc={"old": 100})
    assert weights_in(live, "shop") == {"new": 100}
    assert revisions_in(live, "shop") == {"old", "new"}
