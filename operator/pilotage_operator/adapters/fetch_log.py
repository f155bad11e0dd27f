"""How far a revision's first fetch is: asked of its container's log, seldom, and only while it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pilotage_operator.adapters.kubernetes import Cluster, ClusterError
from pilotage_operator.core import names
from pilotage_operator.core.fetching import LOG_BYTES, LOG_LINES, Fetched, fetched_in
from pilotage_operator.core.pods import Pod, first_fetch

READ_SECONDS = 10.0
"""Each answer may be new words in the status, whose write calls for another look: no log is read more often."""


@dataclass(frozen=True)
class _Answer:
    at: float
    pod: str
    fetched: Fetched | None


class FetchLog:
    """Completes the pod that everybody waits for."""

    def __init__(self, cluster: Cluster, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._answers: dict[tuple[str, str], _Answer] = {}

    async def complete(
        self, namespace: str, deployment: str, revision: str | None, pods: Sequence[Pod]
    ) -> tuple[Pod, ...]:
        """Add to the revision's first fetch how far it is; without an answer it stays as it is."""
        waited_for = first_fetch(pod for pod in pods if pod.revision == revision)
        if waited_for is None:
            self.forget(namespace, deployment)
            return tuple(pods)
        fetched = await self._fetched(namespace, deployment, waited_for.name)
        return tuple(replace(pod, fetched=fetched) if pod is waited_for else pod for pod in pods)

    def forget(self, namespace: str, deployment: str) -> None:
        self._answers.pop((namespace, deployment), None)

    async def _fetched(self, namespace: str, deployment: str, pod: str) -> Fetched | None:
        key, now = (namespace, deployment), self._clock()
        known = self._answers.get(key)
        if known is None or now - known.at >= READ_SECONDS:
            try:
                log = await self._cluster.end_of_log(
                    namespace, pod, names.FETCH_CONTAINER, lines=LOG_LINES, most_bytes=LOG_BYTES
                )
            except ClusterError:
                # A node that cannot be reached, a role without the right: the status has words without it.
                log = b""
            known = self._answers[key] = _Answer(now, pod, fetched_in(log))
        return known.fetched if known.pod == pod else None
