"""A Lease, so that two operators never act at once: the one write of an operator at rest.

The rules are those of Kubernetes' client-go leader election: a holder that did not renew for the lease's
duration may be replaced, and every write names the version that it replaces.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from pilotage_operator.adapters import telemetry
from pilotage_operator.adapters.kubernetes import Cluster, ClusterError
from pilotage_operator.adapters.resources import LEASE
from pilotage_operator.core import clock

NAME = "pilotage-operator"
DURATION_SECONDS = 15
_RENEW_SECONDS = 5.0
_log = logging.getLogger("pilotage.lease")


class LeaseLost(Exception):  # noqa: N818 - it says what happened, in the field's words
    """Another operator may act now; this process must not."""


class Lease:
    """The claim of this process to be the operator."""

    def __init__(self, cluster: Cluster, namespace: str, holder: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._holder = holder

    async def acquire(self) -> None:
        """Wait until this process holds the Lease."""
        told = False
        while not await self._claim():
            if not told:
                _log.info("waiting for the Lease", extra={"lease": NAME})
                told = True
            await asyncio.sleep(_RENEW_SECONDS / 2)
        telemetry.leader.labels(NAME).set(1)

    async def keep(self) -> None:
        """Renew for as long as possible.

        Raises
        ------
        LeaseLost
            Early enough that no other operator can have taken it yet.
        """
        renewed = datetime.now(UTC)
        while datetime.now(UTC) - renewed < timedelta(seconds=DURATION_SECONDS - _RENEW_SECONDS):
            await asyncio.sleep(_RENEW_SECONDS)
            if await self._claim():
                renewed = datetime.now(UTC)
        telemetry.leader.labels(NAME).set(0)
        raise LeaseLost(f"Lease {NAME} in namespace {self._namespace} could not be renewed in time")

    async def _claim(self) -> bool:
        try:
            return await self._try_claim()
        except ClusterError as error:
            _log.warning("the Lease could not be renewed: %s", error)
            return False

    async def _try_claim(self) -> bool:
        now = datetime.now(UTC)
        found = await self._cluster.get(LEASE, self._namespace, NAME)
        if found is None:
            metadata = {"name": NAME, "namespace": self._namespace}
            await self._cluster.create(LEASE, self._namespace, self._manifest(metadata, {}, now))
            return True
        spec = found.get("spec", {})
        mine = spec.get("holderIdentity") == self._holder
        renewed = spec.get("renewTime")
        if not mine and renewed and clock.seconds_between(renewed, now) < DURATION_SECONDS:
            return False
        await self._cluster.replace(LEASE, self._namespace, self._manifest(found["metadata"], spec, now))
        return True

    def _manifest(self, metadata: dict[str, Any], spec: dict[str, Any], now: datetime) -> dict[str, Any]:
        taken = spec.get("holderIdentity") == self._holder
        stamp = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {k: metadata[k] for k in ("name", "namespace", "resourceVersion") if k in metadata},
            "spec": {
                "holderIdentity": self._holder,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": spec.get("acquireTime", stamp) if taken else stamp,
                "renewTime": stamp,
                "leaseTransitions": spec.get("leaseTransitions", 0) + (0 if taken or not spec else 1),
            },
        }
