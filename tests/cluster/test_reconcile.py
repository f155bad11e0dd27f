"""One reconcile in this process against the real API server, with its connection failing where the test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from pilotage_dev.control_plane import ControlPlane
from pilotage_operator.adapters.kubernetes import Cluster, ClusterError
from pilotage_operator.adapters.observer import Observer
from pilotage_operator.adapters.prometheus import Prometheus
from pilotage_operator.api.crd import crd
from pilotage_operator.core import names
from pilotage_operator.core.install import Install
from pilotage_operator.handlers.reconcile import Reconciler
from tests.cluster.api_server import DEPLOYMENTS, ApiServer
from tests.cluster.parts import connected, control_plane_in

KEY = ("default", "fraud")
MERGE = {"content-type": "application/merge-patch+json"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane_in(tmp_path_factory.mktemp("reconciled")) as found:
        yield found


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Iterator[ApiServer]:
    with ApiServer(plane.kubeconfig) as server:
        server.establish(crd())
        yield server


@pytest.fixture
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with connected(plane) as found:
        yield found


@pytest.fixture
async def reconciler(cluster: Cluster) -> AsyncIterator[Reconciler]:
    async with aiohttp.ClientSession() as session:
        prometheus = Prometheus(session, "http://127.0.0.1:9")
        yield Reconciler(cluster, Observer(cluster, prometheus, Install("runtime:1")))


async def test_what_was_decided_is_told_though_it_could_not_be_done_yet(
    api: ApiServer, cluster: Cluster, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look finds the decision in the status and has nothing to tell any more."""
    _create(api, "fraud", {"model": {"uri": "s3://models/fraud/1"}})

    async def refuse(*_: Any, **__: Any) -> Any:
        raise ClusterError(500, "etcd has no leader")

    with monkeypatch.context() as broken:
        broken.setattr(cluster, "apply", refuse)
        again = await reconciler.reconcile(KEY)
    assert again is not None
    assert again < 5
    assert _told(api) == ["FirstRevision"]
    assert not _services(api, "fraud")
    # Once the API server is well again
    await reconciler.reconcile(KEY)
    assert _services(api, "fraud")
    assert _told(api) == ["FirstRevision"]


async def test_a_child_that_lost_our_label_is_ours_still(api: ApiServer, reconciler: Reconciler) -> None:
    _create(api, "bared", {"model": {"uri": "s3://models/bared/1"}})
    for _ in range(2):
        await reconciler.reconcile(("default", "bared"))
    services = "/api/v1/namespaces/default/services"
    (name,) = _services(api, "bared")
    bare = {"metadata": {"labels": {names.LABEL_DEPLOYMENT: None}}, "spec": {"selector": {"other": "pods"}}}
    assert api.patch(f"{services}/{name}", json=bare, headers=MERGE).status_code == 200
    assert not _services(api, "bared")
    await reconciler.reconcile(("default", "bared"))
    assert _services(api, "bared") == [name]
    assert api.get(f"{services}/{name}").json()["spec"]["selector"] == names.labels("bared", name)


async def test_turning_to_autoscaling_and_back_drops_no_pod_on_the_way(
    api: ApiServer, reconciler: Reconciler
) -> None:
    """Kubernetes gives a field that its only owner stops sending its default: one replica."""
    model = {"uri": "s3://models/sized/1", "digest": "sha256:" + "a" * 64}
    _create(api, "sized", {"model": model, "scaling": {"replicas": 6}})
    sizes: list[int] = []
    for scaling in (
        None,
        {"replicas": None, "minReplicas": 6, "maxReplicas": 10},
        {"minReplicas": 5},
        {"replicas": 3, "minReplicas": None, "maxReplicas": None},
        {"replicas": None, "minReplicas": 2},
    ):
        if scaling:
            edited = api.patch(f"{DEPLOYMENTS}/sized", json={"spec": {"scaling": scaling}}, headers=MERGE)
            assert edited.status_code == 200, edited.text
        await reconciler.reconcile(("default", "sized"))
        made = api.get("/apis/apps/v1/namespaces/default/deployments", params=_labelled("sized")).json()[
            "items"
        ]
        sizes += [deployment["spec"]["replicas"] for deployment in made]
    assert sizes == [6, 6, 6, 3, 3]


async def test_what_the_api_server_refuses_is_told_in_its_words(
    api: ApiServer, reconciler: Reconciler
) -> None:
    runtime = {"resources": {"limits": {"nvidia.com/gpu": "500m"}}}
    _create(api, "refused", {"model": {"uri": "s3://models/refused/1"}, "runtime": runtime})
    for _ in range(3):
        await reconciler.reconcile(("default", "refused"))
    events = api.get("/api/v1/namespaces/default/events").json()["items"]
    told = [event["message"] for event in events if event["reason"] == "ChildRefused"]
    assert len(told) == 1
    assert told[0].startswith("Deployment refused-")
    assert "must be an integer" in told[0]
    status = api.get(f"{DEPLOYMENTS}/refused").json()["status"]
    assert told[0] in next(c["message"] for c in status["conditions"] if c["type"] == "Ready")


def _create(api: ApiServer, name: str, spec: dict[str, Any]) -> None:
    obj = {"apiVersion": "pilotage.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}}
    made = api.post(DEPLOYMENTS, json={**obj, "spec": spec})
    assert made.status_code == 201, made.text


def _told(api: ApiServer) -> list[str]:
    events = api.get("/api/v1/namespaces/default/events").json()["items"]
    return [event["reason"] for event in events if event["involvedObject"]["name"] == "fraud"]


def _services(api: ApiServer, name: str) -> list[str]:
    found = api.get("/api/v1/namespaces/default/services", params=_labelled(name)).json()["items"]
    return [service["metadata"]["name"] for service in found]


def _labelled(name: str) -> dict[str, str]:
    return {"labelSelector": f"pilotage.dev/modeldeployment={name}"}
