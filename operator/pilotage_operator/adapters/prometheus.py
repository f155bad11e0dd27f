"""One look at Prometheus: the rules' state and the counts of a step, or an Outage. Never an exception."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson

from pilotage_operator.core import clock, names
from pilotage_operator.core.objectives import Objective, since
from pilotage_operator.core.signals import Alert, Counts, Outage, Signals

_TIMEOUT = aiohttp.ClientTimeout(total=3)
_NANOSECONDS = re.compile(r"(\.\d{6})\d+")


class PrometheusError(Exception):
    """Prometheus could not be asked or gave no usable answer."""


class Prometheus:
    """Prometheus' HTTP API, as far as rollouts need it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def look(
        self,
        namespace: str,
        deployment: str,
        held_to: Sequence[Objective],
        *,
        counted_since: str | None,
    ) -> Signals | Outage:
        """See the alerts, and what was counted since a moment (nothing if None)."""
        now = datetime.now(UTC)
        window = max(1, math.ceil(clock.seconds_between(counted_since, now))) if counted_since else 0
        group = names.rule_group(namespace, deployment)
        selector = f'namespace="{namespace}", modeldeployment="{deployment}"'
        try:
            groups, counts = await asyncio.gather(
                self._get("/api/v1/rules", {"rule_group[]": [group, f"{group}-budget"]}),
                self._count(held_to if window else (), selector, window),
            )
        except PrometheusError as error:
            return Outage(now, f"Prometheus at {self._url} did not answer: {error}")
        found = [g for g in groups.get("groups", []) if g.get("name") in (group, f"{group}-budget")]
        main = next((g for g in found if g["name"] == group), None)
        return Signals(
            observed_at=now,
            rules_loaded=main is not None,
            rules_evaluated_at=_moment(main.get("lastEvaluation")) if main else None,
            alerts=tuple(_alerts(found, namespace, deployment)),
            window_seconds=window,
            counts=counts,
        )

    async def _count(
        self, held_to: Sequence[Objective], selector: str, window: int
    ) -> dict[str, dict[str, Counts]]:
        """SLO → revision → counts."""
        counting = since(window)
        queries = [query(selector, counting) for o in held_to for query in (o.requests, o.bad_requests)]
        found = await asyncio.gather(*map(self._by_revision, queries))
        return {
            objective.slo: {revision: Counts(n, bad.get(revision, 0.0)) for revision, n in requests.items()}
            for objective, requests, bad in zip(held_to, found[::2], found[1::2], strict=True)
        }

    async def _by_revision(self, query: str) -> dict[str, float]:
        answer = await self._get("/api/v1/query", {"query": query})
        sums: dict[str, float] = {}
        for sample in answer.get("result", []):
            value = float(sample["value"][1])
            revision = sample["metric"].get("revision", "")
            sums[revision] = sums.get(revision, 0.0) + (value if math.isfinite(value) else 0.0)
        return sums

    async def _get(self, path: str, query: Mapping[str, str | list[str]]) -> dict[str, Any]:
        try:
            async with self._session.get(self._url + path, params=query, timeout=_TIMEOUT) as response:
                content = await response.read()
                if response.status != 200:
                    raise PrometheusError(f"{path} answered {response.status}: {content[:200]!r}")
                answer = orjson.loads(content)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PrometheusError(f"{path}: {type(error).__name__}: {error}") from error
        if not isinstance(answer, dict) or answer.get("status") != "success":
            raise PrometheusError(f"{path} answered without success")
        if not isinstance(answer.get("data"), dict):
            raise PrometheusError(f"{path} answered without data")
        return answer["data"]


def _alerts(groups: Sequence[Mapping[str, Any]], namespace: str, deployment: str) -> list[Alert]:
    """The active alerts of this ModelDeployment; labels come from a rule file and are checked again."""
    return [
        Alert(
            name=rule["name"],
            revision=active["labels"].get("revision", ""),
            slo=active["labels"].get("slo", ""),
            firing=active.get("state") == "firing",
            may_act=active["labels"].get("pilotage_action") == "rollback",
            value=float(active.get("value", 0)),
            threshold=float(active.get("annotations", {}).get("threshold", 0)),
            query=rule.get("query", ""),
        )
        for group in groups
        for rule in group.get("rules", [])
        if rule.get("type") == "alerting"
        for active in rule.get("alerts", [])
        if active["labels"].get("namespace") == namespace
        and active["labels"].get("modeldeployment") == deployment
    ]


def _moment(text: str | None) -> datetime | None:
    """Go's RFC 3339 time, to the microsecond; None for its zero time, before the first evaluation."""
    if not text or text.startswith("0001"):
        return None
    return clock.parse(_NANOSECONDS.sub(r"\1", text))
