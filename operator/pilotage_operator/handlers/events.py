"""Kopf's edge: every event of a ModelDeployment or of what it owns only asks for another reconcile.

`on.event` handlers and nothing else: timers, daemons and deletion handlers would add a finalizer, and with a
dead operator neither the object nor its namespace could then be deleted.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import kopf

from pilotage_operator.adapters import telemetry
from pilotage_operator.adapters.resources import BUILT_IN, ISTIO, POD, PROMETHEUS_RULE, Resource
from pilotage_operator.core import names
from pilotage_operator.handlers.queue import Key, Queue
from pilotage_operator.handlers.reconcile import Reconciler

WORKERS = 8
STUCK_AFTER_SECONDS = 120.0
_GATHER_SECONDS = 0.1
"""Children's events come in bursts, ours among them: one look serves them all."""
_log = logging.getLogger("pilotage.events")


def register(registry: kopf.OperatorRegistry, queue: Queue, *, optional: list[Resource]) -> None:
    """Route the events of our objects and children to the queue."""

    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    async def changed(namespace: str | None, name: str | None, **_: Any) -> None:
        if namespace and name:
            queue.add((namespace, name))

    async def child_changed(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        owner = labels.get(names.LABEL_DEPLOYMENT)
        if namespace and owner:
            queue.add((namespace, owner), _GATHER_SECONDS)

    kopf.on.login(registry=registry)(login)
    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)(changed)
    for resource in (*BUILT_IN, POD, *optional):
        group, _, version = resource.api_version.rpartition("/")
        kopf.on.event(
            group, version, resource.plural, labels={names.LABEL_DEPLOYMENT: kopf.PRESENT}, registry=registry
        )(child_changed)


OPTIONAL = (*ISTIO, PROMETHEUS_RULE)
"""Kinds that a cluster may not serve; their events are watched where it does."""


class Workers:
    """Take keys from the queue and reconcile them, several at once."""

    def __init__(self, queue: Queue, reconciler: Reconciler) -> None:
        self._queue = queue
        self._reconciler = reconciler
        self._started: dict[Key, float] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    def stuck(self) -> list[Key]:
        """Reconciles that take far longer than every time-out in them."""
        now = asyncio.get_running_loop().time()
        return [key for key, at in self._started.items() if now - at > STUCK_AFTER_SECONDS]

    async def _work(self) -> None:
        while True:
            key = await self._queue.take()
            telemetry.queue_depth.labels("modeldeployment").set(len(self._queue))
            self._started[key] = asyncio.get_running_loop().time()
            again: float | None = 5.0
            try:
                again = await self._reconciler.reconcile(key)
            except Exception:  # noqa: BLE001 - logged with its trace below
                # One broken object must not stop the others; the trace is the bug report.
                _log.exception("reconcile broke", extra={"namespace": key[0], "modeldeployment": key[1]})
                telemetry.reconcile_errors.labels("modeldeployment").inc()
            finally:
                del self._started[key]
                self._queue.done(key)
            if again is not None:
                self._queue.add(key, again)
