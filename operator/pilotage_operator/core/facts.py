"""A snapshot, read: the questions that the rollout's table asks of it, each answered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

from pilotage_operator.api.status import CanaryStatus, Rejected, RolloutStatus, StatusModel, Step
from pilotage_operator.core import clock, revisions, sizing
from pilotage_operator.core.children.pod_template import pod_template
from pilotage_operator.core.objectives import objectives
from pilotage_operator.core.pods import Failure, Pod, first_fetch, worst_failure
from pilotage_operator.core.revisions import Revision
from pilotage_operator.core.signals import Counts, Signals
from pilotage_operator.core.snapshot import Snapshot
from pilotage_operator.core.verdict import Outcome, Verdict, burns_too, in_doubt, judge


@dataclass(frozen=True)
class Facts:
    """What the table's guards and effects read."""

    snapshot: Snapshot

    @property
    def status(self) -> StatusModel:
        return self.snapshot.status

    @property
    def canary(self) -> CanaryStatus:
        """The revision rolling out; only asked where the table knows that there is one."""
        assert self.status.canary is not None
        return self.status.canary

    @property
    def rollout(self) -> RolloutStatus:
        assert self.status.rollout is not None
        return self.status.rollout

    @property
    def now(self) -> str:
        return clock.stamp(self.snapshot.now)

    def since(self, moment: str | None) -> float:
        """Seconds since a stamp."""
        return clock.seconds_between(moment, self.snapshot.now)

    # What the spec wants.

    @cached_property
    def inputs_hash(self) -> str:
        return revisions.inputs_hash(self.snapshot.inputs)

    @cached_property
    def rejection(self) -> Rejected | None:
        """The rejection that keeps the wanted content from being tried."""
        token = self.snapshot.deployment.spec.rollout.retry_token
        of_content = [r for r in self.status.rejected if r.inputs_hash == self.inputs_hash]
        return next((r for r in of_content if r.retry_token == token and not r.withdrawn_at), None)

    @cached_property
    def innocent(self) -> Counts | None:
        """What the old revision answered after a rollback, if it shows that the fault was not the new one's."""
        rollback, signals = self.status.rollback, self.snapshot.signals
        if rollback is None or self.rejection is None or self.rejection.revision != rollback.from_:
            return None
        if not isinstance(signals, Signals) or not in_doubt(rollback, self.snapshot.now):
            return None
        held_to = objectives(self.snapshot.deployment.spec.slo)
        return burns_too(signals, rollback.to, rollback.evidence, held_to)

    @cached_property
    def wanted(self) -> Revision:
        """The revision that the spec asks for: a stored one, or a new one with today's defaults."""
        tried = {r.revision for r in self.status.rejected}
        name = self.snapshot.deployment.name
        attempt = next(
            n for n in count(1) if revisions.revision_name(name, self.snapshot.inputs, n) not in tried
        )
        stored = revisions.find(self.snapshot.history, self.snapshot.inputs, attempt)
        return stored or self._new(self.snapshot.inputs, attempt)

    def _new(self, inputs: Mapping[str, Any], attempt: int) -> Revision:
        deployment = self.snapshot.deployment
        name = revisions.revision_name(deployment.name, inputs, attempt)
        return Revision(
            name=name,
            inputs=inputs,
            # What runs although its ControllerRevision was deleted by hand must not be restarted.
            template=self.snapshot.template_of(name) or pod_template(deployment, name, self.snapshot.install),
            attempt=attempt,
            number=1 + max((r.number for r in self.snapshot.history), default=0),
        )

    @property
    def wants_stable(self) -> bool:
        return self._runs(self.status.stable.revision if self.status.stable else None)

    @property
    def wants_canary(self) -> bool:
        return self._runs(self.status.canary.revision if self.status.canary else None)

    def _runs(self, name: str | None) -> bool:
        stored = self.snapshot.revision(name)
        return stored.inputs == self.snapshot.inputs if stored else name == self.wanted.name

    # What the canary's pods say.

    @cached_property
    def needed(self) -> int:
        return sizing.canary_size(self.status, self.snapshot.deployment.spec.scaling)

    @property
    def grown(self) -> int:
        """The stable revision's size, by which the next weight is sized: what its autoscaler added is needed."""
        assert self.status.stable is not None
        return max(self.rollout.stable_replicas, self.snapshot.replicas(self.status.stable.revision))

    @property
    def available(self) -> int:
        return self.snapshot.available(self.canary.revision)

    @property
    def digest(self) -> str | None:
        return self.snapshot.digest_of(self.canary.revision)

    @property
    def enough_pods(self) -> bool:
        return self.digest is not None and self.available >= self.needed

    @cached_property
    def failure(self) -> Failure | None:
        """Why the canary's pods do not serve, the deadline included."""
        found = worst_failure(self.snapshot.pods_of(self.canary.revision))
        return found or self.snapshot.creation_failure(self.canary.revision) or self._overdue()

    @property
    def refused(self) -> Failure | None:
        """A pod of the canary whose content differs from what the first one fetched."""
        pods = self.snapshot.pods_of(self.canary.revision)
        return next((pod.failure for pod in pods if pod.refused), None)

    @cached_property
    def stable_failure(self) -> Failure | None:
        """Why a pod of the stable revision does not serve; one whose content changed is among them."""
        if self.status.stable is None:
            return None
        name = self.status.stable.revision
        failures = (pod.failure for pod in self.snapshot.pods_of(name) if pod.failure and not pod.ready)
        return next(failures, None) or self.snapshot.creation_failure(name)

    def _overdue(self) -> Failure | None:
        """A pod that had its time and met no outage: the deadline counts only the model's own time."""
        deadline = self.snapshot.deployment.spec.rollout.progress_deadline_seconds
        since = self.canary.progressing_since
        if since is None:
            return None
        waiting = [p for p in self.snapshot.pods_of(self.canary.revision) if not p.ready and not p.failure]
        for pod in waiting:
            # One that waits for its image or a volume has not begun.
            if pod.began and min(self.since(clock.stamp(pod.began)), self.since(since)) > deadline:
                return Failure(
                    "Model",
                    "Start",
                    "ProgressDeadlineExceeded",
                    f"pod {pod.name} is not ready after {deadline} s",
                )
        return None

    @property
    def first_fetch(self) -> Pod | None:
        """The canary's pod that has been fetching for longest, while none has fetched the model."""
        return first_fetch(self.snapshot.pods_of(self.canary.revision))

    # What the routes and the metrics say.

    @property
    def applied_weight(self) -> int:
        """The canary's share in the live routes."""
        return self.snapshot.applied_weights.get(self.canary.revision, 0)

    @property
    def routed(self) -> bool:
        return self.applied_weight == self.canary.weight

    @property
    def step(self) -> Step | None:
        """The step under way; None once all are passed."""
        steps = self.rollout.steps
        return steps[self.rollout.step_index] if self.rollout.step_index < len(steps) else None

    @property
    def manual_weight(self) -> int | None:
        """The SRE's weight, if it was set for the revision now rolling out."""
        manual = self.rollout.manual
        return manual.weight if manual and manual.revision == self.canary.revision else None

    @cached_property
    def verdict(self) -> Verdict:
        spec = self.snapshot.deployment.spec
        if not self.snapshot.features.prometheus_rules:
            message = "The cluster serves no PrometheusRule, so nothing can be shown and no step passes."
            return Verdict(Outcome.UNKNOWN, "RulesUnavailable", message)
        return judge(
            self.snapshot.signals if self.canary.traffic_started_at else None,
            canary=self.canary.revision,
            held_to=objectives(spec.slo),
            least_requests=spec.rollout.min_requests,
            interval_seconds=self.snapshot.install.scrape_interval_seconds,
            alone=self.canary.weight == 100,
        )
