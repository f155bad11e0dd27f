"""One reconcile: observe once, decide, persist the intent, act, tell."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pilotage_operator.adapters import telemetry
from pilotage_operator.adapters.kubernetes import Cluster, ClusterError
from pilotage_operator.adapters.observer import InvalidObjectError, Observer, Occupied
from pilotage_operator.api.status import StatusModel
from pilotage_operator.core import clock, names
from pilotage_operator.core.moves import Event
from pilotage_operator.core.plan import Apply, Plan, held_back, plan
from pilotage_operator.core.snapshot import Snapshot
from pilotage_operator.handlers.queue import Key

_log = logging.getLogger("pilotage.reconcile")
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 60.0
_LEFTOVERS_SECONDS = 1.0
_CONTROLLER = "modeldeployment"


class _UndoneError(Exception):
    """Some of what was decided could not be done; all else was."""

    def __init__(self, errors: Collection[ClusterError], look_again: float | None) -> None:
        # Another's write is over in a moment; any other error takes longer.
        self.worst = min(errors, key=lambda error: error.conflict)
        self.look_again = look_again
        super().__init__(str(self.worst))


@dataclass
class _Acted:
    """What came of the actions of one reconcile."""

    taken: set[names.ObjectKey] = field(default_factory=set[names.ObjectKey])
    """Names that turned out to be somebody else's."""
    waiting: bool = False
    """A name will be free soon."""
    errors: dict[names.ObjectKey, ClusterError] = field(default_factory=dict[names.ObjectKey, ClusterError])
    unmade: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])


@dataclass(frozen=True)
class _Refused:
    """Children of one generation that the API server did not accept, with the first words that it had for each."""

    generation: int
    said: Mapping[names.ObjectKey, str]


class Reconciler:
    """Brings one ModelDeployment at a time nearer to what it should be."""

    def __init__(self, cluster: Cluster, observer: Observer) -> None:
        self._cluster = cluster
        self._observer = observer
        self._failures: dict[Key, int] = {}
        self._told: dict[Key, tuple[str, str]] = {}
        self._suspects: dict[Key, frozenset[names.ObjectKey]] = {}
        self._refused: dict[Key, _Refused] = {}
        self._shown = telemetry.Shown()

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile; returns the seconds until the next look, or None to wait for an event."""
        with telemetry.reconcile_seconds.labels(_CONTROLLER).time():
            try:
                again = await self._reconcile(key)
            except InvalidObjectError as error:
                await self._tell_invalid(key, error)
                return self._retry(key, error)
            except _UndoneError as error:
                retry = self._retry(key, error.worst)
                return retry if error.look_again is None else min(retry, error.look_again)
            except ClusterError as error:
                return self._retry(key, error)
        self._failures.pop(key, None)
        telemetry.reconciles.labels(_CONTROLLER, "success").inc()
        return again

    async def _reconcile(self, key: Key) -> float | None:
        namespace, name = key
        snapshot = await self._observer.observe(namespace, name, self._suspects.pop(key, frozenset()))
        if snapshot is None:
            self._told.pop(key, None)
            self._refused.pop(key, None)
            self._shown.forget(namespace, name)
            return None
        if snapshot.strangers:
            self._suspects[key] = snapshot.strangers
        refused = self._refused.get(key)
        if refused and refused.generation == snapshot.deployment.metadata.generation:
            snapshot = replace(snapshot, refused=refused.said)
        decided = plan(snapshot)
        self._log(key, decided)
        written = decided.status.to_dict()
        if written != snapshot.status.to_dict():
            version = snapshot.deployment.metadata.resource_version
            await self._cluster.write_status(namespace, name, written, version)
        self._shown.show(namespace, name, decided.status.phase or "")
        if _decided_at(decided.status) != _decided_at(snapshot.status):
            telemetry.rollbacks.labels(namespace, name).inc()
        try:
            acted = await self._act(snapshot, decided)
        finally:
            # The decision stands in the status: what could not be done yet is done by the next look, which
            # would have nothing to tell any more.
            for event in decided.events:
                metadata = snapshot.deployment.metadata
                manifest = _manifest(event, key, metadata.uid, metadata.generation)
                await self._cluster.record(namespace, manifest)
        self._remember_refusals(key, snapshot, acted)
        if acted.taken:
            self._suspects[key] = frozenset(acted.taken)
            return 0.0
        if acted.errors:
            canary = decided.status.canary
            # With traffic it is watched as closely as before.
            again = decided.look_again if canary and canary.weight else None
            raise _UndoneError(acted.errors.values(), again)
        if snapshot.refused:
            return 0.0
        return _LEFTOVERS_SECONDS if acted.waiting else decided.look_again

    async def _act(self, snapshot: Snapshot, decided: Plan) -> _Acted:
        """Act in order. One child that cannot be applied keeps no other from it: a rollback goes on."""
        namespace, acted = snapshot.deployment.namespace, _Acted()
        for action in decided.actions:
            if not isinstance(action, Apply):
                # What is retired may be what the child was to replace.
                if not acted.errors:
                    await self._cluster.delete(action.key[0], namespace, action.key[1])
                continue
            if held_back(action.manifest, namespace, acted.unmade):
                continue
            try:
                await self._apply(action, snapshot, acted)
            except ClusterError as error:
                acted.errors[names.key_of(dict(action.manifest))] = error
                if action.creates:
                    acted.unmade.append(action.manifest)
        return acted

    async def _apply(self, action: Apply, snapshot: Snapshot, acted: _Acted) -> None:
        manifest, namespace, ours = dict(action.manifest), snapshot.deployment.namespace, not action.creates
        if not ours:
            key = names.key_of(manifest)
            occupied = await self._observer.occupied(snapshot.deployment, key)
            if occupied is Occupied.STRANGER:
                acted.taken.add(key)
            acted.waiting = acted.waiting or occupied is Occupied.LEFTOVER
            ours = occupied is Occupied.OURS
            if occupied and not ours:
                return
        if action.handover:
            handed = dict(action.handover)
            await self._cluster.apply(handed, namespace, force=True, manager=names.HANDOVER_MANAGER)
        manifest["metadata"] = {**manifest["metadata"], "ownerReferences": [_owner_reference(snapshot)]}
        await self._cluster.apply(manifest, namespace, force=ours)

    def _remember_refusals(self, key: Key, snapshot: Snapshot, acted: _Acted) -> None:
        """For the next look to tell. Words that change at each try must not make a write at each try."""
        self._refused.pop(key, None)
        said = {child: error.said for child, error in acted.errors.items() if error.refused}
        if said:
            before = {child: words for child, words in snapshot.refused.items() if child in said}
            self._refused[key] = _Refused(snapshot.deployment.metadata.generation, {**said, **before})

    async def _tell_invalid(self, key: Key, error: InvalidObjectError) -> None:
        """The status cannot be written either: it may be what is invalid."""
        message = f"Nothing is done for this ModelDeployment, which cannot be read: {error}"
        event = _manifest(Event("InvalidObject", message, warning=True), key, error.uid, error.generation)
        try:
            await self._cluster.record(key[0], event)
        except ClusterError as failed:
            _log.warning("an Event could not be written: %s", failed)

    def _log(self, key: Key, decided: Plan) -> None:
        """Log a decision once, not at every look."""
        told = (decided.status.phase or "", decided.reason)
        if self._told.get(key) == told and not decided.actions:
            return
        self._told[key] = told
        _log.info(
            decided.message,
            extra={
                "namespace": key[0],
                "modeldeployment": key[1],
                "phase": decided.status.phase,
                "reason": decided.reason,
                "actions": [_named(action) for action in decided.actions],
            },
        )

    def _retry(self, key: Key, error: Exception) -> float:
        """Back off with jitter, to a cap."""
        where = {"namespace": key[0], "modeldeployment": key[1]}
        if isinstance(error, ClusterError) and error.conflict:
            _log.debug("somebody wrote first: %s", error, extra=where)
            return random.uniform(0.05, 0.2)  # noqa: S311 - jitter, no secret
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        telemetry.reconcile_errors.labels(_CONTROLLER).inc()
        telemetry.reconciles.labels(_CONTROLLER, "error").inc()
        _log.warning("reconcile failed: %s", error, extra={**where, "failures": failures})
        cap = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** min(failures, 10))
        return random.uniform(cap / 2, cap)  # noqa: S311 - jitter, no secret


def _decided_at(status: StatusModel) -> str | None:
    return status.rollback.decided_at if status.rollback else None


def _named(action: Any) -> str:
    kind, name = names.key_of(dict(action.manifest)) if isinstance(action, Apply) else action.key
    return f"{'apply' if isinstance(action, Apply) else 'delete'} {kind}/{name}"


def _owner_reference(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": snapshot.deployment.name,
        "uid": snapshot.deployment.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _manifest(event: Event, key: Key, uid: str, generation: int) -> dict[str, Any]:
    """An Event whose name follows from its content, so that the same is told once."""
    namespace, name = key
    when = clock.stamp(datetime.now(UTC))
    text = f"{uid}/{event.reason}/{event.message}/{generation}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{digest}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": name,
            "namespace": namespace,
            "uid": uid,
        },
        "reason": event.reason,
        "message": event.message[:1024],
        "type": "Warning" if event.warning else "Normal",
        "source": {"component": "pilotage-operator"},
        "firstTimestamp": when[:19] + "Z",
        "lastTimestamp": when[:19] + "Z",
        "count": 1,
    }
