"""All that one decision may look at, the time included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from pilotage_operator.api.modeldeployment import ModelDeployment
from pilotage_operator.api.status import StatusModel
from pilotage_operator.core import names, revisions
from pilotage_operator.core.children import routes
from pilotage_operator.core.install import Features, Install
from pilotage_operator.core.pods import Failure, Pod, creation_failure
from pilotage_operator.core.revisions import Revision
from pilotage_operator.core.signals import Outage, Signals


@dataclass(frozen=True)
class Snapshot:
    """A ModelDeployment and its world at one moment."""

    now: datetime
    deployment: ModelDeployment
    inputs: Mapping[str, Any]
    """`spec.model` and `spec.runtime` as they stand in the cluster, empties dropped."""
    install: Install
    features: Features = field(default_factory=Features)
    children: Mapping[names.ObjectKey, Mapping[str, Any]] = field(
        default_factory=dict[names.ObjectKey, Mapping[str, Any]]
    )
    """Live objects that carry our owner reference."""
    strangers: frozenset[names.ObjectKey] = frozenset()
    """Names of objects of somebody else that we needed before, or that carry our label."""
    refused: Mapping[names.ObjectKey, str] = field(default_factory=dict[names.ObjectKey, str])
    """Children that the API server did not accept when they were last applied, with its words."""
    pods: tuple[Pod, ...] = ()
    signals: Signals | Outage | None = None
    host_owners: Mapping[str, str] = field(default_factory=dict[str, str])
    """Hosts that other ModelDeployments' VirtualServices hold, by NAMESPACE/NAME."""

    @property
    def status(self) -> StatusModel:
        return self.deployment.status

    @cached_property
    def history(self) -> tuple[Revision, ...]:
        stored = [m for (kind, _), m in self.children.items() if kind == "ControllerRevision"]
        return tuple(sorted(map(revisions.from_controller_revision, stored), key=lambda r: r.number))

    def revision(self, name: str | None) -> Revision | None:
        return next((r for r in self.history if r.name == name), None)

    def template_of(self, revision: str) -> Mapping[str, Any] | None:
        """What the pods of a revision are made from, whether or not its ControllerRevision is there."""
        return self._workload(revision).get("spec", {}).get("template")

    def pods_of(self, revision: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.revision == revision]

    def digest_of(self, revision: str) -> str | None:
        """The pinned digest, else what the spec gives, else what the oldest pod fetched."""
        pinned = self.children.get(("ConfigMap", names.digest_config_map(revision)))
        if pinned:
            return pinned["data"]["digest"]
        stored = self.revision(revision)
        if stored and stored.given_digest:
            return stored.given_digest
        fetched = sorted(
            (p for p in self.pods_of(revision) if p.digest), key=lambda p: (p.created_at, p.name)
        )
        return fetched[0].digest if fetched else None

    def available(self, revision: str | None) -> int:
        """Pods that were ready for minReadySeconds, as the Deployment counts them."""
        return self._workload(revision).get("status", {}).get("availableReplicas", 0)

    def creation_failure(self, revision: str | None) -> Failure | None:
        """Why the API server refuses to create pods: a quota, an admission policy."""
        return creation_failure(self._workload(revision))

    def replicas(self, revision: str | None) -> int:
        """Pods that the autoscaler or the spec asks for."""
        return self._workload(revision).get("spec", {}).get("replicas", 0)

    @property
    def applied_weights(self) -> dict[str, int]:
        """Revision → percent in the live VirtualService."""
        live = self.children.get(("VirtualService", self.deployment.name))
        return routes.weights_in(live, self.deployment.namespace) if live else {}

    @property
    def routed(self) -> set[str]:
        """The revisions that the live VirtualService leads to."""
        live = self.children.get(("VirtualService", self.deployment.name))
        return routes.revisions_in(live, self.deployment.namespace) if live else set()

    def _workload(self, revision: str | None) -> Mapping[str, Any]:
        return self.children.get(("Deployment", revision or ""), {})
