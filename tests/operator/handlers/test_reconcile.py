"""One reconcile where the API server does not accept some of what is applied: the rest is done, and it is told."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pilotage_operator.adapters.kubernetes import Cluster, ClusterError
from pilotage_operator.adapters.observer import Observer
from pilotage_operator.core import names
from pilotage_operator.core.plan import Apply, Delete
from pilotage_operator.core.snapshot import Snapshot
from pilotage_operator.handlers.reconcile import Reconciler
from tests.operator.core.test_rollout import ROLLOUT, serving
from tests.operator.core.world import STORE, Behaviour, World

KEY = ("shop", "fraud")
DOWN = ClusterError(500, "PATCH /: failed calling webhook", "failed calling webhook")
INVALID = ClusterError(422, "PATCH /: limits: Required value", "limits: Required value")


class Scripted:
    """An API server that does not accept some kinds, and an observer of the same world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refusing: dict[str, ClusterError] = {}
        self.told: list[tuple[str, str]] = []
        self.reconciler = Reconciler(cast("Cluster", self), cast("Observer", self))

    async def look(self, seconds: int) -> float | None:
        again: float | None = None
        for _ in range(seconds):
            self.world.tick()
            again = await self.reconciler.reconcile(KEY)
        return again

    async def observe(self, *_: Any) -> Snapshot:
        return self.world.snapshot()

    async def occupied(self, *_: Any) -> None:
        return None

    async def apply(self, manifest: dict[str, Any], *_: Any, **__: Any) -> None:
        if manifest["kind"] in self.refusing:
            raise self.refusing[manifest["kind"]]
        self.world.act(Apply(manifest, creates=False))

    async def delete(self, kind: str, _: str, name: str) -> None:
        self.world.act(Delete((kind, name)))

    async def write_status(self, _: str, __: str, status: dict[str, Any], ___: str) -> None:
        self.world.status = status
        self.world.writes += 1

    async def record(self, _: str, event: dict[str, Any]) -> None:
        self.told.append((event["reason"], event["message"]))

    def made(self, kind: str) -> set[str]:
        """The versions that have a child of a kind."""
        return {self.world.version(name) for of, name in self.world.children if of == kind}


@pytest.fixture
def server() -> Scripted:
    """Version 1 serves."""
    world = World({"model": {"uri": STORE + "v1"}, "rollout": ROLLOUT})
    world.run(30, until="Stable")
    world.run(5)
    return Scripted(world)


async def test_a_child_that_cannot_be_written_keeps_no_bad_version_in_the_traffic(server: Scripted) -> None:
    world = server.world
    world.behaviours["v2"] = Behaviour(bad_share=0.5)
    world.serve("v2")
    world.run(4)
    assert serving(world) == {"v1": 90, "v2": 10}
    server.refusing = {"PrometheusRule": DOWN}
    world.edit(slo={"availability": {"objectivePercent": 99}})
    world.prometheus_up = False
    again = await server.look(20)
    assert again is not None
    assert again <= 1, "a canary is watched as closely as ever"
    world.prometheus_up = True
    await server.look(10)
    assert serving(world) == {"v1": 100}
    await server.look(20)
    assert (world.phase, server.made("Deployment")) == ("RolledBack", {"v1", "v2"}), "nothing is removed yet"
    server.refusing = {}
    await server.look(2)
    assert server.made("Deployment") == {"v1"}


async def test_what_the_api_server_refuses_is_told_once_in_its_words(server: Scripted) -> None:
    world = server.world
    server.refusing = {"Deployment": INVALID}
    world.serve("v2")
    await server.look(30)
    assert [reason for reason, _ in server.told] == ["RolloutStarted", "ChildRefused"]
    assert server.told[-1][1].endswith("is refused by the API server: limits: Required value")
    assert server.told[-1][1] in world.condition("Ready")["message"]
    writes = world.writes
    server.refusing = {"Deployment": ClusterError(422, "", "limits: Required value, asked at 12:00:01")}
    await server.look(5)
    assert world.writes == writes, "other words for the same are no reason to write"
    server.refusing = {}
    await server.look(2)
    assert "refused" not in world.condition("Ready")["message"]
    assert server.made("Deployment") == {"v1", "v2"}


@pytest.mark.parametrize("refused", ["ControllerRevision", "Service", "Deployment"])
async def test_nothing_of_a_revision_is_made_that_stands_on_what_could_not_be_made(
    server: Scripted, refused: str
) -> None:
    server.refusing = {refused: DOWN}
    server.world.serve("v2")
    await server.look(10)
    new = [key for key in server.world.children if server.world.status["canary"]["revision"] in key]
    assert not {kind for kind, _ in new} & {"Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    assert server.told[-1][0] != "ChildRefused", "a webhook that is down is nothing that the user can mend"
    server.refusing = {}
    await server.look(10)
    assert serving(server.world) == {"v1": 90, "v2": 10}


async def test_no_route_leads_to_a_service_that_could_not_be_made(server: Scripted) -> None:
    world = server.world
    world.serve("v2")
    world.run(3)
    canary = world.status["canary"]["revision"]
    assert serving(world) == {"v1": 100}
    del world.children["Service", canary]
    server.refusing = {"Service": DOWN}
    await server.look(10)
    assert (world.status["canary"]["weight"], serving(world)) == (10, {"v1": 100})
    server.refusing = {}
    await server.look(2)
    assert names.key_of(world.children["Service", canary]) == ("Service", canary)
    assert serving(world) == {"v1": 90, "v2": 10}
