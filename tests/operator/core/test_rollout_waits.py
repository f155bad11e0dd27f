"""What a rollout waits for, and what does not count against the model while it does."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pilotage_operator.core import clock
from pilotage_operator.core.fetching import Fetched
from pilotage_operator.core.install import Features
from pilotage_operator.core.pods import Failure
from tests.operator.core.test_rollout import ROLLOUT, serving
from tests.operator.core.world import START, STORE, Behaviour, World

PULL = Failure("Infrastructure", "Image", "ErrImagePull", "no such image")
SLOW = Behaviour(ready_after=None)


@pytest.fixture
def world() -> World:
    """Version 1 serves."""
    world = World({"model": {"uri": STORE + "v1"}, "rollout": ROLLOUT})
    world.run(30, until="Stable")
    world.run(5)
    return world


def test_a_pause_stops_the_deadline_of_the_pods(world: World) -> None:
    world.behaviours["v2"] = SLOW
    world.serve("v2")
    world.run(10)
    world.rollout(paused=True)
    world.run(2000)
    assert (world.phase, world.status["rejected"]) == ("Paused", [])
    world.rollout(paused=False)
    world.run(500)
    assert world.phase == "Progressing"
    world.run(200, until="RolledBack")


@pytest.mark.parametrize("phase", ["Progressing", "Baking"])
def test_a_pod_that_falters_long_after_its_start_has_missed_no_deadline(world: World, phase: str) -> None:
    steps = [{"weight": 50, "holdSeconds": 3600 if phase == "Progressing" else 15}]
    rollout = {"steps": steps, "bakeSeconds": 3600, "progressDeadlineSeconds": 60}
    world.edit(scaling={"minReplicas": 6, "maxReplicas": 10}, rollout=rollout)
    world.run(10)
    world.serve("v2")
    world.run(60, until=phase)
    for _ in range(2):
        world.run(70)
        world.failing_pods["v2"] = (1, None)
        world.run(3)
        world.failing_pods.clear()
    world.run(3)
    assert (world.phase, world.status["rejected"]) == (phase, [])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_time_that_an_image_takes_to_come_is_not_the_models(version: str) -> None:
    world = World({"model": {"uri": STORE + "v1"}, "rollout": {**ROLLOUT, "progressDeadlineSeconds": 60}})
    world.behaviours[version] = Behaviour(ready_after=None, pulls=200, fetches=999)
    if version == "v2":
        world.run(30, until="Stable")
        world.serve("v2")
    world.run(250)
    assert (world.phase, world.status["rejected"]) == ("Pending" if version == "v1" else "Progressing", [])
    world.run(20, until="Failed" if version == "v1" else "RollingBack")


@pytest.mark.parametrize("phase", ["Progressing", "Baking"])
def test_pods_that_stay_away_have_missed_it(world: World, phase: str) -> None:
    steps = [{"weight": 50, "holdSeconds": 3600 if phase == "Progressing" else 15}]
    world.edit(rollout={"steps": steps, "bakeSeconds": 3600, "progressDeadlineSeconds": 60})
    world.serve("v2")
    world.run(60, until=phase)
    world.run(70)
    world.failing_pods["v2"] = (1, None)
    world.run(55)
    assert world.phase == phase
    world.run(10, until="RollingBack")
    assert "ProgressDeadlineExceeded" in world.status["rollback"]["evidence"]["detail"]


def test_the_status_says_since_when_a_model_is_fetched(world: World) -> None:
    world.behaviours["v2"] = Behaviour(fetches=60)
    world.serve("v2")
    world.run(5)
    writes = world.writes
    world.run(30)
    told = world.condition("Reconciling")
    assert told["reason"] == "DigestPending"
    began = clock.stamp(START + timedelta(seconds=max(world.born.values())))
    assert told["message"].endswith(f"to fetch the model. It has been fetching since {began}.")
    assert world.writes == writes, "the same words are written once"


GIB = 2**30


def test_the_status_says_how_far_a_download_is_and_is_written_only_when_the_words_change(
    world: World,
) -> None:
    behaviour = world.behaviours["v2"] = Behaviour(fetches=90)
    world.serve("v2")
    world.run(5)
    for done, words in ((GIB, "1.0 of 4.0 GiB"), (3 * GIB, "3.0 of 4.0 GiB")):
        behaviour.fetched = Fetched(done, 4 * GIB)
        writes = world.writes
        world.run(30)
        assert world.condition("Reconciling")["message"].endswith(f"Z: {words}.")
        assert world.writes == writes + 1
    events = list(world.events)
    world.run(60)
    assert "fetching" not in world.condition("Reconciling")["message"]
    assert "DigestPending" not in events, "progress is no Event"


@pytest.mark.parametrize("digest", [None, "sha256:" + "a" * 64])
def test_a_first_revision_says_how_far_its_download_is(digest: str | None) -> None:
    model = {"uri": STORE + "v1", **({"digest": digest} if digest else {})}
    world = World({"model": model})
    world.behaviours["v1"] = Behaviour(ready_after=60, fetches=60, fetched=Fetched(GIB))
    world.run(10)
    message = world.condition("Reconciling")["message"]
    assert "The first has been fetching since" in message
    assert message.endswith(": 1.0 GiB so far.")


def test_a_revision_whose_digest_is_given_says_so_too(world: World) -> None:
    world.behaviours["v2"] = Behaviour(ready_after=60, fetches=60, fetched=Fetched(GIB, 2 * GIB))
    world.edit(model={"uri": STORE + "v2", "digest": "sha256:" + "a" * 64})
    world.run(10)
    message = world.condition("Reconciling")["message"]
    assert message.startswith("0 of ")
    assert message.endswith(": 1.0 of 2.0 GiB.")


def test_an_outage_stops_the_deadline_of_a_first_revision() -> None:
    world = World({"model": {"uri": STORE + "v1"}})
    world.behaviours["v1"] = Behaviour(failure=PULL)
    world.run(2000)
    assert (world.phase, world.condition("Ready")["reason"]) == ("Pending", "ErrImagePull")
    world.behaviours["v1"] = SLOW
    world.run(500)
    assert world.phase == "Pending"
    world.run(200, until="Failed")


def test_an_outage_is_told_once_also_before_there_was_traffic(world: World) -> None:
    world.behaviours["v2"] = Behaviour(failure=PULL)
    world.serve("v2")
    world.run(60)
    writes = world.writes
    world.run(600)
    assert world.events.count("InfrastructureFailure") == 1
    assert world.writes == writes, "a long outage is no reason to write"


def test_pods_that_the_api_server_refuses_are_an_outage_with_its_words(world: World) -> None:
    world.no_pods_because = "exceeded quota: cpu"
    world.serve("v2")
    world.run(2000)
    assert (world.phase, world.condition("Ready")["reason"]) == ("Holding", "InfrastructureFailure")
    assert "exceeded quota: cpu" in world.condition("Ready")["message"]
    world.no_pods_because = ""
    world.run(300, until="Stable")
    assert serving(world) == {"v2": 100}


def test_a_canary_whose_content_changes_between_its_pods_holds_and_says_so(world: World) -> None:
    world.edit(scaling={"minReplicas": 10, "maxReplicas": 20})
    world.run(20)
    world.failing_pods["v2"] = (1, Failure("Model", "Verify", "ModelContentChanged", "another digest"))
    world.serve("v2")
    world.run(2000)
    ready = world.condition("Ready")
    assert (world.phase, ready["reason"], world.status["rejected"]) == ("Holding", "ModelContentChanged", [])
    assert "another digest" in ready["message"]


def test_without_rules_nothing_is_shown_and_no_step_passes(world: World) -> None:
    world.features = Features(prometheus_rules=False)
    world.serve("v2")
    world.run(600)
    assert (world.phase, serving(world)) == ("Holding", {"v1": 90, "v2": 10})
    assert world.condition("Ready")["reason"] == "RulesUnavailable"


def test_a_bake_does_not_end_while_pods_are_missing(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.failing_pods["v2"] = (99, Failure("Infrastructure", "Schedule", "Unschedulable", "no node"))
    world.run(600)
    assert (world.phase, world.condition("Ready")["reason"]) == ("Baking", "NoPodReady")
    assert world.version(world.status["stable"]["revision"]) == "v1", "the old one stays warm"
    world.failing_pods.clear()
    world.run(60, until="Stable")
    assert serving(world) == {"v2": 100}


def test_the_status_says_when_there_is_something_to_decide_next(world: World) -> None:
    world.serve("v2")
    world.run(15)
    rollout = world.status["rollout"]
    assert since(rollout["stepStartedAt"], rollout["nextAt"]) == ROLLOUT["steps"][0]["holdSeconds"]
    world.run(120, until="Baking")
    rollout = world.status["rollout"]
    assert since(rollout["bakeStartedAt"], rollout["nextAt"]) == ROLLOUT["bakeSeconds"]


def since(one: str, other: str) -> float:
    return (clock.parse(other) - clock.parse(one)).total_seconds()


def test_a_pause_keeps_a_bake_open_and_says_so(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.rollout(paused=True)
    world.run(600)
    assert (world.phase, world.condition("Ready")["reason"]) == ("Baking", "Paused")
    world.rollout(paused=False)
    world.run(10, until="Stable")


def test_a_manual_weight_is_obeyed_during_the_bake_as_well(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.rollout(canaryWeight=0)
    world.run(2)
    assert (world.phase, serving(world)) == ("Paused", {"v1": 100})
    world.rollout(canaryWeight=60)
    world.run(5)
    assert serving(world) == {"v1": 40, "v2": 60}
    world.rollout(canaryWeight=None)
    world.run(5)
    assert (world.phase, serving(world)) == ("Baking", {"v2": 100})
    world.run(60, until="Stable")


def test_taking_away_an_ignored_weight_leaves_the_running_step_alone() -> None:
    world = World({"model": {"uri": STORE + "v1"}, "rollout": {**ROLLOUT, "canaryWeight": 90}})
    world.run(30, until="Stable")
    world.serve("v2")
    world.run(12)
    assert serving(world) == {"v1": 90, "v2": 10}
    started = world.status["rollout"]["stepStartedAt"]
    world.rollout(canaryWeight=None)
    world.run(2)
    assert world.status["rollout"]["stepStartedAt"] == started


def test_a_queued_spec_that_is_taken_back_waits_no_more(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.serve("v3")
    world.run(3)
    assert world.status["rollout"]["queued"]
    world.serve("v2")
    world.run(3)
    assert "queued" not in world.status["rollout"]


def test_evidence_counts_while_a_pause_holds_the_step_from_its_first_second(world: World) -> None:
    world.serve("v2")
    world.run(2)
    world.rollout(paused=True, canaryWeight=10)
    world.run(10)
    world.rollout(canaryWeight=None)
    world.run(5)
    assert (world.phase, serving(world)) == ("Paused", {"v1": 90, "v2": 10})
    assert world.status["rollout"]["stepStartedAt"]


def test_no_try_has_the_name_of_the_one_before_however_many_there_were(world: World) -> None:
    world.behaviours["v3"] = Behaviour(failure=Failure("Model", "Load", "InvalidModel", "no"))
    names: list[str] = []
    for attempt in range(14):
        world.edit(model={"uri": STORE + "v3"}, rollout={**ROLLOUT, "retryToken": f"try-{attempt}"})
        world.run(60, until="RollingBack")
        names.append(world.status["rollback"]["from"])
        world.run(60, until="RolledBack")
    assert all(name not in names[max(0, at - 9) : at] for at, name in enumerate(names)), names


def test_a_uri_whose_content_may_change_is_warned_of_when_the_revision_begins(world: World) -> None:
    world.serve("v2")
    world.reconcile()
    assert "spec.model.digest is not given" in world.condition("Ready")["message"]
    world.edit(model={"uri": STORE + "v3", "digest": "sha256:" + "b" * 64})
    world.reconcile()
    world.reconcile()
    assert "spec.model.digest" not in world.condition("Ready")["message"]
