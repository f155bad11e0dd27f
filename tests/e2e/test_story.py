"""The story of the README, on the whole stack: what users see while versions come and go."""

from __future__ import annotations

import time
from typing import Any

from demo import story
from demo.site import NAMESPACE, Site
from tests.e2e.seen import eventually, pods, told, weights


def test_a_good_version_takes_over_and_a_bad_one_is_taken_back(site: Site, fraud: dict[str, Any]) -> None:
    with story.load(site) as traffic:
        time.sleep(3)
        good = story.change(site, traffic, "good", version="fraud/2", until="Stable", say=print)
        bad = story.change(site, traffic, "bad", version="fraud/bad-errors", until="RolledBack", say=print)

    assert good.failed == 0
    assert good.weights == [0, 20, 100]
    assert 0 < bad.failed < bad.sent / 10
    assert bad.weights == [0, 20, 0]

    rollback = bad.status["rollback"]
    evidence = rollback["evidence"]
    assert rollback["to"] == good.status["stable"]["revision"] == bad.status["stable"]["revision"]
    # The alert and the counts behind it are looked at together, and the first to be sure is the evidence: which one
    # that is hangs on how the rules' evaluation falls between two scrapes.
    assert evidence["signal"] == "availability"
    condemned_by = evidence.get("alert", "availability")
    assert condemned_by in {"PilotageRevisionFailing", "availability"}
    assert evidence["value"] > evidence["threshold"]
    assert evidence["stableValue"] == 0
    assert evidence["failedRequests"] == bad.failed, (
        "every failed request is in the evidence, and no other failed"
    )
    assert bad.status["rejected"][-1]["revision"] == rollback["from"]

    assert any(condemned_by in message for message in told(site, "RolledBack"))

    assert weights(site) == {bad.status["stable"]["revision"]: 100}

    # Re-applying the same content does nothing; other content re-arms.
    before = pods(site)
    site.serve("fraud", "fraud/bad-errors")
    time.sleep(5)
    assert site.status("fraud")["phase"] == "RolledBack"
    assert pods(site) >= before
    site.serve("fraud", "fraud/2")
    site.ready("fraud")


def test_children_that_are_deleted_or_edited_come_back(site: Site, fraud: dict[str, Any]) -> None:
    revision = site.status("fraud")["stable"]["revision"]
    site.kubectl("delete", "service", revision, "-n", NAMESPACE)
    site.kubectl("delete", "virtualservice", "fraud", "-n", NAMESPACE)
    patch = '{"spec":{"selector":{"pilotage.dev/revision":"nobody"}}}'
    site.kubectl("patch", "service", "fraud", "-n", NAMESPACE, "--type=merge", "-p", patch)
    eventually(lambda: site.get("service", revision) is not None)
    eventually(lambda: weights(site) == {revision: 100})
    eventually(lambda: _selected(site) == revision)


def test_a_pickle_named_onnx_is_refused_and_rolled_back_without_traffic(
    site: Site, fraud: dict[str, Any]
) -> None:
    with story.load(site) as traffic:
        time.sleep(1)
        chapter = story.change(
            site, traffic, "pickle", version="broken/pickle.onnx", until="RolledBack", say=print
        )
    assert chapter.failed == 0
    assert chapter.weights == [0]
    assert chapter.status["rollback"]["evidence"]["signal"] == "pods"


def _selected(site: Site) -> str:
    service = site.get("service", "fraud")
    return service["spec"]["selector"]["pilotage.dev/revision"] if service else ""
