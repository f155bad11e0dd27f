"""All children of a ModelDeployment as readable YAML, and what must hold for them whatever it says.

`PILOTAGE_UPDATE_GOLDEN=1 pytest tests/operator/core/test_manifests.py` writes the YAML anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilotage_operator.api.modeldeployment import parse, validate
from pilotage_operator.core import revisions
from pilotage_operator.core.children.pod_template import pod_template
from pilotage_operator.core.install import Install
from pilotage_operator.core.plan import Apply, plan
from pilotage_operator.core.pods import Pod
from pilotage_operator.core.snapshot import Snapshot
from pilotage_runtime.settings import ServeSettings
from tests.operator.api.examples import fullest, smallest
from tests.operator.core.world import START

GOLDEN = Path(__file__).parent / "golden"
STABLE, CANARY, IMAGE = "fraud-stable", "fraud-canary", "registry.example/pilotage-runtime:1"
INSTALL = Install(
    runtime_image=IMAGE,
    monitoring_labels={"release": "prometheus"},
    service_monitors=True,
    domain="models.example.com",
    default_gateways=("istio-system/public",),
    allowed_hosts={"*": ("*.example.com",)},
)
DIGEST = "sha256:" + "a" * 64


def rendered(obj: dict[str, Any], *, weight: int | None = None) -> list[dict[str, Any]]:
    """The children of an object that serves, beside a canary of this weight if one is given."""
    given = parse(obj)
    inputs = revisions.inputs_of(obj["spec"])
    roles = [STABLE] if weight is None else [STABLE, CANARY]
    children: dict[tuple[str, str], Any] = {}
    pods: list[Pod] = []
    for number, name in enumerate(roles, 1):
        # The canary's content is the spec's; the stable revision runs other content beside it.
        content = inputs if name == roles[-1] else {"model": {"uri": "s3://models/fraud/6"}}
        made = revisions.Revision(name, content, pod_template(given, name, INSTALL), number=number)
        children["ControllerRevision", name] = revisions.controller_revision(made, "fraud")
        pods.append(Pod(f"{name}-1", name, START, ready=True, digest=DIGEST))
    status: dict[str, Any] = {"stable": {"revision": STABLE}}
    if weight is not None:
        status["canary"] = {"revision": CANARY, "weight": weight}
        status["rollout"] = {"id": "1", "stableReplicas": 3, "steps": [{"weight": 50}]}
    deployment = parse({**obj, "status": status})
    snapshot = Snapshot(START, deployment, inputs, INSTALL, children=children, pods=tuple(pods))
    actions = plan(snapshot).actions
    applied = [dict(action.manifest) for action in actions if isinstance(action, Apply)]
    return [children["ControllerRevision", name] for name in roles] + applied


def of_kind(kind: str, manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pod_spec(obj: dict[str, Any]) -> dict[str, Any]:
    return of_kind("Deployment", rendered(obj))[0]["spec"]["template"]["spec"]


def served_in_full(**rollout: Any) -> dict[str, Any]:
    obj = fullest()
    obj["spec"]["rollout"] = {"minReadySeconds": 0, **rollout}
    return obj


def without_repetition(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A ControllerRevision stores the Deployment's pod template; once is enough to read."""
    templates = {m["metadata"]["name"]: m["spec"]["template"] for m in of_kind("Deployment", manifests)}
    for stored in of_kind("ControllerRevision", manifests):
        assert stored["data"].pop("template") == templates[stored["metadata"]["name"]]
    return manifests


class _Readable(yaml.SafeDumper):
    """Without anchors: every manifest can be read by itself."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "obj", "weight"), [("smallest", smallest(), None), ("fullest", served_in_full(), 50)]
)
def test_the_children_are_those_of_the_golden_file(
    name: str, obj: dict[str, Any], weight: int | None
) -> None:
    path = GOLDEN / f"{name}.yaml"
    validate(obj)
    text = yaml.dump_all(
        without_repetition(rendered(obj, weight=weight)), Dumper=_Readable, sort_keys=False, width=110
    )
    if os.environ.get("PILOTAGE_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert path.exists(), f"no {path.name}: write it with PILOTAGE_UPDATE_GOLDEN=1, and read it"
    assert text == path.read_text()


@pytest.mark.parametrize("obj", [smallest(), fullest()], ids=["smallest", "fullest"])
def test_pods_keep_to_the_restricted_pod_security_standard(obj: dict[str, Any]) -> None:
    spec = pod_spec(obj)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["initContainers"], *spec["containers"]):
        held_to = container["securityContext"]
        assert held_to["allowPrivilegeEscalation"] is False
        assert held_to["readOnlyRootFilesystem"] is True
        assert held_to["capabilities"] == {"drop": ["ALL"]}
        assert not held_to.get("privileged")
        assert all("hostPort" not in port for port in container.get("ports", []))
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim", "image"}


def test_pods_get_no_service_account_token() -> None:
    assert pod_spec(fullest())["automountServiceAccountToken"] is False


def mounting(spec: dict[str, Any], volume: str) -> set[str]:
    """The containers that mount a volume."""
    containers = (*spec["initContainers"], *spec["containers"])
    return {
        each["name"] for each in containers if volume in {mount["name"] for mount in each["volumeMounts"]}
    }


def test_credentials_are_in_the_fetching_container_only_and_keys_in_the_serving_one() -> None:
    spec = pod_spec(fullest())
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    assert secrets == {
        "credentials": {"secretName": "store-keys", "optional": True},
        "decryption-keys": {"secretName": "model-keys", "optional": True},
    }
    assert mounting(spec, "credentials") == {"fetch"}
    assert mounting(spec, "decryption-keys") == {"inference"}
    assert "secretKeyRef" not in str(spec)
    assert "CREDENTIALS" not in str(spec["containers"])
    assert "DECRYPTION" not in str(spec["initContainers"])


def test_an_image_is_mounted_into_the_fetching_container_and_pulled_with_its_own_secret() -> None:
    obj = smallest()
    obj["spec"]["model"] = {
        "uri": "oci://registry.example:5000/fraud:7@" + DIGEST,
        "credentialsSecretRef": {"name": "pull"},
    }
    validate(obj)
    spec = pod_spec(obj)
    (volume,) = (volume for volume in spec["volumes"] if "image" in volume)
    assert volume["image"] == {"reference": f"registry.example:5000/fraud:7@{DIGEST}"}
    assert mounting(spec, volume["name"]) == {"fetch"}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert all("secret" not in volume for volume in spec["volumes"])


@pytest.mark.parametrize(
    ("uri", "cached"),
    [
        ("s3://models/fraud", True), ("https://models.example.com/fraud", True), ("hf://acme/fraud", True),
        ("pvc://claim/fraud", False), ("oci://registry.example/fraud", False),
    ],
)  # fmt: skip
def test_a_nodes_cache_is_for_what_comes_from_afar_and_each_namespace_has_its_own(
    uri: str, cached: bool
) -> None:
    obj = smallest()
    obj["spec"]["model"] = {"uri": uri}
    install = Install(runtime_image=IMAGE, cache_host_path="/var/cache/models", cache_max_bytes=9)
    spec = pod_template(parse(obj), "fraud-1", install)["spec"]
    volumes = [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert bool(volumes) == cached
    if cached:
        assert volumes[0]["hostPath"] == {"path": "/var/cache/models", "type": "DirectoryOrCreate"}
        assert mounting(spec, "cache") == {"fetch"}
        (mount,) = (m for m in spec["initContainers"][0]["volumeMounts"] if m["name"] == "cache")
        assert mount["subPath"] == "default"
        told = {variable["name"]: variable["value"] for variable in spec["initContainers"][0]["env"]}
        assert told["PILOTAGE_CACHE_DIR"] == mount["mountPath"]
        assert told["PILOTAGE_CACHE_MAX_BYTES"] == "9"


def test_a_claim_is_mounted_read_only_and_in_the_fetching_container_only() -> None:
    obj = smallest()
    obj["spec"]["model"] = {"uri": "pvc://models/fraud/7"}
    spec = pod_spec(obj)
    (volume,) = (volume for volume in spec["volumes"] if "persistentVolumeClaim" in volume)
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert all(mount["name"] != volume["name"] for mount in spec["containers"][0]["volumeMounts"])


@pytest.mark.parametrize(
    ("given", "resources"),
    [
        ({"requests": {"memory": "4Gi"}}, {"requests": {"memory": "4Gi"}, "limits": {"memory": "4Gi"}}),
        ({"limits": {"cpu": "100m"}}, {"requests": {"cpu": "100m"}, "limits": {"cpu": "100m"}}),
        ({"limits": {"memory": "128Mi"}}, {"requests": {"memory": "128Mi"}, "limits": {"memory": "128Mi"}}),
        (
            {"requests": {"cpu": "2"}},
            {"requests": {"cpu": "2", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        ),
    ],
)
def test_a_default_never_contradicts_what_was_asked_for(given: dict, resources: dict) -> None:
    """The API server refuses a pod whose request is above its limit, and the user asked for no such thing."""
    obj = smallest()
    obj["spec"]["runtime"] = {"resources": given}
    found = pod_spec(obj)["containers"][0]["resources"]
    for part, amounts in resources.items():
        assert amounts.items() <= found[part].items()


def serving_environment(runtime: dict[str, Any]) -> dict[str, str]:
    """The variables of the container that serves, as Kubernetes sets them."""
    obj = smallest()
    obj["spec"]["runtime"] = runtime
    validate(obj)
    variables = pod_spec(obj)["containers"][0]["env"]
    assert all("$(" not in variable["value"].replace("$$", "") for variable in variables)
    return {variable["name"]: variable["value"].replace("$$", "$") for variable in variables}


def test_a_variable_reaches_the_model_as_it_is_written() -> None:
    """Kubernetes would put other variables in the place of $(NAME)."""
    written = {"RULE": "^a$|$(HOME)|$$b", "PLAIN": "x"}
    told = serving_environment({"env": [{"name": name, "value": value} for name, value in written.items()]})
    assert {name: told[name] for name in written} == written


def payload_log(**spec: Any) -> ServeSettings:
    """What the runtime makes of the variables that a payload log is rendered to."""
    told = serving_environment({"payloadLog": {"url": "http://broker.shop/payloads", **spec}})
    names = {f"PILOTAGE_{name.upper()}": name for name in ServeSettings.model_fields if "payload" in name}
    return ServeSettings.model_validate({names[n]: told[n] for n in names if n in told})


def test_payloads_are_logged_only_where_it_is_asked_for() -> None:
    assert "PAYLOAD" not in str(serving_environment({}))
    read = payload_log()
    assert (read.payload_log_url, read.payload_log_sample, read.payload_log_redact) == (
        "http://broker.shop/payloads",
        1,
        "",
    )


@pytest.mark.parametrize(
    ("percent", "share"), [(100, 1), (12.5, 0.125), (0.07, 0.0007), (1e-7, 1e-9), (0, 0)]
)
def test_the_runtime_gets_the_share_that_the_percentage_says(percent: float, share: float) -> None:
    assert payload_log(samplePercent=percent).payload_log_sample == share


def test_the_names_to_redact_reach_the_runtime_as_they_are_written() -> None:
    names = ["age", "date of birth", "$(HOME)", "a$$b"]
    assert payload_log(redact=names).payload_log_redact.split(",") == names


@pytest.mark.parametrize("obj", [smallest(), fullest()], ids=["smallest", "fullest"])
def test_children_are_labelled_so_that_they_are_found(obj: dict[str, Any]) -> None:
    for manifest in rendered(obj, weight=10):
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "pilotage"
        assert labels["pilotage.dev/modeldeployment"] == "fraud"


def test_a_deployment_has_no_size_of_its_own_under_an_autoscaler() -> None:
    manifests = rendered(fullest(), weight=50)
    assert all("replicas" not in deployment["spec"] for deployment in of_kind("Deployment", manifests))
    scalers = of_kind("HorizontalPodAutoscaler", manifests)
    assert {scaler["metadata"]["name"] for scaler in scalers} == {STABLE, CANARY}
    for scaler in scalers:
        (metric,) = scaler["spec"]["metrics"]
        assert metric["containerResource"]["container"] == "inference"


def test_a_fixed_size_has_no_autoscaler() -> None:
    obj = smallest()
    obj["spec"]["scaling"] = {"replicas": 3}
    manifests = rendered(obj)
    assert of_kind("HorizontalPodAutoscaler", manifests) == []
    assert [manifest["spec"]["replicas"] for manifest in of_kind("Deployment", manifests)] == [3]
