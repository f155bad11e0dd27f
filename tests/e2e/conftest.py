"""The whole stack, once for all tests: a cluster with Pilotage installed by its chart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from demo import site as sites
from demo.site import NAMESPACE, Site
from pilotage_dev.cluster import choose_cluster
from pilotage_dev.cluster import cluster as cluster_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The rights are held against all that was done: last."""
    items.sort(key=lambda item: item.path.stem == "test_rights")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    chosen = choose_cluster()
    print(f"\ncluster: {chosen.why}")
    cluster = cluster_of(chosen.choice)
    try:
        yield sites.prepare(cluster, print)
    finally:
        cluster.down()


@pytest.fixture
def fraud(site: Site) -> Iterator[dict[str, Any]]:
    """The demonstration's ModelDeployment, on version 1 and serving."""
    manifest = sites.example()
    manifest["spec"]["rollout"]["steps"] = [{"weight": 20, "holdSeconds": 10}]
    manifest["spec"]["rollout"] |= {"bakeSeconds": 10, "revisionHistoryLimit": 1}
    site.apply(manifest)
    site.ready("fraud")
    yield manifest
    site.kubectl("delete", "modeldeployment", "fraud", "-n", NAMESPACE, "--wait")


@pytest.fixture(autouse=True)
def explain(site: Site, request: pytest.FixtureRequest) -> Iterator[None]:
    """After a failure, show what the operator said last."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        print(site.try_kubectl("logs", "-n", sites.OPERATOR_NAMESPACE, "deploy/pilotage", "--tail=30").stdout)
