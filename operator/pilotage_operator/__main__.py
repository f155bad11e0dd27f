"""Start the operator: settings, connections, wiring, and nothing else."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from typing import Any, cast

import aiohttp
import kopf
from prometheus_client import start_http_server

from pilotage_operator.adapters.kubernetes import Cluster
from pilotage_operator.adapters.lease import Lease, LeaseLost
from pilotage_operator.adapters.observer import Observer
from pilotage_operator.adapters.prometheus import Prometheus
from pilotage_operator.adapters.telemetry import JsonFormatter
from pilotage_operator.handlers import events
from pilotage_operator.handlers.queue import Queue
from pilotage_operator.handlers.reconcile import Reconciler
from pilotage_operator.settings import Settings

_log = logging.getLogger("pilotage")


def main() -> None:
    """Run until stopped; the exit code is 1 when the Lease is lost or a part fails."""
    settings = Settings()  # pyright: ignore[reportCallIssue] - the fields come from the environment
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Kopf logs every event of every object; what matters is logged by the reconciler with its reason.
    for chatty in ("kopf.objects", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    start_http_server(settings.metrics_port)
    try:
        asyncio.run(run(settings))
    except LeaseLost as lost:
        _log.error("stopping, so that two operators never act at once: %s", lost)
        sys.exit(1)


async def run(settings: Settings) -> None:
    """Hold the Lease, watch, reconcile."""
    async with await Cluster.connect() as cluster, aiohttp.ClientSession() as session:
        observer = Observer(
            cluster,
            Prometheus(session, settings.prometheus_url),
            settings.install,
            namespaces=settings.watch_namespaces,
        )
        queue = Queue()
        workers = events.Workers(queue, Reconciler(cluster, observer))
        lease = Lease(cluster, settings.namespace, settings.pod_name)
        served = [resource for resource in events.OPTIONAL if await cluster.serves(resource)]
        registry = kopf.OperatorRegistry()
        events.register(registry, queue, optional=served)
        kopf.on.probe(registry=registry, id="reconciles", errors=kopf.ErrorsMode.PERMANENT)(
            functools.partial(_alive, workers)
        )
        # Started before Kopf, which on its way out cancels what was started after it.
        acting = asyncio.create_task(_act(lease, workers))
        watching = asyncio.create_task(
            kopf.operator(
                registry=registry,
                settings=_kopf_settings(namespaced=bool(settings.watch_namespaces)),
                standalone=True,
                # Kopf would ask for the user's name, which a numeric user of a container does not have.
                identity=cast("Any", settings.pod_name),
                clusterwide=not settings.watch_namespaces,
                namespaces=settings.watch_namespaces,
                liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
            )
        )
        try:
            await _first_to_end(watching, acting)
        finally:
            # Nothing acts any more.
            await lease.release()


async def _act(lease: Lease, workers: events.Workers) -> None:
    """Reconcile only while the Lease is held."""
    await lease.acquire()
    await _first_to_end(asyncio.create_task(workers.run()), asyncio.create_task(lease.keep()))


async def _first_to_end(*tasks: asyncio.Task[None]) -> None:
    """Wait for one, stop the others, and raise what it raised; a cancelled one was told to stop."""
    done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()


async def _alive(workers: events.Workers, **_: Any) -> dict[str, Any]:
    """Answer the liveness probe; a reconcile that hangs makes it fail."""
    stuck = workers.stuck()
    if stuck:
        raise RuntimeError(f"stuck for over {events.STUCK_AFTER_SECONDS:g} s: {stuck}")
    return {"stuck": []}


def _kopf_settings(*, namespaced: bool) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Without a cluster role there are no rights to look for new kinds and namespaces.
    settings.scanning.disabled = namespaced
    settings.posting.enabled = False
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 360
    return settings


if __name__ == "__main__":
    main()
