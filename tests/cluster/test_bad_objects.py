"""Bad input that the API server itself refuses, in words that say what to mend."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.api_server import DEPLOYMENTS, DRY_RUN, STRICT, refusal
from tests.operator.api.examples import RENAMED, RULE_EXAMPLES, RuleExample, fullest, smallest, with_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotage_dev.control_plane import ControlPlane
    from tests.cluster.api_server import ApiServer


@pytest.fixture
def stored(api: ApiServer) -> Iterator[dict[str, Any]]:
    """A minimal object that is really there."""
    answer = api.post(DEPLOYMENTS, json=smallest(), params=STRICT)
    assert answer.status_code == 201, answer.text
    yield answer.json()
    assert api.delete(f"{DEPLOYMENTS}/fraud").status_code == 200


def test_the_smallest_and_the_fullest_object_are_accepted(api: ApiServer) -> None:
    for good in (smallest(), fullest()):
        answer = api.dry_run(good)
        assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("example", RULE_EXAMPLES, ids=lambda example: example.id)
def test_a_rule_lets_the_good_pass_and_refuses_the_bad_in_its_own_words(
    api: ApiServer, example: RuleExample
) -> None:
    accepted = api.dry_run(with_value(example.path, example.accepted))
    assert accepted.status_code == 201, accepted.text
    said = refusal(api.dry_run(with_value(example.path, example.refused)))
    assert example.message in said
    if example.path.startswith("spec"):
        assert example.path in said


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.modle", {"uri": "s3://models/a"}, 'unknown field "spec.modle"'),
        ("spec.rollout.stepps", [], 'unknown field "spec.rollout.stepps"'),
        ("spec.runtime.hostNetwork", True, 'unknown field "spec.runtime.hostNetwork"'),
        ("spec.model.uri", None, "spec.model.uri: Required value"),
        (
            "spec.model.format",
            "PMML",
            'spec.model.format: Unsupported value: "PMML": supported values: "ONNX", "TorchScript", "TorchExport"',
        ),
        (
            "spec.model.format",
            "Pickle",
            "formats Pickle, Joblib and Python run code of the model's files: state trusted: true and the digest",
        ),
        ("spec.scaling.replicas", 0, "spec.scaling.replicas in body should be greater than or equal to 1"),
        ("spec.scaling.replicas", "3", 'spec.scaling.replicas in body must be of type integer: "string"'),
        ("spec.routing.timeoutSeconds", 301, "timeoutSeconds in body should be less than or equal to 300"),
        ("spec.routing.router", "GatewayAPI", 'Unsupported value: "GatewayAPI": supported values: "Istio"'),
        ("spec.rollout.steps", [], "spec.rollout.steps in body should have at least 1 items"),
        ("spec.rollout.canaryWeight", 101, "canaryWeight in body should be less than or equal to 100"),
        ("spec.slo.latency", {"thresholdMilliseconds": 300.5}, "must be of type integer"),
        (
            "spec.slo.latency",
            {"thresholdMilliseconds": 333},
            'Unsupported value: 333: supported values: "5", "10"',
        ),
        (
            "spec.slo.latency",
            {"objectivePercent": 99},
            "spec.slo.latency.thresholdMilliseconds: Required value",
        ),
        (
            "spec.slo.availability",
            {"objectivePercent": 100},
            "objectivePercent in body should be less than 100",
        ),
        ("spec.routing.hosts", ["a.b", "a.b"], 'spec.routing.hosts[1]: Duplicate value: "a.b"'),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(
    api: ApiServer, path: str, value: Any, message: str
) -> None:
    assert message in refusal(api.dry_run(with_value(path, value)))


def test_the_models_name_cannot_change_once_it_is_there(api: ApiServer, stored: dict[str, Any]) -> None:
    url = f"{DEPLOYMENTS}/fraud"
    stored["spec"]["model"]["name"] = "other"
    assert RENAMED in refusal(api.put(url, json=stored, params=DRY_RUN))
    stored["spec"]["model"]["name"] = "fraud"  # what it is called without a name of its own
    answer = api.put(url, json=stored, params=DRY_RUN)
    assert answer.status_code == 200, answer.text


def test_from_the_defaults_one_can_go_to_a_fixed_size_and_back(
    api: ApiServer, stored: dict[str, Any]
) -> None:
    """A default that was stored on creation must not stand in the way of a later apply."""
    assert stored["spec"]["scaling"] == {}
    headers = {"Content-Type": "application/apply-patch+yaml"}
    for scaling in ({"replicas": 3}, {"minReplicas": 1, "maxReplicas": 2}, {"replicas": 1}):
        body = with_value("spec.scaling", scaling)
        params = STRICT | {"fieldManager": "team"}
        answer = api.patch(f"{DEPLOYMENTS}/fraud", json=body, params=params, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["spec"]["scaling"] == scaling


def test_a_fixed_size_is_scaled_by_the_scale_subresource(api: ApiServer, stored: dict[str, Any]) -> None:
    stored["spec"]["scaling"] = {"replicas": 2}
    assert api.put(f"{DEPLOYMENTS}/fraud", json=stored, params=STRICT).status_code == 200
    merge = {"Content-Type": "application/merge-patch+json"}
    scale = f"{DEPLOYMENTS}/fraud/scale"
    assert api.patch(scale, json={"spec": {"replicas": 5}}, headers=merge).status_code == 200
    assert api.get(f"{DEPLOYMENTS}/fraud").json()["spec"]["scaling"] == {"replicas": 5}
    assert "greater than or equal to 1" in refusal(
        api.patch(scale, json={"spec": {"replicas": 0}}, headers=merge)
    )


def test_a_write_of_the_spec_leaves_the_status_alone_and_the_other_way_round(
    api: ApiServer, stored: dict[str, Any]
) -> None:
    url = f"{DEPLOYMENTS}/fraud"
    assert "status" not in api.put(url, json=stored | {"status": {"phase": "Stable"}}).json()
    written = stored | {"status": {"phase": "Holding"}, "spec": {"model": {"uri": "s3://models/other"}}}
    answer = api.put(f"{url}/status", json=written, params=STRICT).json()
    assert answer["status"]["phase"] == "Holding"
    assert answer["spec"]["model"]["uri"] == "s3://models/fraud/7"


@pytest.mark.usefixtures("stored")
def test_kubectl_lists_its_columns_and_explains_its_fields(control_plane: ControlPlane) -> None:
    def kubectl(*arguments: str) -> str:
        command = [str(control_plane.kubectl), "--kubeconfig", str(control_plane.kubeconfig), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    for name in ("mdep", "ml"):
        header, row = kubectl("get", name).splitlines()
        columns = ["NAME", "READY", "PHASE", "STABLE", "CANARY", "WEIGHT", "REPLICAS", "AGE"]
        assert (header.split(), row.split()[0]) == (columns, "fraud")
    explained = " ".join(kubectl("explain", "mdep.spec.rollout").split())
    assert "How long the old revision stays warm" in explained
