"""How far a download is, from the log of a pod to the status, through the real API server."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pilotage_dev.control_plane import ControlPlane
from pilotage_operator.adapters import fetch_log
from pilotage_operator.adapters.observer import Observer
from pilotage_operator.adapters.prometheus import Prometheus
from pilotage_operator.api.crd import crd
from pilotage_operator.core.install import Install
from pilotage_operator.handlers.reconcile import Reconciler
from tests.cluster.api_server import DEPLOYMENTS, ApiServer
from tests.cluster.parts import connected, control_plane_in

KEY = ("default", "fraud")
PODS = "/api/v1/namespaces/default/pods"
MERGE = {"content-type": "application/merge-patch+json"}


@dataclass
class Kubelet:
    """As much of a node's agent as answers for logs."""

    log: bytes = b""
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        return web.Response(body=self.log, content_type="text/plain")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane_in(tmp_path_factory.mktemp("fetching")) as found:
        yield found


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Iterator[ApiServer]:
    with ApiServer(plane.kubeconfig) as server:
        server.establish(crd())
        yield server


@pytest.fixture
async def kubelet(plane: ControlPlane, api: ApiServer) -> AsyncIterator[Kubelet]:
    """A node that is one only to the API server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*plane.node_pair)
    kubelet = Kubelet()
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", kubelet.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    made = api.post("/api/v1/nodes", json={"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})
    assert made.status_code == 201, made.text
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": runner.addresses[0][1]}},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    told = api.patch("/api/v1/nodes/node/status", json={"status": status}, headers=MERGE)
    assert told.status_code == 200, told.text
    yield kubelet
    await runner.cleanup()


@asynccontextmanager
async def reconciling(plane: ControlPlane) -> AsyncIterator[Reconciler]:
    async with connected(plane) as cluster, aiohttp.ClientSession() as session:
        prometheus = Prometheus(session, "http://127.0.0.1:9")
        yield Reconciler(cluster, Observer(cluster, prometheus, Install("runtime:1")))


async def test_the_status_says_what_the_log_says(
    api: ApiServer, plane: ControlPlane, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_log, "READ_SECONDS", 0.0)
    obj = {
        "apiVersion": "pilotage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "fraud"},
        "spec": {"model": {"uri": "s3://models/fraud/1"}},
    }
    assert api.post(DEPLOYMENTS, json=obj).status_code == 201
    async with reconciling(plane) as reconciler:

        async def message() -> str:
            await reconciler.reconcile(KEY)
            conditions = api.get(f"{DEPLOYMENTS}/fraud").json()["status"]["conditions"]
            return next(c["message"] for c in conditions if c["type"] == "Reconciling")

        await message()
        await message()
        pod = _name_of_the_pod(api)
        _fetches(api, pod)
        kubelet.log = b'{"message": "downloading", "bytes": 1073741824, "of": 4294967296, "percent": 25.0}\n'
        assert (await message()).endswith(": 1.0 of 4.0 GiB.")
        path, _, query = kubelet.asked[0].partition("?")
        assert path == f"/containerLogs/default/{pod}/fetch"
        assert set(query.split("&")) == {"tailLines=3", "limitBytes=4096"}

        kubelet.log = b"\xff\x00 not ours\n"
        assert (await message()).endswith("Z.")

        # A node that is away: the API server says so, and the rest of the status is told all the same.
        told = api.patch("/api/v1/nodes/node/status", json={"status": _PORT_OF_NOBODY}, headers=MERGE)
        assert told.status_code == 200
        assert (await message()).endswith("Z.")


_PORT_OF_NOBODY: dict[str, Any] = {"daemonEndpoints": {"kubeletEndpoint": {"Port": 9}}}


def _name_of_the_pod(api: ApiServer) -> str:
    for _ in range(300):
        if pods := api.get(PODS).json()["items"]:
            return pods[0]["metadata"]["name"]
        time.sleep(0.1)
    raise AssertionError("no pod was made in 30 s")


def _fetches(api: ApiServer, pod: str) -> None:
    """What scheduler and kubelet write once the init container runs."""
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod},
        "target": {"kind": "Node", "name": "node"},
    }
    assert api.post(f"{PODS}/{pod}/binding", json=binding).status_code == 201
    running = {
        "name": "fetch",
        "image": "runtime:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"running": {"startedAt": "2026-05-04T09:00:00Z"}},
    }
    status = {"phase": "Pending", "initContainerStatuses": [running]}
    told = api.patch(f"{PODS}/{pod}/status", json={"status": status}, headers=MERGE)
    assert told.status_code == 200, told.text
