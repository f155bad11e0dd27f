"""A scripted world: the cluster and Prometheus as far as a rollout sees them, in virtual seconds."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pilotage_operator.api.modeldeployment import parse
from pilotage_operator.api.status import StatusModel
from pilotage_operator.core import clock, names, revisions
from pilotage_operator.core.children import routes
from pilotage_operator.core.fetching import Fetched
from pilotage_operator.core.install import Features, Install
from pilotage_operator.core.objectives import Objective, objectives
from pilotage_operator.core.plan import Apply, plan
from pilotage_operator.core.pods import Failure, Pod
from pilotage_operator.core.signals import Alert, Counts, Outage, Signals
from pilotage_operator.core.significance import worse_than_budget, worse_than_others
from pilotage_operator.core.snapshot import Snapshot
from pilotage_operator.core.verdict import evidence_since

START = datetime(2026, 1, 1, tzinfo=UTC)
SCRAPE_SECONDS = 5
STORE = "s3://models/fraud/"
DIGEST = "sha256:" + "a" * 64


@dataclass
class Behaviour:
    """How one version of the model behaves."""

    ready_after: int | None = 3
    bad_share: float = 0.0
    late_share: float = 0.0
    """Answers later than spec.slo.latency allows."""
    failure: Failure | None = None
    pulls: int = 0
    """Seconds that a pod waits for its image."""
    fetches: int = 0
    """Seconds after its first that a pod has fetched the model."""
    fetched: Fetched | None = None
    """What the log says until then."""


@dataclass
class World:
    """One ModelDeployment, its pods, its traffic, and what was seen of them."""

    spec: dict[str, Any]
    requests_per_second: float = 50
    features: Features = field(default_factory=Features)
    prometheus_up: bool = True
    strangers: frozenset[names.ObjectKey] = frozenset()
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    no_pods_because: str = ""
    """The API server refuses new pods: a quota."""
    failing_pods: dict[str, tuple[int, Failure | None]] = field(default_factory=dict)
    """Version → how many of its pods are not ready, and why if they say so, beside those that go on serving."""
    scaled_to: dict[str, int] = field(default_factory=dict)
    """Version → pods that its autoscaler asks for, where these are more than its minimum."""
    seconds: int = 0
    generation: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    children: dict[names.ObjectKey, dict[str, Any]] = field(default_factory=dict)
    born: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Revision → the last part of its model's URI."""
    timeline: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    writes: int = 0
    failed_requests: float = 0
    answered: dict[int, dict[str, Counts]] = field(default_factory=dict)
    """Second → revision → all that it has answered until then."""
    _noted: str = ""
    weights_seen: list[dict[str, int]] = field(default_factory=list)

    # What users do.

    def edit(self, **changes: Any) -> None:
        """Change sections of the spec; a new generation, as the API server counts."""
        self.spec = {**copy.deepcopy(self.spec), **changes}
        self.generation += 1
        self._note("the spec is edited")

    def rollout(self, **changes: Any) -> None:
        kept = {k: v for k, v in {**self.spec.get("rollout", {}), **changes}.items() if v is not None}
        self.edit(rollout=kept)

    def serve(self, version: str) -> None:
        self.edit(model={"uri": STORE + version})

    # Time.

    def run(self, seconds: int, until: str | None = None) -> None:
        """Let seconds pass; stop early once the phase is `until`."""
        for _ in range(seconds):
            self.step()
            if until is not None and self.phase == until:
                return
        assert until is None, f"never {until}:\n" + "\n".join(self.timeline)

    def step(self) -> None:
        """One second: traffic flows, and the operator looks until it changes nothing."""
        self.tick()
        for _ in range(10):
            if not self.reconcile():
                return
        raise AssertionError("the operator does not come to rest:\n" + "\n".join(self.timeline))

    def tick(self) -> None:
        """One second in which nobody looks."""
        self.seconds += 1
        self._traffic()

    def reconcile(self) -> bool:
        """One look and its actions; whether anything was written."""
        decided = plan(self.snapshot())
        status = decided.status.to_dict()
        changed = status != self.status
        self.status = status
        for action in decided.actions:
            self.act(action)
        for event in decided.events:
            self.events.append(event.reason)
        self._note(self._shown(decided.reason))
        self.writes += bool(changed) + len(decided.actions)
        return bool(changed or decided.actions)

    # What is seen.

    @property
    def phase(self) -> str:
        return self.status.get("phase", "")

    @property
    def weights(self) -> dict[str, int]:
        live = self.children.get(("VirtualService", "fraud"))
        return routes.weights_in(live, "shop") if live else {}

    def condition(self, kind: str) -> dict[str, Any]:
        return next(c for c in self.status["conditions"] if c["type"] == kind)

    def version(self, revision: str) -> str:
        """The last part of a revision's model URI."""
        return self.versions[revision]

    def snapshot(self) -> Snapshot:
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "fraud", "namespace": "shop", "uid": "u1", "generation": self.generation},
            "spec": self.spec,
            "status": self.status,
        }
        deployment = parse(manifest)
        now = START + timedelta(seconds=self.seconds)
        return Snapshot(
            now=now,
            deployment=deployment,
            inputs=revisions.inputs_of(self.spec),
            install=Install(runtime_image="runtime:1", scrape_interval_seconds=SCRAPE_SECONDS),
            features=self.features,
            children=self._live(),
            strangers=self.strangers,
            pods=tuple(self._pods()),
            signals=self._signals(now, objectives(deployment.spec.slo)),
        )

    # The cluster.

    def act(self, action: Any) -> None:
        if isinstance(action, Apply):
            key = names.key_of(dict(action.manifest))
            self.children[key] = dict(action.manifest)
            if key[0] == "ControllerRevision":
                uri: str = action.manifest["data"]["inputs"]["model"]["uri"]
                self.versions[key[1]] = uri.removeprefix(STORE)
            if key[0] == "Deployment":
                self.born.setdefault(key[1], self.seconds)
            if key[0] == "VirtualService":
                self.weights_seen.append(self.weights)
        else:
            del self.children[action.key]
            if action.key[0] == "Deployment":
                del self.born[action.key[1]]

    def _behaviour(self, revision: str) -> Behaviour:
        return self.behaviours.get(self.version(revision), Behaviour())

    def _replicas(self, revision: str) -> int:
        scaler = self.children.get(("HorizontalPodAutoscaler", revision))
        spec = self.children["Deployment", revision]["spec"]
        asked = self.scaled_to.get(self.version(revision), 0)
        return max(asked, scaler["spec"]["minReplicas"]) if scaler else spec.get("replicas", 1)

    def _ready(self, revision: str) -> bool:
        behaviour = self._behaviour(revision)
        after = behaviour.ready_after
        return behaviour.failure is None and after is not None and self.seconds - self.born[revision] >= after

    def _live(self) -> dict[names.ObjectKey, dict[str, Any]]:
        live = dict(self.children)
        for revision in self.born:
            manifest = copy.deepcopy(live["Deployment", revision])
            replicas = self._replicas(revision)
            manifest["spec"].setdefault("replicas", replicas)
            failing, _ = self.failing_pods.get(self.version(revision), (0, None))
            available = max(0, replicas - failing) if self._ready(revision) else 0
            manifest["status"] = {"availableReplicas": available}
            if self._refused(revision):
                refused = {"type": "ReplicaFailure", "status": "True", "message": self.no_pods_because}
                manifest["status"] = {"availableReplicas": 0, "conditions": [refused]}
            live["Deployment", revision] = manifest
        return live

    def _refused(self, revision: str) -> bool:
        stable = self.status.get("stable", {}).get("revision")
        return bool(self.no_pods_because) and revision != stable

    def _pods(self) -> list[Pod]:
        found: list[Pod] = []
        for revision, born in self.born.items():
            if self._refused(revision):
                continue
            failing, failure = self.failing_pods.get(self.version(revision), (0, None))
            for index in range(self._replicas(revision)):
                fails = index < failing
                began = born + self._behaviour(revision).pulls
                fetched = self.seconds > began + self._behaviour(revision).fetches
                fetching = not fetched and self.seconds >= began
                pod = Pod(
                    name=f"{revision}-{index}",
                    revision=revision,
                    created_at=START + timedelta(seconds=born),
                    ready=self._ready(revision) and not fails,
                    digest=DIGEST if fetched else None,
                    began=START + timedelta(seconds=began) if self.seconds >= began else None,
                    fetching_since=START + timedelta(seconds=began) if fetching else None,
                    fetched=None if fetched else self._behaviour(revision).fetched,
                    failure=failure if fails else self._behaviour(revision).failure,
                    refused=fails and failure is not None and failure.reason == "ModelContentChanged",
                )
                found.append(pod)
        return found

    # Traffic and Prometheus.

    def _traffic(self) -> None:
        answered: dict[str, Counts] = {}
        for revision, weight in self.weights.items():
            requests = self.requests_per_second * weight / 100
            bad = requests * self._behaviour(revision).bad_share
            answered[revision] = Counts(requests, bad)
            self.failed_requests += bad
        before = self.answered.get(self.seconds - 1, {})
        sums = {
            r: before.get(r, Counts(0, 0)) + answered.get(r, Counts(0, 0)) for r in {**before, **answered}
        }
        self.answered[self.seconds] = sums

    def _counts(self, since: float) -> dict[str, Counts]:
        """What scrapes have shown of the requests after `since`."""
        scraped = self.seconds - self.seconds % SCRAPE_SECONDS
        last, first = self.answered.get(scraped, {}), self.answered.get(int(since), {})
        if scraped <= since:
            return {}
        zero = Counts(0, 0)
        return {
            revision: Counts(
                counts.requests - first.get(revision, zero).requests,
                counts.bad - first.get(revision, zero).bad,
            )
            for revision, counts in last.items()
        }

    def _counted(self, objective: Objective, since: float) -> dict[str, Counts]:
        counts = self._counts(since)
        if objective.slo == "availability":
            return counts
        late = {r: self._behaviour(r).late_share if objective.slo == "latency" else 0.0 for r in counts}
        return {r: Counts(seen.requests, seen.requests * late[r]) for r, seen in counts.items()}

    def _signals(self, now: datetime, held_to: list[Any]) -> Signals | Outage:
        if not self.prometheus_up:
            return Outage(now, "Prometheus did not answer")
        began = evidence_since(StatusModel.model_validate(self.status), now)
        since = (clock.parse(began) - START).total_seconds() if began else float(self.seconds)
        return Signals(
            observed_at=now,
            rules_evaluated_at=now,
            alerts=tuple(self._alerts(held_to)),
            window_seconds=max(1, self.seconds - since) if began else 0,
            counts={objective.slo: self._counted(objective, since) for objective in held_to},
        )

    def _alerts(self, held_to: list[Any]) -> list[Alert]:
        objective, last_minute = held_to[0], self._counts(self.seconds - 60)
        found: list[Alert] = []
        for revision, mine in last_minute.items():
            rest = sum((c for r, c in last_minute.items() if r != revision), Counts(0, 0))
            worse = worse_than_others(mine, rest) or (rest.requests < 1 and worse_than_budget(mine, 0.001))
            if worse and mine.share > objective.threshold:
                found.append(
                    Alert(
                        objective.alert,
                        revision,
                        objective.slo,
                        True,
                        True,
                        mine.share,
                        objective.threshold,
                        "q",
                    )
                )
        return found

    # The record.

    def _shown(self, reason: str) -> str:
        split = " ".join(f"{self.version(r)}={w}%" for r, w in self.weights.items()) or "-"
        return f"{self.phase:<11}  {reason:<22}  {split}"

    def _note(self, text: str) -> None:
        if text != self._noted:
            self._noted = text
            self.timeline.append(f"{self.seconds:4d} s  {text}")
