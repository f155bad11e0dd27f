"""The operator as a process against a real API server that knows neither Istio nor the Prometheus operator."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotage_dev.control_plane import ControlPlane
from pilotage_operator.api.crd import crd
from tests.cluster.api_server import DEFINITIONS, DEPLOYMENTS, ApiServer
from tests.cluster.parts import control_plane_in

DIGEST = "sha256:" + "a" * 64
READS = {"get", "list", "watch"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane_in(tmp_path_factory.mktemp("operated")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Iterator[ApiServer]:
    with ApiServer(plane.kubeconfig) as server:
        server.establish(crd())
        yield server


@pytest.fixture(scope="module", autouse=True)
def operator(plane: ControlPlane, api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The running operator's log."""
    log = tmp_path_factory.mktemp("operator") / "log"
    environment = {
        **os.environ,
        "KUBECONFIG": str(plane.kubeconfig),
        "PILOTAGE_RUNTIME_IMAGE": "runtime:1",
        "PILOTAGE_NAMESPACE": "default",
        "PILOTAGE_PROMETHEUS_URL": "http://127.0.0.1:9",
        "PILOTAGE_HEALTH_PORT": str(_free_port()),
        "PILOTAGE_METRICS_PORT": str(_free_port()),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pilotage_operator"], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        yield log
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-2000:]
    lease = api.get("/apis/coordination.k8s.io/v1/namespaces/default/leases/pilotage-operator").json()
    assert lease["spec"]["holderIdentity"] == "", "the next operator need not wait"


def test_children_are_made_and_owned_and_no_finalizer_is_set(api: ApiServer) -> None:
    made = _create(api, "owned")
    status = _until(api, "owned", lambda s: bool(s.get("canary")))
    revision = status["canary"]["revision"]
    for path in (
        f"/apis/apps/v1/namespaces/default/deployments/{revision}",
        f"/api/v1/namespaces/default/services/{revision}",
        f"/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/{revision}",
        f"/apis/policy/v1/namespaces/default/poddisruptionbudgets/{revision}",
        f"/apis/apps/v1/namespaces/default/controllerrevisions/{revision}",
        f"/api/v1/namespaces/default/configmaps/{revision}-digest",
    ):
        child = _eventually(lambda path=path: _found(api, path))
        assert child["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    found = api.get(f"{DEPLOYMENTS}/owned").json()
    assert "finalizers" not in found["metadata"]


def test_absent_apis_are_named_and_the_rest_goes_on(api: ApiServer) -> None:
    _create(api, "bare")
    status = _until(api, "bare", lambda s: bool(s.get("conditions")))
    told = {condition["type"]: condition for condition in status["conditions"]}
    assert (told["TrafficRouted"]["status"], told["TrafficRouted"]["reason"]) == ("False", "RouterAbsent")
    assert told["SLOHealthy"]["reason"] == "RulesUnavailable"


def test_the_name_of_somebody_elses_object_stalls_until_it_is_free(api: ApiServer) -> None:
    inputs = {"model": {"uri": "s3://models/taken/1", "digest": DIGEST}}
    from pilotage_operator.core.revisions import revision_name  # noqa: PLC0415 - the name under test

    name = revision_name("taken", inputs, 1)
    stranger = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-digest"},
        "data": {"a": "b"},
    }
    path = "/api/v1/namespaces/default/configmaps"
    assert api.post(path, json=stranger).status_code == 201
    _create(api, "taken")
    status = _until(api, "taken", lambda s: _condition(s, "Stalled")["reason"] == "NameConflict")
    assert _condition(status, "Stalled")["status"] == "True"
    assert f"ConfigMap {name}-digest" in _condition(status, "Ready")["message"]
    assert api.get(f"{path}/{name}-digest").json()["data"] == {"a": "b"}, "it is left as it was"


def test_a_stored_object_that_cannot_be_read_is_told_in_an_event(api: ApiServer) -> None:
    """As after a downgrade: a newer CRD let in what this operator does not know."""
    loose = crd()
    schema = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del schema["properties"]["rollout"]["properties"]["onNoData"]["enum"]
    path = f"{DEFINITIONS}/{loose['metadata']['name']}"
    merge = {"content-type": "application/merge-patch+json"}
    assert api.patch(path, content=json.dumps(loose), headers=merge).status_code == 200
    _eventually(lambda: _posted(api, "newer", {"onNoData": "Promote"}))

    def told() -> list[str]:
        events = api.get("/api/v1/namespaces/default/events").json()["items"]
        return [e["message"] for e in events if e["reason"] == "InvalidObject"]

    assert "spec.rollout.onNoData" in _eventually(told)[0]
    assert api.patch(path, content=json.dumps(crd()), headers=merge).status_code == 200
    assert api.delete(f"{DEPLOYMENTS}/newer").status_code == 200


def test_at_rest_nothing_is_written_but_the_lease(api: ApiServer, plane: ControlPlane) -> None:
    _create(api, "resting")
    # The autoscaler, which looks every 15 s, has made the second pod.
    _until(api, "resting", lambda s: s.get("phase") == "Pending" and s.get("replicas") == 2)
    time.sleep(3)
    began = len(_audited(plane))
    time.sleep(12)
    writes = [
        (entry["verb"], entry["objectRef"]["resource"], entry["objectRef"].get("name"))
        for entry in _audited(plane)[began:]
        if entry["verb"] not in READS and entry.get("userAgent") == "pilotage-operator"
    ]
    assert {resource for _, resource, _ in writes} == {"leases"}, writes


def test_deletion_is_kubernetes_own_work_and_leaves_nothing(api: ApiServer) -> None:
    _create(api, "brief")
    _until(api, "brief", lambda s: bool(s.get("canary")))
    assert api.delete(f"{DEPLOYMENTS}/brief").status_code == 200
    label = {"labelSelector": "pilotage.dev/modeldeployment=brief"}
    for kind in ("apps/v1", "autoscaling/v2", "policy/v1"):
        plural = {"apps/v1": "deployments", "autoscaling/v2": "horizontalpodautoscalers"}.get(
            kind, "poddisruptionbudgets"
        )
        path = f"/apis/{kind}/namespaces/default/{plural}"
        _eventually(lambda path=path: api.get(path, params=label).json()["items"] == [])


def _create(api: ApiServer, name: str) -> dict[str, Any]:
    made = api.post(
        DEPLOYMENTS,
        json={
            "apiVersion": "pilotage.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name},
            "spec": {"model": {"uri": f"s3://models/{name}/1", "digest": DIGEST}},
        },
    )
    assert made.status_code == 201, made.text
    return made.json()


def _posted(api: ApiServer, name: str, rollout: dict[str, Any]) -> bool:
    obj = {
        "apiVersion": "pilotage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"uri": f"s3://models/{name}/1", "digest": DIGEST}, "rollout": rollout},
    }
    return api.post(DEPLOYMENTS, json=obj).status_code == 201


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [c for c in status.get("conditions", []) if c["type"] == kind]
    return found[0] if found else {"status": "", "reason": "", "message": ""}


def _until(api: ApiServer, name: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    def status() -> dict[str, Any] | None:
        found = api.get(f"{DEPLOYMENTS}/{name}").json().get("status", {})
        return found if true(found) else None

    return _eventually(status)


def _found(api: ApiServer, path: str) -> dict[str, Any] | None:
    answer = api.get(path)
    return answer.json() if answer.status_code == 200 else None


def _eventually(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (got := true()):
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.2)
    return got


def _audited(plane: ControlPlane) -> list[dict[str, Any]]:
    lines = plane.audit_log.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry.get("stage") == "ResponseComplete"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
