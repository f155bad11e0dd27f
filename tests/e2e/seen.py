"""What these tests look at again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from demo.site import NAMESPACE, Site


def small(name: str, uri: str = "s3://models/fraud/1", **spec: Any) -> dict[str, Any]:
    """A ModelDeployment of one small pod; `spec` adds sections or replaces them."""
    return {
        "apiVersion": "pilotage.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": uri, "credentialsSecretRef": {"name": "model-store"}},
            "runtime": {"resources": {"requests": {"cpu": "50m"}}},
            "scaling": {"replicas": 1},
            "rollout": {"minReadySeconds": 1},
            **spec,
        },
    }


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [c for c in status.get("conditions", []) if c["type"] == kind]
    return found[0] if found else {"status": "", "reason": "", "message": ""}


def weights(site: Site, name: str = "fraud") -> dict[str, int]:
    """Revision → percent in the live routes."""
    routes = site.get("virtualservice", name)
    split = routes["spec"]["http"][-1]["route"] if routes else []
    return {r["destination"]["host"].split(".")[0]: r.get("weight", 100) for r in split}


def pods(site: Site, name: str = "fraud") -> set[str]:
    """The pods that are there and stay."""
    found = site.list("pods", labels=f"pilotage.dev/modeldeployment={name}")
    return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def told(site: Site, reason: str, name: str = "fraud") -> list[str]:
    """The messages of a ModelDeployment's Events of a reason."""
    selector = f"--field-selector=reason={reason},involvedObject.name={name}"
    found = json.loads(site.kubectl("get", "events", "-n", NAMESPACE, selector, "-o", "json"))
    return [event["message"] for event in found["items"]]


def eventually(true: Callable[[], Any], *, seconds: float = 30) -> Any:
    """Wait for something that is true, and give it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"it did not become true in {seconds:g} s"
        time.sleep(0.5)
    return found
