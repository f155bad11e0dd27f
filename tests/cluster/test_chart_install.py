"""The chart on the real API server: taken whole, upgraded with its CRD, gone without its users' objects."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pilotage_operator.api.crd import crd
from tests.chart.helm import CHART, Helm
from tests.cluster.api_server import DEFINITIONS, DEPLOYMENTS, STRICT, ApiServer, refusal
from tests.cluster.parts import control_plane_in, helm_binary
from tests.operator.api.examples import smallest, with_value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pilotage_dev.control_plane import ControlPlane

NAME = "modeldeployments.pilotage.dev"
OPERATOR = "system:serviceaccount:pilotage-system:pilotage"


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One of its own: the chart brings the CRD, which other tests install by themselves."""
    with control_plane_in(tmp_path_factory.mktemp("chart")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bare(control_plane: ControlPlane) -> Iterator[ApiServer]:
    with ApiServer(control_plane.kubeconfig) as server:
        yield server


class Release:
    """The chart's release `pilotage`, on a cluster without a node: nothing to wait for."""

    def __init__(self, kubeconfig: Path) -> None:
        self._helm = Helm(helm_binary())
        self._to = ["--kubeconfig", str(kubeconfig), "--namespace", "pilotage-system"]

    def upgrade(self, chart: Path, *values: str) -> str:
        flags = [*self._to, "--create-namespace", *self._helm.flags(*values)]
        return self._helm.run("upgrade", "--install", "pilotage", str(chart), *flags)

    def uninstall(self) -> None:
        self._helm.run("uninstall", "pilotage", *self._to)


@pytest.fixture
def release(control_plane: ControlPlane) -> Release:
    return Release(control_plane.kubeconfig)


@pytest.fixture
def older_chart(tmp_path: Path) -> Path:
    """The chart as it was before ModelDeployments had a spec.slo."""
    older = shutil.copytree(CHART, tmp_path / "pilotage")
    definition = crd()
    del definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
        "slo"
    ]
    (older / "files" / "modeldeployments.yaml").write_text(yaml.safe_dump(definition))
    return older


def _may(api: ApiServer, verb: str, group: str, resource: str, namespace: str = "shop", **more: str) -> bool:
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace, **more}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": OPERATOR, "resourceAttributes": attributes},
    }
    answer = api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", json=review)
    assert answer.status_code == 201, answer.text
    return answer.json()["status"]["allowed"]


def _definition(api: ApiServer) -> dict[str, Any]:
    answer = api.get(f"{DEFINITIONS}/{NAME}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_upgrade_brings_the_new_crd_and_an_uninstall_keeps_what_users_made(
    bare: ApiServer, release: Release, older_chart: Path
) -> None:
    # Given the release before, with a team's object
    told = release.upgrade(older_chart)
    assert "serves ModelDeployments in all namespaces" in told
    assert "serves no VirtualService" in told
    assert "serves no PodMonitor" in told
    bare.establish(crd())
    assert bare.post(DEPLOYMENTS, json=smallest(), params=STRICT).status_code == 201
    with_slo = with_value("spec.slo.latency", {"thresholdMilliseconds": 250})
    assert 'unknown field "spec.slo"' in refusal(bare.dry_run(with_slo))

    # When the chart is upgraded
    release.upgrade(CHART)

    # Then the API server knows the new field, and the object is still there
    schema = _definition(bare)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert "slo" in schema["properties"]["spec"]["properties"]
    assert bare.get(f"{DEPLOYMENTS}/fraud").status_code == 200

    # And without the release, object and CRD stay; the operator's rights do not
    assert _may(bare, "list", "pilotage.dev", "modeldeployments")
    release.uninstall()
    # A CRD on its way out still serves its objects for a while.
    assert "deletionTimestamp" not in _definition(bare)["metadata"]
    assert bare.get(f"{DEPLOYMENTS}/fraud").status_code == 200
    assert not _may(bare, "list", "pilotage.dev", "modeldeployments")

    # And the next release takes the CRD that was kept
    release.upgrade(CHART)
    release.uninstall()


def test_the_operators_account_may_what_it_needs_and_no_more(bare: ApiServer, release: Release) -> None:
    release.upgrade(CHART)
    try:
        assert _may(bare, "patch", "pilotage.dev", "modeldeployments", subresource="status")
        assert _may(bare, "create", "networking.istio.io", "virtualservices")
        assert _may(bare, "list", "", "pods")
        assert _may(bare, "get", "", "pods", subresource="log")
        lease = {"namespace": "pilotage-system", "name": "pilotage-operator"}
        assert _may(bare, "update", "coordination.k8s.io", "leases", **lease)
        assert not _may(bare, "update", "coordination.k8s.io", "leases", "pilotage-system", name="other")
        assert not _may(bare, "patch", "pilotage.dev", "modeldeployments")
        assert not _may(bare, "delete", "pilotage.dev", "modeldeployments")
        assert not any(_may(bare, verb, "", "secrets") for verb in ("get", "list", "watch"))
        assert not _may(bare, "create", "", "pods", subresource="exec")
        assert not _may(bare, "create", "", "pods", subresource="portforward")
    finally:
        release.uninstall()


def test_with_named_namespaces_it_may_nothing_elsewhere(bare: ApiServer, release: Release) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    assert bare.post("/api/v1/namespaces", json=namespace).status_code == 201
    release.upgrade(CHART, 'watchNamespaces=["shop"]')
    try:
        assert _may(bare, "patch", "apps", "deployments", "shop")
        assert not _may(bare, "patch", "apps", "deployments", "bank")
        assert not _may(bare, "list", "pilotage.dev", "modeldeployments", "")
        assert not _may(bare, "list", "apiextensions.k8s.io", "customresourcedefinitions", "")
    finally:
        release.uninstall()
