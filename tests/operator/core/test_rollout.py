"""Whole rollouts in a scripted world: what users see, and golden timelines of when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilotage_operator.core.children import pod_template
from pilotage_operator.core.install import Features
from pilotage_operator.core.pods import Failure
from tests.operator.core.world import STORE, Behaviour, World

GOLDEN = Path(__file__).parent / "golden"
ROLLOUT = {"steps": [{"weight": 10, "holdSeconds": 15}, {"weight": 50, "holdSeconds": 15}], "bakeSeconds": 30}


@pytest.fixture
def world() -> World:
    """Version 1 serves all traffic."""
    world = World({"model": {"uri": STORE + "v1"}, "rollout": ROLLOUT})
    world.run(30, until="Stable")
    world.run(5)
    return world


def serving(world: World) -> dict[str, int]:
    """Version → percent, as the routes have it."""
    return {world.version(revision): weight for revision, weight in world.weights.items()}


def matches_golden(name: str, timeline: list[str]) -> None:
    path, text = GOLDEN / f"{name}.txt", "\n".join(timeline) + "\n"
    if os.environ.get("PILOTAGE_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert path.exists(), f"no golden file {path.name}; the timeline is:\n{text}"
    assert path.read_text() == text


def test_a_first_revision_takes_all_traffic_once_ready_and_no_steps() -> None:
    world = World({"model": {"uri": STORE + "v1"}})
    world.run(2)
    assert (world.phase, world.weights) == ("Pending", {})
    world.run(20, until="Stable")
    world.run(1)
    assert serving(world) == {"v1": 100}


def test_at_rest_nothing_is_written(world: World) -> None:
    writes = world.writes
    world.run(600)
    assert world.writes == writes


def test_a_good_version_takes_the_traffic_in_steps_and_is_stable_after_the_bake(world: World) -> None:
    world.serve("v2")
    world.run(300, until="Stable")
    world.run(5)
    assert serving(world) == {"v2": 100}
    assert world.failed_requests == 0
    shares = [seen.get(world.status["stable"]["revision"], 0) for seen in world.weights_seen[1:]]
    assert shares[:3] == [10, 50, 100]
    assert ("Deployment", world.status["stable"]["revision"]) in world.children
    assert sum(kind == "Deployment" for kind, _ in world.children) == 1, "the old revision has gone"
    matches_golden("good-version", world.timeline)


def test_a_bad_version_is_taken_back_with_the_evidence(world: World) -> None:
    world.behaviours["v3"] = Behaviour(bad_share=0.5)
    stable = world.status["stable"]["revision"]
    world.serve("v3")
    world.run(120, until="RolledBack")
    assert serving(world) == {"v1": 100}
    rollback = world.status["rollback"]
    evidence = rollback["evidence"]
    assert rollback["to"] == stable
    assert evidence["alert"] == "PilotageRevisionFailing"
    assert evidence["value"] == pytest.approx(0.5)
    assert evidence["stableValue"] == 0
    assert evidence["failedRequests"] == round(world.failed_requests) > 0
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Stalled")["status"] == "True"
    assert world.events[-2:] == ["RollingBack", "RolledBack"]
    matches_golden("bad-version", world.timeline)


def test_the_evidence_of_an_slo_that_is_removed_meanwhile_stays_what_it_was(world: World) -> None:
    world.edit(slo={"latency": {"thresholdMilliseconds": 100, "objectivePercent": 99}})
    world.behaviours["v2"] = Behaviour(late_share=0.9)
    world.serve("v2")
    world.run(60, until="RollingBack")
    decided = world.status["rollback"]["evidence"]
    world.edit(slo={})
    world.run(60, until="RolledBack")
    final = world.status["rollback"]["evidence"]
    told = ("signal", "value", "requests", "failedRequests", "windowSeconds")
    assert [final[key] for key in told] == [decided[key] for key in told]
    assert final["signal"] == "latency"
    assert final["failedRequests"] > 0


def test_rejected_content_is_not_tried_again_until_content_or_token_change(world: World) -> None:
    world.behaviours["v3"] = Behaviour(bad_share=0.5)
    world.serve("v3")
    world.run(120, until="RolledBack")
    rejected = world.status["rollback"]["from"]
    writes = world.writes
    world.generation += 1
    world.run(300)
    assert world.phase == "RolledBack"
    assert world.writes <= writes + 3, "only the observed generation is written"
    world.behaviours["v3"] = Behaviour()
    world.rollout(retryToken="again")
    world.run(300, until="Stable")
    assert serving(world) == {"v3": 100}
    assert world.status["stable"]["revision"] == f"{rejected}-2", (
        "a second try has a name, so series, of its own"
    )


def test_a_version_that_turns_bad_during_the_bake_is_taken_back(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.run(10)
    world.behaviours["v2"] = Behaviour(bad_share=0.3)
    world.run(60, until="RolledBack")
    assert serving(world) == {"v1": 100}


def test_a_rejection_out_of_the_bake_is_withdrawn_if_the_old_version_then_fails_alike(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.run(10)
    # The store behind all models goes down; while v2 has all the traffic, it alone can be seen to fail.
    world.behaviours = {"v1": Behaviour(bad_share=0.3), "v2": Behaviour(bad_share=0.3)}
    world.run(60, until="RollingBack")
    blamed = world.status["rollback"]["from"]
    world.run(60, until="Progressing")
    assert "RejectionWithdrawn" in world.events
    assert world.status["rejected"][-1]["withdrawnAt"]
    assert world.status["canary"]["revision"] == f"{blamed}-2", (
        "old alerts of the first try say nothing of this"
    )
    world.run(120)
    assert serving(world) == {"v1": 90, "v2": 10}, "while the outage lasts, it holds"
    world.behaviours = {}
    world.run(300, until="Stable")
    assert serving(world) == {"v2": 100}
    matches_golden("outage-in-the-bake", world.timeline)


def test_a_rejection_out_of_the_bake_stands_if_the_old_version_is_well(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.behaviours["v2"] = Behaviour(bad_share=0.3)
    world.run(60, until="RolledBack")
    world.behaviours["v1"] = Behaviour(bad_share=0.02)
    world.run(600)
    assert (world.phase, serving(world)) == ("RolledBack", {"v1": 100}), (
        "2 % is a fault, but not the same one"
    )
    assert "withdrawnAt" not in world.status["rejected"][-1]


def test_no_traffic_holds_and_says_how_far_it_is(world: World) -> None:
    world.requests_per_second = 0
    world.serve("v2")
    world.run(900)
    assert (world.phase, serving(world)) == ("Holding", {"v1": 90, "v2": 10})
    assert world.condition("Ready")["message"] == "0 of 20 requests seen."


def test_an_outage_of_prometheus_holds_neither_advancing_nor_rolling_back(world: World) -> None:
    world.serve("v2")
    world.run(30, until="Progressing")
    world.run(8)
    world.prometheus_up = False
    world.behaviours["v2"] = Behaviour(bad_share=0.5)
    world.run(600)
    assert (world.phase, serving(world)) == ("Holding", {"v1": 90, "v2": 10})
    assert world.condition("Ready")["reason"] == "PrometheusUnreachable"
    world.prometheus_up = True
    world.run(30, until="RolledBack")


@pytest.mark.parametrize("reason", ["InvalidModel", "ProgressDeadlineExceeded"])
def test_a_model_that_cannot_be_loaded_is_rejected_without_prometheus(world: World, reason: str) -> None:
    world.prometheus_up = False
    failure = Failure("Model", "Load", reason, "no") if reason == "InvalidModel" else None
    world.behaviours["v3"] = Behaviour(ready_after=None, failure=failure)
    world.serve("v3")
    world.run(700, until="RolledBack")
    assert serving(world) == {"v1": 100}
    assert reason in world.status["rollback"]["evidence"]["detail"]
    assert all(seen.keys() == world.weights.keys() for seen in world.weights_seen), "it never had traffic"


def test_an_infrastructure_failure_holds_and_rejects_nothing(world: World) -> None:
    world.behaviours["v2"] = Behaviour(
        failure=Failure("Infrastructure", "Image", "ErrImagePull", "no such image")
    )
    world.serve("v2")
    world.run(1500)
    assert (world.phase, serving(world), world.status["rejected"]) == ("Holding", {"v1": 100}, [])
    assert "no such image" in world.condition("Ready")["message"]
    world.behaviours["v2"] = Behaviour()
    world.run(300, until="Stable")
    assert serving(world) == {"v2": 100}


def test_the_spec_of_stable_returns_at_once(world: World) -> None:
    world.serve("v2")
    world.run(12)
    assert serving(world) == {"v1": 90, "v2": 10}
    world.serve("v1")
    world.run(1)
    assert (world.phase, serving(world)) == ("Stable", {"v1": 100})


def test_a_newer_spec_in_a_step_takes_weight_to_0_first(world: World) -> None:
    world.serve("v2")
    world.run(12)
    world.serve("v3")
    world.run(1)
    assert serving(world) == {"v1": 100}
    world.run(300, until="Stable")
    assert serving(world) == {"v3": 100}


def test_a_newer_spec_while_baking_waits_for_the_end_of_the_bake(world: World) -> None:
    world.serve("v2")
    world.run(120, until="Baking")
    world.serve("v3")
    world.run(5)
    assert (world.phase, serving(world)) == ("Baking", {"v2": 100})
    assert world.status["rollout"]["queued"]
    world.run(60, until="Progressing")
    assert world.version(world.status["stable"]["revision"]) == "v2"


def test_a_manual_weight_is_obeyed_and_its_removal_goes_on_from_there(world: World) -> None:
    world.serve("v2")
    world.run(12)
    world.rollout(canaryWeight=25)
    world.run(3)
    assert (world.phase, serving(world)) == ("Paused", {"v1": 75, "v2": 25})
    world.run(600)
    assert serving(world) == {"v1": 75, "v2": 25}
    world.rollout(canaryWeight=None)
    world.run(5)
    assert serving(world) == {"v1": 50, "v2": 50}


def test_a_manual_weight_of_an_earlier_rollout_is_ignored_and_told() -> None:
    world = World({"model": {"uri": STORE + "v1"}, "rollout": {**ROLLOUT, "canaryWeight": 90}})
    world.run(30, until="Stable")
    world.serve("v2")
    world.run(12)
    assert serving(world) == {"v1": 90, "v2": 10}


def test_a_pause_holds_but_does_not_protect_a_bad_version(world: World) -> None:
    world.serve("v2")
    world.run(12)
    world.rollout(paused=True)
    world.run(600)
    assert (world.phase, serving(world)) == ("Paused", {"v1": 90, "v2": 10})
    world.behaviours["v2"] = Behaviour(bad_share=0.5)
    world.run(60, until="RolledBack")
    assert serving(world) == {"v1": 100}


def test_without_a_router_a_new_version_holds_and_is_never_promoted(world: World) -> None:
    world = World({"model": {"uri": STORE + "v1"}, "rollout": ROLLOUT}, features=Features(istio=False))
    world.run(30, until="Stable")
    world.serve("v2")
    world.run(600)
    assert world.phase == "Holding"
    assert world.condition("TrafficRouted")["reason"] == "RouterAbsent"
    assert world.version(world.status["stable"]["revision"]) == "v1"


def test_a_first_revision_that_fails_is_replaced_directly() -> None:
    world = World({"model": {"uri": STORE + "v1"}})
    world.behaviours["v1"] = Behaviour(failure=Failure("Model", "Download", "NotFound", "no such object"))
    world.run(5)
    assert (world.phase, world.condition("Stalled")["status"]) == ("Failed", "True")
    world.serve("v2")
    world.run(30, until="Stable")
    world.run(1)
    assert serving(world) == {"v2": 100}


def test_weights_edited_by_hand_in_the_routes_are_set_back_and_told(world: World) -> None:
    world.serve("v2")
    world.run(12)
    split = world.children["VirtualService", "fraud"]["spec"]["http"][-1]["route"]
    split[0]["weight"], split[1]["weight"] = 0, 100
    world.run(1)
    assert serving(world) == {"v1": 90, "v2": 10}
    assert "WeightDriftCorrected" in world.events


def test_a_new_operator_with_other_defaults_restarts_no_pod(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = world.writes
    monkeypatch.setattr(pod_template, "GRACE_SECONDS", 999)
    world.run(60)
    assert world.writes == writes


def test_pods_are_sized_before_traffic_and_stable_keeps_its_size_until_the_bake_ends(world: World) -> None:
    world.edit(scaling={"minReplicas": 10, "maxReplicas": 20})
    world.run(10)
    stable = world.status["stable"]["revision"]
    world.serve("v2")
    while world.phase != "Stable" or world.status["stable"]["revision"] == stable:
        world.run(1)
        canary = world.status.get("canary", {}).get("revision")
        if canary and canary in world.weights and ("HorizontalPodAutoscaler", canary) in world.children:
            least = world.children["HorizontalPodAutoscaler", canary]["spec"]["minReplicas"]
            assert least >= 10 * world.weights[canary] / 100
        if canary:
            assert world.children["HorizontalPodAutoscaler", stable]["spec"]["minReplicas"] == 10
        assert world.seconds < 600


def pods_of_the_canary(world: World) -> int:
    return sum(pod.revision == world.status["canary"]["revision"] for pod in world.snapshot().pods)


def test_a_size_raised_in_the_middle_is_the_new_versions_as_well() -> None:
    world = World({"model": {"uri": STORE + "v1"}, "rollout": ROLLOUT, "scaling": {"replicas": 2}})
    world.run(30, until="Stable")
    world.serve("v2")
    world.run(12)
    assert (serving(world), pods_of_the_canary(world)) == ({"v1": 90, "v2": 10}, 1)
    world.edit(scaling={"replicas": 20})
    world.run(60, until="Baking")
    world.run(1)
    assert (serving(world), pods_of_the_canary(world)) == ({"v2": 100}, 20)


@pytest.mark.parametrize("weight", [50, None])
def test_what_the_autoscaler_added_to_the_old_version_sizes_the_next_weight(
    world: World, weight: int | None
) -> None:
    world.serve("v2")
    world.run(12)
    assert (serving(world), pods_of_the_canary(world)) == ({"v1": 90, "v2": 10}, 1)
    world.scaled_to["v1"] = 20
    world.rollout(canaryWeight=weight)
    while serving(world) != {"v1": 50, "v2": 50}:
        world.run(1)
    assert pods_of_the_canary(world) == 10
    del world.scaled_to["v1"]
    world.run(5)
    stable = world.status["stable"]["revision"]
    assert world.children["HorizontalPodAutoscaler", stable]["spec"]["minReplicas"] == 20, (
        "it may have to take all"
    )


def test_a_shared_outage_takes_no_young_version_back(world: World) -> None:
    world.requests_per_second = 1000
    world.run(120)
    world.serve("v2")
    world.run(12)
    # The rules see a minute of the others, most of it good, and only these seconds of the new version.
    world.behaviours = {"v1": Behaviour(bad_share=0.05), "v2": Behaviour(bad_share=0.05)}
    world.run(60)
    assert world.status["rejected"] == []
    assert serving(world) == {"v1": 90, "v2": 10}


def test_a_pod_that_fetched_other_content_is_told_and_moves_nothing(world: World) -> None:
    world.failing_pods["v1"] = (1, Failure("Model", "Verify", "ModelContentChanged", "another digest"))
    world.run(120)
    ready = world.condition("Ready")
    assert (world.phase, ready["status"], ready["reason"]) == ("Stable", "True", "ModelContentChanged")
    assert "another digest" in ready["message"]
    assert world.events.count("ModelContentChanged") == 1
    world.failing_pods.clear()
    world.run(60)
    assert world.condition("Ready")["reason"] == "Serving"


def test_the_stored_revision_of_what_serves_is_written_anew_if_it_was_deleted(world: World) -> None:
    stored = "ControllerRevision", world.status["stable"]["revision"]
    before, template = world.children.pop(stored), world.children["Deployment", stored[1]]["spec"]["template"]
    routed = list(world.weights_seen)
    world.run(5)
    assert (world.phase, world.weights_seen) == ("Stable", routed), "it rolls out beside nobody"
    assert world.children[stored]["data"] == before["data"]
    assert world.children["Deployment", stored[1]]["spec"]["template"] == template, "no pod is restarted"


def test_the_version_that_served_before_is_remembered_though_it_was_made_long_ago(world: World) -> None:
    world.rollout(revisionHistoryLimit=1)
    for version in ("v2", "v1", "v3"):
        world.serve(version)
        world.run(120, until="Baking")
        world.run(60, until="Stable")
        world.run(3)
    stored = {world.version(name) for kind, name in world.children if kind == "ControllerRevision"}
    assert stored == {"v1", "v3"}


@pytest.mark.parametrize("gone", [["ControllerRevision"], ["ControllerRevision", "Deployment"]])
def test_a_rollback_to_a_version_that_is_stored_no_more_goes_through(world: World, gone: list[str]) -> None:
    stable = world.status["stable"]["revision"]
    world.behaviours["v2"] = Behaviour(bad_share=0.5)
    world.serve("v2")
    world.run(4)
    assert serving(world) == {"v1": 90, "v2": 10}
    for kind in gone:
        del world.children[kind, stable]
    if "Deployment" in gone:
        del world.born[stable]
    world.run(60, until="RolledBack")
    world.run(60)
    assert serving(world) == {"v1": 100}
    assert {
        ("Service", "fraud"),
        ("Service", stable),
        ("ConfigMap", f"{stable}-digest"),
    } <= world.children.keys()
    assert (("Deployment", stable) in world.children) == ("Deployment" not in gone)
    world.serve("v1")
    world.run(30)
    assert (world.phase, world.condition("Ready")["status"]) == ("Stable", "True")
    assert {("ControllerRevision", stable), ("Deployment", stable)} <= world.children.keys()


def test_a_stable_version_without_a_ready_pod_is_not_ready(world: World) -> None:
    world.failing_pods["v1"] = (99, Failure("Infrastructure", "Schedule", "Unschedulable", "no node"))
    world.run(60)
    ready = world.condition("Ready")
    assert (world.phase, ready["status"], ready["reason"]) == ("Stable", "False", "NoPodReady")
    assert "no node" in ready["message"]
    world.failing_pods.clear()
    world.run(60)
    assert world.condition("Ready")["status"] == "True"


def test_a_name_that_somebody_else_has_stalls_and_writes_nothing(world: World) -> None:
    world.strangers = frozenset({("Service", "fraud")})
    writes = world.writes
    world.serve("v2")
    world.run(30)
    assert world.condition("Stalled")["reason"] == "NameConflict"
    assert world.condition("Stalled")["status"] == "True"
    assert "Service fraud" in world.condition("Ready")["message"]
    assert world.writes <= writes + 2, "only the status is written"
    assert serving(world) == {"v1": 100}


def test_what_others_make_with_our_label_under_a_name_that_we_do_not_need_is_left_alone(world: World) -> None:
    """`kubectl expose deployment` copies the labels."""
    world.strangers = frozenset({("Service", "fraud-debug")})
    world.behaviours["v2"] = Behaviour(bad_share=0.5)
    world.serve("v2")
    world.run(60, until="RolledBack")
    assert (world.condition("Stalled")["reason"], serving(world)) == ("RolledBack", {"v1": 100})


@pytest.mark.parametrize("when", ["Progressing", "RollingBack"])
def test_a_name_that_somebody_else_takes_keeps_no_bad_version_in_the_traffic(world: World, when: str) -> None:
    stable = world.status["stable"]["revision"]
    world.behaviours["v2"] = Behaviour(bad_share=0.5)
    world.serve("v2")
    world.run(60, until=when)
    world.run(3 if when == "Progressing" else 0)
    taken = ("PodDisruptionBudget", stable)
    world.strangers, theirs = frozenset({taken}), {"theirs": True}
    world.children[taken] = theirs
    world.run(60, until="RolledBack")
    assert serving(world) == {"v1": 100}
    assert world.condition("Stalled")["reason"] == "NameConflict"
    assert world.children[taken] is theirs, "it is left as it was"
