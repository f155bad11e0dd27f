"""What an SRE does to a rollout while it runs, on the real routes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx

from demo import story
from demo.site import HOST, NAMESPACE, OPERATOR_NAMESPACE, Site
from tests.e2e.seen import condition, eventually, told, weights

POD = "app.kubernetes.io/component=operator"


def test_a_manual_weight_is_obeyed_drift_is_set_back_and_the_old_spec_returns_at_once(
    site: Site, fraud: dict[str, Any]
) -> None:
    stable = site.status("fraud")["stable"]["revision"]
    with story.load(site) as traffic:
        began = time.time()
        site.edit("fraud", {"rollout": {"paused": True, "steps": [{"weight": 20, "holdSeconds": 3600}]}})
        site.serve("fraud", "fraud/2")
        canary = eventually(lambda: site.status("fraud").get("canary", {}).get("revision"))
        # An SRE's weight
        site.edit("fraud", {"rollout": {"canaryWeight": 35}})
        eventually(lambda: weights(site) == {stable: 65, canary: 35}, seconds=60)
        eventually(lambda: condition(site.status("fraud"), "Ready")["reason"] == "ManualWeight")
        eventually(lambda: site.status("fraud")["canary"].get("appliedWeight") == 35)
        # Somebody edits the routes in place of the ModelDeployment
        _route(site, {stable: 10, canary: 90})
        eventually(lambda: told(site, "WeightDriftCorrected"))
        eventually(lambda: weights(site) == {stable: 65, canary: 35})
        # A newer spec in the middle of a step: the weight goes to 0 before anything else
        site.serve("fraud", "fraud/bad-nan")
        eventually(lambda: weights(site) == {stable: 100})
        eventually(lambda: site.status("fraud").get("canary", {}).get("revision") not in (None, canary))
        # And back to what serves
        site.edit("fraud", {"rollout": {"paused": False, "canaryWeight": None}})
        site.serve("fraud", "fraud/1")
        site.ready("fraud")
        assert site.status("fraud")["stable"]["revision"] == stable
        time.sleep(1)
        codes = traffic.codes(began)
    assert set(codes) == {200}, codes


def test_while_prometheus_is_away_a_rollout_holds_and_then_goes_on(site: Site, fraud: dict[str, Any]) -> None:
    stable = site.status("fraud")["stable"]["revision"]
    with story.load(site):
        site.serve("fraud", "fraud/2")
        eventually(lambda: 20 in weights(site).values(), seconds=60)
        _prometheis(site, 0)
        try:
            eventually(
                lambda: condition(site.status("fraud"), "SLOHealthy")["reason"] == "PrometheusUnreachable"
            )
            eventually(lambda: site.status("fraud")["phase"] == "Holding")
            assert condition(site.status("fraud"), "Ready")["reason"] == "PrometheusUnreachable"
            time.sleep(15)
            assert weights(site)[stable] == 80
            assert site.status("fraud")["rejected"] == []
        finally:
            _prometheis(site, 1)
        status = eventually(lambda: _promoted(site, stable), seconds=180)
    assert status["rejected"] == []


def test_a_bad_version_is_taken_back_by_the_next_operator_if_the_first_is_killed(
    site: Site, fraud: dict[str, Any]
) -> None:
    stable = site.status("fraud")["stable"]["revision"]
    with story.load(site):
        site.serve("fraud", "fraud/bad-errors")
        eventually(lambda: 20 in weights(site).values(), seconds=60)
        site.kubectl("delete", "pod", "-n", OPERATOR_NAMESPACE, "-l", POD, "--force", "--grace-period=0")
        eventually(lambda: site.status("fraud")["phase"] == "RolledBack", seconds=90)
    status = site.status("fraud")
    assert weights(site) == {stable: 100}
    assert status["rollback"]["evidence"]["failedRequests"] >= 5
    assert [entry["revision"] for entry in status["rejected"]] == [status["rollback"]["from"]]


def test_requests_that_are_pinned_to_the_canary_reach_it_and_are_no_evidence(
    site: Site, fraud: dict[str, Any]
) -> None:
    site.edit("fraud", {"routing": {"versionHeader": "x-model-version"}})
    with story.load(site):
        site.serve("fraud", "fraud/2")
        canary = eventually(lambda: site.status("fraud").get("canary", {}).get("revision"))
        site.edit("fraud", {"rollout": {"canaryWeight": 10}})
        eventually(lambda: weights(site).get(canary) == 10, seconds=60)
        time.sleep(2)  # the gateway hears of it
        url = f"{site.cluster.gateway_url}/v2/models/fraud/infer"
        headers = {"Host": HOST, "x-model-version": canary}
        # Ten times what would condemn it, if these counted.
        codes = [httpx.post(url, json={"inputs": []}, headers=headers).status_code for _ in range(50)]
        assert codes == [400] * 50
        time.sleep(15)
        assert _pinned(site, canary) == 50
        assert site.status("fraud")["rejected"] == []
        assert weights(site)[canary] == 10


def _pinned(site: Site, revision: str) -> float:
    """What the pods of a revision count, asked as Prometheus asks."""
    total = 0.0
    for pod in site.list("pods", labels=f"pilotage.dev/revision={revision}"):
        text = httpx.get(f"http://{pod['status']['podIP']}:9090/metrics").text
        found = re.search(r"^inference_pinned_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
        total += float(found[1]) if found else 0.0
    return total


def _promoted(site: Site, before: str) -> dict[str, Any] | None:
    status = site.status("fraud")
    return status if status["phase"] == "Stable" and status["stable"]["revision"] != before else None


def _route(site: Site, split: dict[str, int]) -> None:
    routes = site.get("virtualservice", "fraud")
    assert routes is not None
    for route in routes["spec"]["http"][-1]["route"]:
        route["weight"] = split[route["destination"]["host"].split(".")[0]]
    patch = json.dumps({"spec": {"http": routes["spec"]["http"]}})
    site.kubectl("patch", "virtualservice", "fraud", "-n", NAMESPACE, "--type=merge", "-p", patch)


def _prometheis(site: Site, replicas: int) -> None:
    patch = json.dumps({"spec": {"replicas": replicas}})
    site.kubectl("patch", "prometheus", "k8s", "-n", "monitoring", "--type=merge", "-p", patch)
