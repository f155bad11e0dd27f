"""gRPC from switching it on to switching it off: no call meets a port that is not there."""

from __future__ import annotations

from typing import Any

import pytest

from pilotage_operator.core import names
from pilotage_runtime.protocol import messages
from tests.operator.api.examples import smallest
from tests.operator.core.test_manifests import of_kind, pod_spec, rendered, serving_environment
from tests.operator.core.test_rollout import ROLLOUT
from tests.operator.core.world import STORE, World


def serving(*, grpc: bool) -> World:
    """Version 1 serves."""
    world = World({"model": {"uri": STORE + "v1"}, "runtime": {"grpc": grpc}, "rollout": ROLLOUT})
    world.run(30, until="Stable")
    world.run(5)
    return world


def calls(world: World) -> dict[str, int]:
    """Version → its share of the calls over gRPC; empty where they have no route."""
    rules = world.children["VirtualService", "fraud"]["spec"]["http"]
    split = next((rule for rule in rules if rule["name"] == "grpc-split"), {"route": []})
    shares = {r["destination"]["host"].partition(".")[0]: r["weight"] for r in split["route"]}
    return {world.version(revision): share for revision, share in shares.items()}


def ports(world: World) -> dict[str, list[str]]:
    """Service → the names of its ports."""
    services = {name: made for (kind, name), made in world.children.items() if kind == "Service"}
    return {name: [port["name"] for port in made["spec"]["ports"]] for name, made in services.items()}


def shares(world: World) -> dict[str, int]:
    return {world.version(revision): weight for revision, weight in world.weights.items()}


def with_grpc() -> dict[str, Any]:
    obj = smallest()
    obj["spec"]["runtime"] = {"grpc": True}
    return obj


def test_the_runtime_listens_where_the_pods_and_the_services_say() -> None:
    port = serving_environment({"grpc": True})["PILOTAGE_GRPC_PORT"]
    told = {p["name"]: p["containerPort"] for p in pod_spec(with_grpc())["containers"][0]["ports"]}
    assert told == {"http": 8080, "metrics": 9090, "grpc": int(port)}
    services = of_kind("Service", rendered(with_grpc()))
    assert len(services) == 2
    for service in services:
        _, grpc = service["spec"]["ports"]
        assert (grpc["port"], grpc["targetPort"], grpc["appProtocol"]) == (9000, "grpc", "grpc")


@pytest.mark.parametrize("runtime", [{}, {"grpc": False}])
def test_it_is_off_where_nobody_asks_for_it(runtime: dict[str, Any]) -> None:
    assert "PILOTAGE_GRPC_PORT" not in serving_environment(runtime)
    obj = smallest()
    obj["spec"]["runtime"] = runtime
    others = [m for m in rendered(obj) if m["kind"] != "ControllerRevision"]
    assert others
    assert "grpc" not in str(others)


def test_the_path_that_is_routed_is_that_of_the_runtimes_service() -> None:
    assert f"/{messages.SERVICE}/" == names.GRPC_PATH


def test_calls_follow_the_weights_of_a_rollout() -> None:
    world = serving(grpc=True)
    assert calls(world) == {"v1": 100}
    world.serve("v2")
    seen: list[dict[str, int]] = []
    for _ in range(120):
        world.step()
        assert calls(world) == shares(world)
        seen.append(calls(world))
    assert {"v1": 90, "v2": 10} in seen
    assert calls(world) == {"v2": 100}


def test_a_canary_that_begins_to_serve_it_gets_no_calls_until_it_is_stable() -> None:
    """Else it would get all of them, at the first step."""
    world = serving(grpc=False)
    world.edit(model={"uri": STORE + "v2"}, runtime={"grpc": True})
    world.run(120, until="Baking")
    assert (shares(world), calls(world)) == ({"v2": 100}, {})
    assert ports(world)["fraud"] == ["http"]
    world.run(120, until="Stable")
    assert calls(world) == {"v2": 100}
    assert ports(world)["fraud"] == ["http", "grpc"]


def test_a_canary_that_serves_it_no_more_gets_no_calls_and_the_old_revision_answers_to_the_end() -> None:
    world = serving(grpc=True)
    old = world.status["stable"]["revision"]
    world.edit(model={"uri": STORE + "v2"}, runtime={"grpc": False})
    world.run(120, until="Baking")
    assert (shares(world), calls(world)) == ({"v2": 100}, {"v1": 100})
    while calls(world):
        world.seconds += 1
        world.reconcile()
    assert ("Deployment", old) in world.children, "the routes go first"
    world.run(5)
    assert ("Deployment", old) not in world.children
    assert (world.phase, calls(world)) == ("Stable", {})
    assert ports(world)["fraud"] == ["http"]
