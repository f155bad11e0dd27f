"""What people get wrong: each case is named in the status, nothing is half-made, and mending it is enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from demo.site import NAMESPACE, Site
from tests.e2e.seen import condition, eventually, pods, small, told, weights

ZEROS = "sha256:" + "0" * 64
MODELS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # name: what its spec.model says, then phase, reason, and what the message must name
    "missing": ({"uri": "s3://models/fraud/nowhere"}, "Failed", "NotFound", "fraud/nowhere"),
    "truncated": (
        {"uri": "s3://models/broken/truncated.onnx"},
        "Failed",
        "InvalidModel",
        "ends in the middle",
    ),
    "pickled": ({"uri": "s3://models/broken/pickle.onnx"}, "Failed", "UntrustedFormat", "pickle"),
    "text": ({"uri": "s3://models/requests/fraud.json"}, "Failed", "UnknownFormat", "fraud.json"),
    "oversized": ({"uri": "s3://models/broken/oversized.onnx"}, "Failed", "TooLarge", "33554432"),
    "wrong-digest": ({"uri": "s3://models/fraud/1", "digest": ZEROS}, "Failed", "DigestMismatch", ZEROS),
    "unreachable": (
        {"uri": "s3://models/fraud/1", "credentialsSecretRef": {"name": "closed-store"}},
        "Pending",
        "StoreUnavailable",
        "7999",
    ),
    "no-secret": (
        {"uri": "s3://models/fraud/1", "credentialsSecretRef": {"name": "nobody"}},
        "Pending",
        "CredentialsMissing",
        "AWS_ACCESS_KEY_ID",
    ),
}


@pytest.fixture(scope="module")
def started(site: Site) -> Iterator[None]:
    """All of them at once: none waits for another."""
    closed = {"AWS_ENDPOINT_URL": "http://store.model-store.svc:7999"}
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    site.apply({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "closed-store", "namespace": NAMESPACE},
        "stringData": {**keys, **closed},
    })  # fmt: skip
    site.upload("broken/oversized.onnx", bytes(33 * 2**20))
    for name, (model, *_) in MODELS.items():
        manifest = small(name)
        manifest["spec"]["model"] |= model
        site.apply(manifest)
    yield
    site.kubectl("delete", "modeldeployment", *MODELS, "-n", NAMESPACE, "--wait")


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_had_says_why(site: Site, name: str) -> None:
    _, phase, reason, named = MODELS[name]

    def explained() -> bool:
        status = site.status(name)
        ready = condition(status, "Ready")
        return status.get("phase") == phase and reason in ready["reason"] and named in ready["message"]

    try:
        eventually(explained, seconds=90)
    except AssertionError:
        raise AssertionError(json.dumps(site.status(name), indent=1)) from None
    assert condition(site.status(name), "Ready")["status"] == "False"


@pytest.mark.usefixtures("started")
def test_the_next_spec_replaces_a_first_revision_that_failed(site: Site) -> None:
    eventually(lambda: site.status("missing").get("phase") == "Failed", seconds=60)
    site.serve("missing", "fraud/1")
    assert site.ready("missing")["stable"]["readyReplicas"] == 1


def test_an_image_that_cannot_be_pulled_holds_and_rejects_nothing(site: Site, fraud: dict[str, Any]) -> None:
    stable = site.status("fraud")["stable"]["revision"]
    site.edit("fraud", {"runtime": {"image": "localhost/nowhere:1"}})
    eventually(lambda: condition(site.status("fraud"), "Ready")["reason"] == "InfrastructureFailure")
    status = site.status("fraud")
    assert status["phase"] == "Holding"
    assert "localhost/nowhere:1" in condition(status, "Ready")["message"]
    assert status["rejected"] == []
    assert weights(site) == {stable: 100}
    # Taken back by the one who wrote it, it is as if it had never been.
    site.edit("fraud", {"runtime": {"image": None}})
    site.ready("fraud")
    assert site.status("fraud")["stable"]["revision"] == stable


def test_content_that_changed_behind_its_uri_is_refused_to_new_pods_and_told(site: Site) -> None:
    site.upload("mutable/model.onnx", (site.models / "fraud/1/model.onnx").read_bytes())
    site.apply(small("mutable", "s3://models/mutable/model.onnx"))
    first = site.ready("mutable")["stable"]
    serving = pods(site, "mutable")
    # When somebody overwrites the object, and the revision is scaled up
    site.upload("mutable/model.onnx", (site.models / "fraud/2/model.onnx").read_bytes())
    site.kubectl("scale", "modeldeployment", "mutable", "-n", NAMESPACE, "--replicas=2")
    # Then the new pod never serves, the old one goes on, and the status says what happened
    eventually(
        lambda: condition(site.status("mutable"), "Ready")["reason"] == "ModelContentChanged", seconds=60
    )
    status = site.status("mutable")
    assert (status["phase"], condition(status, "Ready")["status"]) == ("Stable", "True")
    assert first["modelDigest"] in condition(status, "Ready")["message"]
    assert status["stable"]["readyReplicas"] == 1
    assert serving < pods(site, "mutable")
    assert len(told(site, "ModelContentChanged", "mutable")) == 1
    site.kubectl("delete", "modeldeployment", "mutable", "-n", NAMESPACE, "--wait")


def test_a_host_belongs_to_the_first_that_asked_until_its_routes_are_gone(site: Site) -> None:
    routing = {"hosts": ["one.example.com"], "gateways": ["istio-system/public"]}
    site.apply(small("owner", routing=routing))
    site.ready("owner")
    site.apply(small("rival", routing=routing))
    site.ready("rival")
    refused = eventually(lambda: _routed(site, "rival", "HostConflict"))
    assert "one.example.com" in refused["message"]
    assert f"{NAMESPACE}/owner" in refused["message"]
    assert "one.example.com" not in _hosts(site, "rival")
    assert "one.example.com" in _hosts(site, "owner")
    site.kubectl("delete", "modeldeployment", "owner", "-n", NAMESPACE, "--wait")
    eventually(lambda: "one.example.com" in _hosts(site, "rival"), seconds=60)
    assert _routed(site, "rival", "Routed")
    site.kubectl("delete", "modeldeployment", "rival", "-n", NAMESPACE, "--wait")


def test_an_object_that_breaks_a_rule_is_refused_and_nothing_of_it_is_made(site: Site) -> None:
    bad = small("refused", scaling={"minReplicas": 3, "maxReplicas": 2})
    done = site.try_kubectl("apply", "-f", "-", manifest=bad)
    assert done.returncode != 0
    assert "minReplicas" in done.stderr
    assert site.get("modeldeployment", "refused") is None


def _routed(site: Site, name: str, reason: str) -> dict[str, Any] | None:
    found = condition(site.status(name), "TrafficRouted")
    return found if found["reason"] == reason else None


def _hosts(site: Site, name: str) -> list[str]:
    routes = site.get("virtualservice", name)
    return routes["spec"]["hosts"] if routes else []
