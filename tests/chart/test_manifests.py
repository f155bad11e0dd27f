"""What the chart installs: restricted pods, least rights, monitors, the CRD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pilotage_operator.api.crd import crd
from pilotage_operator.api.modeldeployment import validate
from tests.chart.helm import CHART, of_kind, the

if TYPE_CHECKING:
    from tests.chart.helm import Helm

WRITTEN = (
    "services",
    "configmaps",
    "deployments",
    "controllerrevisions",
    "horizontalpodautoscalers",
    "poddisruptionbudgets",
    "virtualservices",
    "destinationrules",
    "prometheusrules",
)


def _pods(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pods = [pod["spec"] for pod in of_kind(manifests, "Pod")]
    return pods + [d["spec"]["template"]["spec"] for d in of_kind(manifests, "Deployment")]


def _rules(role: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for rule in role["rules"]:
        for resource in rule["resources"]:
            found.setdefault(resource, set()).update(rule["verbs"])
    return found


def test_every_pod_keeps_the_restricted_standard(helm: Helm) -> None:
    pods = _pods(helm.render())
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_there_is_one_operator_at_a_time_and_it_is_watched(helm: Helm) -> None:
    deployment = the(helm.render(), "Deployment")["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8080, "metrics": 9090}


@pytest.mark.parametrize("values", [(), ('watchNamespaces=["shop"]',), ("monitoring.serviceMonitors=true",)])
def test_no_role_of_the_operator_reads_secrets_or_names_a_wildcard(
    helm: Helm, values: tuple[str, ...]
) -> None:
    manifests = helm.render(*values)
    roles = of_kind(manifests, "Role") + of_kind(manifests, "ClusterRole")
    assert len(roles) == 4
    for rule in [rule for role in roles for rule in role["rules"]]:
        assert "secrets" not in rule["resources"]
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_the_operator_reads_pods_tells_events_and_writes_children_and_status(helm: Helm) -> None:
    may = _rules(the(helm.render(), "ClusterRole", "pilotage-system-pilotage"))
    assert may.pop("modeldeployments") == {"get", "list", "watch"}
    assert may.pop("modeldeployments/status") == {"patch"}
    assert may.pop("pods") == {"list", "watch"}
    assert may.pop("pods/log") == {"get"}
    assert may.pop("events") == {"create"}
    assert may.pop("customresourcedefinitions") == {"list", "watch"}
    assert set(may) == set(WRITTEN)
    for resource, verbs in may.items():
        assert {"create", "patch", "list", "watch"} <= verbs, resource
        assert "update" not in verbs, resource


def test_an_install_may_withhold_the_logs_of_pods(helm: Helm) -> None:
    role = the(helm.render("rbac.podLogs=false"), "ClusterRole", "pilotage-system-pilotage")
    assert not [resource for resource in _rules(role) if resource.startswith("pods/")]
    assert _rules(role)["pods"] == {"list", "watch"}


def test_in_named_namespaces_it_has_roles_there_and_none_in_the_cluster(helm: Helm) -> None:
    manifests = helm.render('watchNamespaces=["shop","bank"]', "rbac.userRoles=false")
    assert of_kind(manifests, "ClusterRole") == of_kind(manifests, "ClusterRoleBinding") == []
    roles = {role["metadata"]["namespace"]: role for role in of_kind(manifests, "Role")}
    assert set(roles) == {"shop", "bank", "pilotage-system"}
    assert set(_rules(roles["shop"])) >= set(WRITTEN)
    for binding in of_kind(manifests, "RoleBinding"):
        (subject,) = binding["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": "pilotage", "namespace": "pilotage-system"}


def test_it_holds_its_own_lease_and_no_other(helm: Helm) -> None:
    role = the(helm.render(), "Role", "pilotage-lease")
    named = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert [rule["resourceNames"] for rule in named] == [["pilotage-operator"]]
    assert [rule["verbs"] for rule in role["rules"] if rule not in named] == [["create"]]


def test_service_monitors_are_written_only_where_the_install_asks_for_them(helm: Helm) -> None:
    role = the(helm.render("monitoring.serviceMonitors=true"), "ClusterRole", "pilotage-system-pilotage")
    assert _rules(role)["servicemonitors"] == {"get", "list", "create", "patch"}


def test_the_clusters_own_roles_get_their_share(helm: Helm) -> None:
    manifests = helm.render()
    view = the(manifests, "ClusterRole", "pilotage-system-pilotage-view")
    edit = the(manifests, "ClusterRole", "pilotage-system-pilotage-edit")
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "true"
    assert "modeldeployments/status" not in _rules(edit), "only the operator writes status"


def test_one_pod_monitor_scrapes_all_models_with_the_labels_of_their_pods(helm: Helm) -> None:
    manifests = helm.render('monitoring={"labels":{"release":"kps"},"scrapeInterval":"5s"}')
    monitor = the(manifests, "PodMonitor", "pilotage-models")
    assert monitor["metadata"]["labels"]["release"] == "kps"
    assert monitor["spec"]["selector"] == {
        "matchExpressions": [{"key": "pilotage.dev/modeldeployment", "operator": "Exists"}]
    }
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["interval"]) == ("metrics", "5s")
    assert "honorLabels" not in endpoint, "namespace and revision come from the target, not from the image"
    assert [relabeling["targetLabel"] for relabeling in endpoint["relabelings"]] == [
        "modeldeployment",
        "revision",
    ]
    assert the(manifests, "PodMonitor", "pilotage")["metadata"]["labels"]["release"] == "kps"


def test_models_are_scraped_in_the_watched_namespaces_only(helm: Helm) -> None:
    monitor = the(helm.render('watchNamespaces=["shop"]'), "PodMonitor", "pilotage-models")
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["shop"]}


def test_models_are_never_scraped_twice(helm: Helm) -> None:
    manifests = helm.render("monitoring.serviceMonitors=true")
    assert [m["metadata"]["name"] for m in of_kind(manifests, "PodMonitor")] == ["pilotage"]


def test_no_monitor_is_made_where_the_cluster_knows_none_or_none_is_wanted(helm: Helm) -> None:
    assert of_kind(helm.render(apis=()), "PodMonitor") == []
    assert of_kind(helm.render("monitoring.enabled=false"), "PodMonitor") == []


def test_the_crd_is_that_of_the_models_and_is_kept(helm: Helm) -> None:
    rendered = the(helm.render(), "CustomResourceDefinition")
    assert rendered["spec"] == crd()["spec"]
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in the(helm.render("crds.keep=false"), "CustomResourceDefinition")["metadata"]
    assert of_kind(helm.render("crds.enabled=false"), "CustomResourceDefinition") == []
    assert not (CHART / "crds").exists(), "Helm never upgrades what lies there"


def test_the_toggles_add_what_they_say(helm: Helm) -> None:
    bare = helm.render()
    assert of_kind(bare, "NetworkPolicy") == of_kind(bare, "PodDisruptionBudget") == []
    full = helm.render("networkPolicy.enabled=true", "podDisruptionBudget.enabled=true")
    selector = the(full, "Deployment")["spec"]["selector"]["matchLabels"]
    assert the(full, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == selector
    assert the(full, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selector


def test_the_test_pod_is_not_taken_for_the_operator(helm: Helm) -> None:
    manifests = helm.render()
    selector = the(manifests, "Deployment")["spec"]["selector"]["matchLabels"]
    pod = the(manifests, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert not selector.items() <= pod["metadata"]["labels"].items()
    compile(pod["spec"]["containers"][0]["args"][0], "test", "exec")


def test_the_readmes_example_of_an_object_is_valid() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (example,) = yaml.safe_load(chart["annotations"]["artifacthub.io/crdsExamples"])
    assert validate(example).name == "fraud"
