"""Everything that one decision looks at, read at once: a Snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any

from pydantic import ValidationError

from pilotage_operator.adapters.fetch_log import FetchLog
from pilotage_operator.adapters.kubernetes import Cluster
from pilotage_operator.adapters.prometheus import Prometheus
from pilotage_operator.adapters.resources import (
    BUILT_IN,
    CHILDREN,
    ISTIO,
    MODEL_DEPLOYMENT,
    POD,
    PROMETHEUS_RULE,
    SERVICE_MONITOR,
    Resource,
)
from pilotage_operator.api.modeldeployment import ModelDeployment, parse
from pilotage_operator.core import names, revisions
from pilotage_operator.core.hosts import rival_owners
from pilotage_operator.core.install import Features, Install
from pilotage_operator.core.objectives import objectives
from pilotage_operator.core.pods import pod_from
from pilotage_operator.core.signals import Outage, Signals
from pilotage_operator.core.snapshot import Snapshot
from pilotage_operator.core.verdict import evidence_since

_FEATURES_LAST = timedelta(seconds=60)


@dataclass(frozen=True)
class _Known:
    features: Features
    seen_at: datetime


class InvalidObjectError(Exception):
    """A stored object breaks the rules of this operator's models: an older or newer CRD let it in."""

    def __init__(self, uid: str, generation: int, message: str) -> None:
        super().__init__(message)
        self.uid = uid
        self.generation = generation


class Occupied(Enum):
    """Whose an object is that has the name of a child and was not found as one."""

    STRANGER = auto()
    LEFTOVER = auto()
    """A child of an earlier ModelDeployment of this name, which Kubernetes is about to remove."""
    OURS = auto()
    """It has lost the label by which we list."""


class Observer:
    """Reads the world for one ModelDeployment at a time."""

    def __init__(
        self, cluster: Cluster, prometheus: Prometheus, install: Install, *, namespaces: Sequence[str] = ()
    ) -> None:
        """`namespaces` are those that the install watches; none means all."""
        self._namespaces = tuple(namespaces) or (None,)
        self._cluster = cluster
        self._prometheus = prometheus
        self._install = install
        self._fetch_log = FetchLog(cluster)
        self._known: _Known | None = None

    async def observe(
        self, namespace: str, name: str, suspects: Iterable[names.ObjectKey] = ()
    ) -> Snapshot | None:
        """Read the snapshot; None once the ModelDeployment is gone or going.

        `suspects` are names that belonged to somebody else when they were last needed.

        Raises
        ------
        InvalidObjectError
            What is stored cannot be read as a ModelDeployment.
        """
        manifest = await self._cluster.get(MODEL_DEPLOYMENT, namespace, name)
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            self._fetch_log.forget(namespace, name)
            return None
        deployment = _parsed(manifest)
        features = await self._features()
        kinds = _kinds(features, self._install)
        mine = f"{names.LABEL_DEPLOYMENT}={name}"
        (pods, *listed), signals, owners = await asyncio.gather(
            asyncio.gather(*(self._cluster.list(kind, namespace, labels=mine) for kind in (POD, *kinds))),
            self._signals(deployment, features),
            self._host_owners(deployment, features),
        )
        found = {names.key_of(item): item for items in listed for item in items}
        children = {key: item for key, item in found.items() if _owned(item, deployment.metadata.uid)}
        strangers = {
            key
            for key in suspects
            if key not in found and await self.occupied(deployment, key) is Occupied.STRANGER
        }
        canary = deployment.status.canary
        # One with traffic has been fetched before; those who wait for it look every second.
        awaited = canary.revision if canary and not canary.weight else None
        read = [pod for pod in map(pod_from, pods) if pod is not None]
        completed = await self._fetch_log.complete(namespace, name, awaited, read)
        return Snapshot(
            now=datetime.now(UTC),
            deployment=deployment,
            inputs=revisions.inputs_of(manifest["spec"]),
            install=self._install,
            features=features,
            children=children,
            strangers=frozenset(strangers)
            | {key for key, item in found.items() if key not in children and not _leftover(item, name)},
            pods=completed,
            signals=signals,
            host_owners=owners,
        )

    async def occupied(self, deployment: ModelDeployment, key: names.ObjectKey) -> Occupied | None:
        """By whom the name of a child that is not among ours is taken."""
        kind, name = key
        found = await self._cluster.get(CHILDREN[kind], deployment.namespace, name)
        if found is None:
            return None
        if _owned(found, deployment.metadata.uid):
            return Occupied.OURS
        return Occupied.LEFTOVER if _leftover(found, deployment.name) else Occupied.STRANGER

    async def _signals(self, deployment: ModelDeployment, features: Features) -> Signals | Outage | None:
        if not features.prometheus_rules:
            return None
        return await self._prometheus.look(
            deployment.namespace,
            deployment.name,
            objectives(deployment.spec.slo),
            counted_since=evidence_since(deployment.status, datetime.now(UTC)),
        )

    async def _host_owners(self, deployment: ModelDeployment, features: Features) -> dict[str, str]:
        """Hosts of this ModelDeployment that another's VirtualService holds; of two that hold one, the older."""
        wanted = set(deployment.spec.routing.hosts or ())
        if not wanted or not features.istio:
            return {}
        listed = await asyncio.gather(
            *(
                self._cluster.list(ISTIO[0], namespace, labels=names.host_label(host))
                for namespace in self._namespaces
                for host in wanted
            )
        )
        rivals = [rival for found in listed for rival in found]
        return rival_owners(rivals, wanted, own=f"{deployment.namespace}/{deployment.name}")

    async def _features(self) -> Features:
        now = datetime.now(UTC)
        if self._known is None or now - self._known.seen_at > _FEATURES_LAST:
            istio, prometheus_rules, service_monitors = await asyncio.gather(
                *(self._cluster.serves(kind) for kind in (ISTIO[0], PROMETHEUS_RULE, SERVICE_MONITOR))
            )
            self._known = _Known(Features(istio, prometheus_rules, service_monitors), now)
        return self._known.features


def _parsed(manifest: dict[str, Any]) -> ModelDeployment:
    try:
        return parse(manifest)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        metadata = manifest["metadata"]
        raise InvalidObjectError(metadata["uid"], metadata.get("generation", 0), told) from error


def _kinds(features: Features, install: Install) -> Sequence[Resource]:
    return (
        *BUILT_IN,
        *(ISTIO if features.istio else ()),
        *((PROMETHEUS_RULE,) if features.prometheus_rules else ()),
        *((SERVICE_MONITOR,) if features.service_monitors and install.service_monitors else ()),
    )


def _owned(item: dict[str, Any], uid: str) -> bool:
    return any(ref["uid"] == uid for ref in item["metadata"].get("ownerReferences", []))


def _leftover(item: dict[str, Any], deployment: str) -> bool:
    """Whether an object that is not ours belonged to an earlier ModelDeployment of this name."""
    owners = item["metadata"].get("ownerReferences", [])
    return any(ref["kind"] == names.KIND and ref["name"] == deployment for ref in owners)
