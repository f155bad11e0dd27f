"""The story of the README, on the whole stack: what users see while versions come and go."""

from __future__ import annotations

import time
from typing import Any

from demo import story
from demo.site import NAMESPACE, Site

LABEL = "pilotage.dev/modeldeployment=fraud"
CHILDREN = (
    "deployments,services,configmaps,horizontalpodautoscalers,poddisruptionbudgets,controllerrevisions,"
    "virtualservices,destinationrules,prometheusrules"
)


def test_a_good_version_takes_over_and_a_bad_one_is_taken_back(site: Site, fraud: dict[str, Any]) -> None:
    with story.load(site) as traffic:
        time.sleep(3)
        good = story.change(site, traffic, "good", version="fraud/2", until="Stable", say=print)
        bad = story.change(site, traffic, "bad", version="fraud/bad-errors", until="RolledBack", say=print)

    assert good.failed == 0
    assert [weight for _, weight in good.weights] == [0, 20, 100, 0], "20 %, then all, then it is stable"
    assert 0 < bad.failed < bad.sent / 10
    assert [weight for _, weight in bad.weights] == [0, 20, 0]

    rollback = bad.status["rollback"]
    evidence = rollback["evidence"]
    assert rollback["to"] == good.status["stable"]["revision"] == bad.status["stable"]["revision"]
    assert evidence["alert"] == "PilotageRevisionFailing"
    assert evidence["value"] > evidence["threshold"]
    assert evidence["stableValue"] == 0
    assert evidence["failedRequests"] == bad.failed, (
        "every failed request is in the evidence, and no other failed"
    )
    assert bad.status["rejected"][-1]["revision"] == rollback["from"]

    events = site.kubectl(
        "get", "events", "-n", NAMESPACE, "--field-selector=reason=RolledBack", "-o", "json"
    )
    assert "PilotageRevisionFailing" in events

    serving = _serving(site)
    assert serving == {bad.status["stable"]["revision"]: 100}

    # Re-applying the same content does nothing; other content re-arms.
    pods = _pods(site)
    site.serve("fraud", "fraud/bad-errors")
    time.sleep(5)
    assert site.status("fraud")["phase"] == "RolledBack"
    assert _pods(site) >= pods
    site.serve("fraud", "fraud/2")
    site.ready("fraud")


def test_children_that_are_deleted_or_edited_come_back(site: Site, fraud: dict[str, Any]) -> None:
    revision = site.status("fraud")["stable"]["revision"]
    site.kubectl("delete", "service", revision, "-n", NAMESPACE)
    site.kubectl("delete", "virtualservice", "fraud", "-n", NAMESPACE)
    patch = '{"spec":{"selector":{"pilotage.dev/revision":"nobody"}}}'
    site.kubectl("patch", "service", "fraud", "-n", NAMESPACE, "--type=merge", "-p", patch)
    _eventually(lambda: site.get("service", revision) is not None)
    _eventually(lambda: _serving(site) == {revision: 100})
    _eventually(lambda: _selected(site) == revision)


def test_a_missing_model_says_so_and_the_next_spec_replaces_it(site: Site) -> None:
    manifest = _named("missing", "s3://models/fraud/nowhere")
    site.apply(manifest)
    *_, (_, status) = site.wait("missing", lambda s: s.get("phase") == "Failed", seconds=60)
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "NotFound")
    assert "fraud/nowhere" in ready["message"]
    site.serve("missing", "fraud/1")
    site.ready("missing")
    site.kubectl("delete", "modeldeployment", "missing", "-n", NAMESPACE, "--wait")


def test_a_pickle_named_onnx_is_refused_and_rolled_back_without_traffic(
    site: Site, fraud: dict[str, Any]
) -> None:
    with story.load(site) as traffic:
        time.sleep(1)
        chapter = story.change(
            site, traffic, "pickle", version="broken/pickle.onnx", until="RolledBack", say=print
        )
    assert chapter.failed == 0
    assert [weight for _, weight in chapter.weights] == [0]
    assert chapter.status["rollback"]["evidence"]["signal"] == "pods"


def test_deletion_leaves_nothing_behind_and_objects_carry_no_finalizer(site: Site) -> None:
    site.apply(_named("short", "s3://models/fraud/1"))
    site.ready("short")
    found = site.get("modeldeployment", "short")
    assert found is not None
    assert "finalizers" not in found["metadata"]
    site.kubectl("delete", "modeldeployment", "short", "-n", NAMESPACE, "--wait")
    label = "pilotage.dev/modeldeployment=short"
    _eventually(lambda: site.list(f"{CHILDREN},pods", labels=label) == [], seconds=90)


def _named(name: str, uri: str) -> dict[str, Any]:
    return {
        "apiVersion": "pilotage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": uri, "credentialsSecretRef": {"name": "model-store"}},
            "runtime": {"resources": {"requests": {"cpu": "50m"}}},
            "scaling": {"replicas": 1},
            "rollout": {"minReadySeconds": 1},
        },
    }


def _serving(site: Site) -> dict[str, int]:
    routes = site.get("virtualservice", "fraud")
    split = routes["spec"]["http"][-1]["route"] if routes else []
    return {r["destination"]["host"].split(".")[0]: r.get("weight", 100) for r in split}


def _selected(site: Site) -> str:
    service = site.get("service", "fraud")
    return service["spec"]["selector"]["pilotage.dev/revision"] if service else ""


def _pods(site: Site) -> set[str]:
    return {pod["metadata"]["name"] for pod in site.list("pods", labels=LABEL)}


def _eventually(true: Any, *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.5)
