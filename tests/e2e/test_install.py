"""The install as its owner meets it: its own test, an upgrade, an operator that is away."""

from __future__ import annotations

from typing import Any

from demo.site import OPERATOR_NAMESPACE, Site
from tests.e2e.seen import eventually, pods, small

CHILDREN = (
    "deployments,services,configmaps,horizontalpodautoscalers,poddisruptionbudgets,controllerrevisions,"
    "virtualservices,destinationrules,prometheusrules,pods"
)


def test_helm_test_passes(site: Site) -> None:
    assert "Succeeded" in site.helm("test", "--logs")


def test_an_operator_with_other_defaults_restarts_no_pod(site: Site, fraud: dict[str, Any]) -> None:
    eventually(lambda: len(pods(site)) == 2, seconds=60)  # the autoscaler has made the second
    before, image = pods(site), site.status("fraud")["stable"]["runtimeImage"]
    site.install("runtime.image.tag=another", "models.maxBytes=1000000")
    try:
        # The new operator has looked at it: it sees a new generation.
        site.edit("fraud", {"rollout": {"bakeSeconds": 11}})
        generation = (site.get("modeldeployment", "fraud") or {})["metadata"]["generation"]
        eventually(lambda: site.status("fraud")["observedGeneration"] == generation)
        assert pods(site) == before
        assert site.status("fraud")["stable"]["runtimeImage"] == image
    finally:
        site.install()


def test_deletion_leaves_nothing_behind_also_while_the_operator_is_away(site: Site) -> None:
    names = ("with-operator", "without-operator")
    for name in names:
        site.apply(small(name))
    for name in names:
        site.ready(name)
        assert "finalizers" not in (site.get("modeldeployment", name) or {})["metadata"]
    _delete(site, "with-operator")
    site.kubectl("scale", "deployment/pilotage", "-n", OPERATOR_NAMESPACE, "--replicas=0")
    site.kubectl("wait", "pod", "-n", OPERATOR_NAMESPACE, "--all", "--for=delete", "--timeout=60s")
    try:
        _delete(site, "without-operator")
    finally:
        site.kubectl("scale", "deployment/pilotage", "-n", OPERATOR_NAMESPACE, "--replicas=1")
        site.kubectl("rollout", "status", "deployment/pilotage", "-n", OPERATOR_NAMESPACE, "--timeout=60s")


def _delete(site: Site, name: str) -> None:
    site.kubectl("delete", "modeldeployment", name, "-n", "shop", "--wait")
    label = f"pilotage.dev/modeldeployment={name}"
    eventually(lambda: site.list(CHILDREN, labels=label) == [], seconds=90)
