"""The VirtualService that splits traffic by weight, and a DestinationRule for each revision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pilotage_operator.api.routing import RoutingSpec
from pilotage_operator.core import names

IDLE_TIMEOUT = "60s"
"""Shorter than the runtime's own idle time-out, so that Envoy closes first and no request meets a reset."""
_RETRIES = {"attempts": 2, "retryOn": "connect-failure,refused-stream"}
"""Only those that never reached a model; Istio's default also repeats inferences, and so hides errors."""


def virtual_service(
    owner: str,
    namespace: str,
    *,
    routing: RoutingSpec,
    hosts: Sequence[str],
    gateways: Sequence[str],
    weights: Mapping[str, int],
    grpc_weights: Mapping[str, int],
) -> dict[str, Any]:
    """`weights` map revision to percent, adding up to 100; a revision of weight 0 has no route at all.

    Those of gRPC are empty where it is not served: nothing is routed then that would meet a closed port.
    """
    # By path, which is the same in the mesh and at the gateways, whose ports are their own.
    calls = {"uri": {"prefix": names.GRPC_PATH}}
    rules = _split("grpc-", namespace, routing, grpc_weights, names.GRPC_SERVICE_PORT, match=calls)
    rules += _split("", namespace, routing, weights, names.SERVICE_PORT, match={})
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {
            "name": owner,
            "labels": {**names.labels(owner), **{names.host_label(host): "" for host in hosts}},
        },
        "spec": {
            "hosts": [names.service_host(owner, namespace), *hosts],
            "gateways": ["mesh", *gateways],
            "http": rules,
        },
    }


def _split(
    prefix: str,
    namespace: str,
    routing: RoutingSpec,
    weights: Mapping[str, int],
    port: int,
    *,
    match: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rules for one protocol: pinned requests first, then the split; none where nothing serves it."""
    if not weights:
        return []
    live = {revision: weight for revision, weight in weights.items() if weight > 0}
    rules: list[dict[str, Any]] = []
    common = {"timeout": f"{routing.timeout_seconds}s", "retries": _RETRIES}
    if routing.version_header:
        rules += [
            {
                "name": f"{prefix}pinned-{revision}",
                "match": [{**match, "headers": {routing.version_header: {"exact": revision}}}],
                "route": [_destination(revision, namespace, port)],
                "headers": {"request": {"set": {names.HEADER_PINNED: "true"}}},
                **common,
            }
            for revision in live
        ]
    split = [
        {**_destination(revision, namespace, port), "weight": weight} for revision, weight in live.items()
    ]
    # Nobody else may say so: a caller could hide what its requests show.
    unpinned = {"request": {"remove": [names.HEADER_PINNED]}}
    matched = {"match": [dict(match)]} if match else {}
    return [*rules, {"name": f"{prefix}split", **matched, "route": split, "headers": unpinned, **common}]


def grpc_weights(weights: Mapping[str, int], stable: str, serving: Collection[str]) -> dict[str, int]:
    """The weights among the revisions that serve gRPC: none until the stable one does.

    A canary that begins to serve it must not get all calls at once; one that serves it no more gets none,
    and the stable revision answers them to the end of the bake.
    """
    if stable not in serving:
        return {}
    return dict(weights) if set(weights) <= set(serving) else {stable: 100}


def destination_rule(
    revision: str, owner: str, namespace: str, *, routing: RoutingSpec, canary: bool
) -> dict[str, Any]:
    """Connections to a revision. No ejection while it is a canary: that would hide its errors."""
    policy: dict[str, Any] = {"connectionPool": {"http": {"idleTimeout": IDLE_TIMEOUT}}}
    breaker = routing.circuit_breaker
    if breaker:
        policy["connectionPool"] = {
            "tcp": {"maxConnections": breaker.max_connections},
            "http": {"idleTimeout": IDLE_TIMEOUT, "http1MaxPendingRequests": breaker.max_pending_requests},
        }
        if not canary:
            policy["outlierDetection"] = {
                "consecutive5xxErrors": breaker.consecutive_5xx_errors,
                "interval": f"{breaker.interval_seconds}s",
                "baseEjectionTime": f"{breaker.base_ejection_seconds}s",
                "maxEjectionPercent": breaker.max_ejection_percent,
            }
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": revision, "labels": names.labels(owner, revision)},
        "spec": {"host": names.service_host(revision, namespace), "trafficPolicy": policy},
    }


def weights_in(virtual_service: Mapping[str, Any], namespace: str) -> dict[str, int]:
    """Read back revision → percent from a live VirtualService's split; empty when it has none."""
    suffix = names.service_host("", namespace)
    for rule in virtual_service.get("spec", {}).get("http", []):
        if rule.get("name") == "split":
            return {
                route["destination"]["host"].removesuffix(suffix): route.get("weight", 100)
                for route in rule.get("route", [])
            }
    return {}


def revisions_in(virtual_service: Mapping[str, Any], namespace: str) -> set[str]:
    """Read every revision that a live VirtualService leads to, by any of its rules."""
    suffix = names.service_host("", namespace)
    return {
        route["destination"]["host"].removesuffix(suffix)
        for rule in virtual_service.get("spec", {}).get("http", [])
        for route in rule.get("route", [])
    }


def _destination(revision: str, namespace: str, port: int) -> dict[str, Any]:
    return {
        "destination": {"host": names.service_host(revision, namespace), "port": {"number": port}},
    }
