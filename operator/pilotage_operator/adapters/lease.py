"""A Lease, so that two operators never act at once: the one write of an operator at rest.

The rules are those of Kubernetes' client-go leader election: a holder that was not seen to renew for the lease's
duration may be replaced, and every write names the version that it replaces. Whoever waits measures that time by
its own steady clock: the stamps are of a clock of somebody else, and only compared for a change.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from pilotage_operator.adapters import telemetry
from pilotage_operator.adapters.kubernetes import Cluster, ClusterError
from pilotage_operator.adapters.resources import LEASE

NAME = "pilotage-operator"
DURATION_SECONDS = 15
_RENEW_SECONDS = 5.0
_GIVE_UP_SECONDS = 10.0
"""After the last renewal: what is under way then has until the end of the duration to end."""
_log = logging.getLogger("pilotage.lease")


class LeaseLost(Exception):  # noqa: N818 - it says what happened, in the field's words
    """Another operator may act now; this process must not."""


class Lease:
    """The claim of this process to be the operator."""

    def __init__(self, cluster: Cluster, namespace: str, holder: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._holder = holder
        self._renewed = float("-inf")
        self._seen: tuple[str, str] | None = None
        """Another holder and its last renewal, as it stood there since `_seen_at`."""
        self._seen_at = 0.0

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
        try:
            while True:
                # A request that hangs must not outlast the Lease.
                async with asyncio.timeout_at(self._renewed + _GIVE_UP_SECONDS):
                    await self._renew()
        except TimeoutError as error:
            raise LeaseLost(
                f"Lease {NAME} in namespace {self._namespace} could not be renewed in time"
            ) from error
        finally:
            telemetry.leader.labels(NAME).set(0)

    async def release(self) -> None:
        """Let the next operator begin at once; one that stops without a word is waited for."""
        try:
            found = await self._cluster.get(LEASE, self._namespace, NAME)
            if found and found.get("spec", {}).get("holderIdentity") == self._holder:
                free = {**found["spec"], "holderIdentity": ""}
                await self._cluster.replace(LEASE, self._namespace, {**found, "spec": free})
        except ClusterError as error:
            _log.warning("the Lease could not be released: %s", error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                if await self._try_claim():
                    return
            except ClusterError as error:
                _log.warning("the Lease could not be renewed: %s", error)
            else:
                raise LeaseLost(f"Lease {NAME} in namespace {self._namespace} was taken by another operator")

    async def _claim(self) -> bool:
        try:
            return await self._try_claim()
        except ClusterError as error:
            _log.warning("the Lease could not be taken: %s", error)
            return False

    async def _try_claim(self) -> bool:
        """Take or renew it; False if another holds it.

        Raises
        ------
        ClusterError
            The API server could not be asked, or somebody else wrote first.
        """
        now, began = datetime.now(UTC), _steady()
        found = await self._cluster.get(LEASE, self._namespace, NAME)
        if found is None:
            metadata = {"name": NAME, "namespace": self._namespace}
            await self._cluster.create(LEASE, self._namespace, self._manifest(metadata, {}, now))
            self._renewed = began
            return True
        spec = found.get("spec", {})
        if self._held_by_another(spec, began):
            return False
        await self._cluster.replace(LEASE, self._namespace, self._manifest(found["metadata"], spec, now))
        self._renewed = began
        return True

    def _held_by_another(self, spec: dict[str, Any], now: float) -> bool:
        holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
        if holder == self._holder or not holder or not renewed:
            return False
        if self._seen != (holder, renewed):
            self._seen, self._seen_at = (holder, renewed), now
        return now - self._seen_at < DURATION_SECONDS

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


def _steady() -> float:
    return asyncio.get_running_loop().time()
