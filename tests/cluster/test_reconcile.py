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
from pilotage_operator.core.install import Install
from pilotage_operator.handlers.reconcile import Reconciler
from tests.cluster.api_server import DEPLOYMENTS, ApiServer
from tests.cluster.parts import connected, control_plane_in

KEY = ("default", "fraud")


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


async def test_what_was_decided_is_told_though_it_could_not_be_done_yet(
    api: ApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look finds the decision in the status and has nothing to tell any more."""
    obj = {
        "apiVersion": "pilotage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "fraud"},
        "spec": {"model": {"uri": "s3://models/fraud/1"}},
    }
    assert api.post(DEPLOYMENTS, json=obj).status_code == 201

    async def refuse(*_: Any, **__: Any) -> Any:
        raise ClusterError(500, "etcd has no leader")

    async with aiohttp.ClientSession() as session:
        observer = Observer(cluster, Prometheus(session, "http://127.0.0.1:9"), Install("runtime:1"))
        reconciler = Reconciler(cluster, observer)
        with monkeypatch.context() as broken:
            broken.setattr(cluster, "apply", refuse)
            again = await reconciler.reconcile(KEY)
        assert again is not None
        assert again < 5
        assert _told(api) == ["FirstRevision"]
        assert not _services(api)
        # Once the API server is well again
        await reconciler.reconcile(KEY)
        assert _services(api)
        assert _told(api) == ["FirstRevision"]


def _told(api: ApiServer) -> list[str]:
    events = api.get("/api/v1/namespaces/default/events").json()["items"]
    return [event["reason"] for event in events if event["involvedObject"]["name"] == "fraud"]


def _services(api: ApiServer) -> list[str]:
    label = {"labelSelector": "pilotage.dev/modeldeployment=fraud"}
    found = api.get("/api/v1/namespaces/default/services", params=label).json()["items"]
    return [service["metadata"]["name"] for service in found]
