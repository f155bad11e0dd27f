"""Where the API server keeps each kind that the operator reads or writes."""

from __future__ import annotations

from dataclasses import dataclass

from pilotage_operator.core import names


@dataclass(frozen=True)
class Resource:
    """A kind's place in the API."""

    kind: str
    api_version: str
    plural: str

    @property
    def root(self) -> str:
        return f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"

    def path(self, namespace: str | None, name: str | None = None) -> str:
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{self.root}{scope}/{self.plural}" + (f"/{name}" if name else "")


MODEL_DEPLOYMENT = Resource(names.KIND, names.API_VERSION, names.PLURAL)
POD = Resource("Pod", "v1", "pods")
LEASE = Resource("Lease", "coordination.k8s.io/v1", "leases")
EVENT = Resource("Event", "v1", "events")

BUILT_IN = (
    Resource("Deployment", "apps/v1", "deployments"),
    Resource("Service", "v1", "services"),
    Resource("ConfigMap", "v1", "configmaps"),
    Resource("HorizontalPodAutoscaler", "autoscaling/v2", "horizontalpodautoscalers"),
    Resource("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    Resource("ControllerRevision", "apps/v1", "controllerrevisions"),
)
ISTIO = (
    Resource("VirtualService", "networking.istio.io/v1", "virtualservices"),
    Resource("DestinationRule", "networking.istio.io/v1", "destinationrules"),
)
PROMETHEUS_RULE = Resource("PrometheusRule", "monitoring.coreos.com/v1", "prometheusrules")
SERVICE_MONITOR = Resource("ServiceMonitor", "monitoring.coreos.com/v1", "servicemonitors")

CHILDREN = {r.kind: r for r in (*BUILT_IN, *ISTIO, PROMETHEUS_RULE, SERVICE_MONITOR)}
