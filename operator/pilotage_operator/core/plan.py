"""Snapshot → the next status and the ordered actions that bring the world there.

Order of actions: what serves before what routes, routes before what they leave behind. A revision is retired
only after the live routes were seen without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilotage_operator.api.rollout import RolloutSpec
from pilotage_operator.api.status import Address, ConditionType, RolloutStatus, StatusModel
from pilotage_operator.core import clock, difference, hosts, names, revisions, sizing
from pilotage_operator.core.children import autoscaler, routes, rules, service_monitor, workload
from pilotage_operator.core.conditions import Told, merge, phase_conditions
from pilotage_operator.core.facts import Facts
from pilotage_operator.core.moves import REST_SECONDS, Event, Move
from pilotage_operator.core.revisions import Revision
from pilotage_operator.core.rollout import State, decide, state_of
from pilotage_operator.core.signals import Outage, Signals
from pilotage_operator.core.snapshot import Snapshot


@dataclass(frozen=True)
class Apply:
    """Create or correct a child by server-side apply."""

    manifest: Mapping[str, Any]
    creates: bool
    """The child is not there yet: an object of somebody else under its name must not be taken over."""
    handover: Mapping[str, Any] | None = None
    """What another field manager is to apply first, so that its fields keep their values."""


@dataclass(frozen=True)
class Delete:
    """Remove a child that is no longer wanted."""

    key: names.ObjectKey


Action = Apply | Delete
_REFUSAL_LIMIT = 400
"""Of the API server's words: several must fit into a condition beside the rest."""


@dataclass(frozen=True)
class Plan:
    """What one reconcile does: persist the status, then act in order, then tell."""

    status: StatusModel
    actions: tuple[Action, ...]
    events: tuple[Event, ...]
    reason: str
    message: str
    look_again: float | None


def plan(snapshot: Snapshot) -> Plan:
    """Decide and render; the same snapshot gives the same plan."""
    facts = Facts(snapshot)
    move = decide(facts)
    exposure, known = hosts.exposure(snapshot), _revisions(facts, _roles(move.status))
    wanted = {names.key_of(m): m for m in _children(snapshot, move, exposure, known)}
    conflict = _conflict(snapshot, wanted)
    if conflict:
        move, wanted = _despite(snapshot, move, conflict, wanted)
    # What could not be rendered must not look as if nobody wanted it.
    whole = not conflict and all(role in known for role in _roles(move.status))
    actions = (*_applies(snapshot, wanted), *(_retirements(snapshot, wanted) if whole else ()))
    events = [move.event] if move.event else []
    events += [*_corrections(snapshot), *_refusals_untold(snapshot)]
    status = _told(snapshot, move, exposure, conflict)
    return Plan(status, actions, tuple(events), move.reason, move.message, move.look_again)


# Children.


def held_back(manifest: Mapping[str, Any], namespace: str, unmade: Collection[Mapping[str, Any]]) -> bool:
    """Whether a child has to wait for some that could not be made.

    What follows in a revision stands on what comes before it: without its ControllerRevision nobody would know
    its Deployment, without its digest two pods could run different content. No route leads where no Service is.
    """
    revision = manifest["metadata"]["labels"].get(names.LABEL_REVISION)
    if revision and any(m["metadata"]["labels"].get(names.LABEL_REVISION) == revision for m in unmade):
        return True
    leads_to = (
        routes.revisions_in(manifest, namespace) if manifest["kind"] == "VirtualService" else set[str]()
    )
    return any(m["kind"] == "Service" and m["metadata"]["name"] in leads_to for m in unmade)


def _roles(status: StatusModel) -> list[str]:
    """The revisions in use, the stable one first."""
    return [part.revision for part in (status.stable, status.canary) if part]


def _revisions(facts: Facts, roles: Sequence[str]) -> dict[str, Revision]:
    """The revisions that are stored, and those in use: a new one, or one whose ControllerRevision was deleted by hand.

    Of the latter only the live Deployment is known, until the spec asks for its content again.
    """
    known = {revision.name: revision for revision in facts.snapshot.history}
    for role in roles:
        template = facts.snapshot.template_of(role)
        if role not in known and role == facts.wanted.name:
            known[role] = facts.wanted
        elif role not in known and template:
            known[role] = Revision(role, inputs={}, template=template)
    return known


def _children(
    snapshot: Snapshot, move: Move, exposure: hosts.Exposure, known: Mapping[str, Revision]
) -> Iterator[dict[str, Any]]:
    """Every child that should be, in the order of its application."""
    status, deployment = move.status, snapshot.deployment
    spec, name, namespace = deployment.spec, deployment.name, deployment.namespace
    for revision in _remembered(snapshot, status, known.values()):
        if revision.inputs:
            yield revisions.controller_revision(revision, name)
        digest = snapshot.digest_of(revision.name) or revision.given_digest
        if digest:
            yield workload.digest(revision, name, digest)
    canary = status.canary.revision if status.canary else None
    stable = status.stable.revision if status.stable else None
    for role in _roles(status):
        if role in known:
            yield from _workload(snapshot, move, known[role], canary=role == canary)
    if stable and stable in known:
        yield workload.stable_service(name, known[stable])
    if snapshot.features.prometheus_rules:
        interval = snapshot.install.scrape_interval_seconds
        labels = snapshot.install.monitoring_labels
        yield rules.prometheus_rule(name, namespace, slo=spec.slo, interval_seconds=interval, labels=labels)
        if snapshot.install.service_monitors and snapshot.features.service_monitors:
            yield service_monitor.service_monitor(name, interval_seconds=interval, labels=labels)
    if snapshot.features.istio and stable:
        for role in (stable, canary):
            if role is not None:
                yield routes.destination_rule(
                    role, name, namespace, routing=spec.routing, canary=role == canary
                )
        weight = status.canary.weight if status.canary else 0
        weights = {stable: 100 - weight, **({canary: weight} if canary else {})}
        serving = {role for role in weights if role in known and known[role].serves_grpc}
        yield routes.virtual_service(
            name,
            namespace,
            routing=spec.routing,
            hosts=exposure.hosts,
            gateways=exposure.gateways,
            weights=weights,
            grpc_weights=routes.grpc_weights(weights, stable, serving),
        )


def _workload(
    snapshot: Snapshot, move: Move, revision: Revision, *, canary: bool
) -> Iterator[dict[str, Any]]:
    spec, owner = snapshot.deployment.spec, snapshot.deployment.name
    size = (sizing.canary_size if canary else sizing.stable_size)(move.status, spec.scaling)
    pinned = (snapshot.digest_of(revision.name) or revision.given_digest) is not None
    fixed = spec.scaling.replicas is not None
    # Until its content is known a revision has one pod: two could fetch different things.
    replicas = 1 if not pinned else size if fixed else None
    yield workload.service(revision, owner)
    yield workload.deployment(
        revision,
        owner,
        replicas=replicas,
        min_ready_seconds=spec.rollout.min_ready_seconds,
        progress_seconds=spec.rollout.progress_deadline_seconds,
    )
    if pinned and not fixed:
        yield autoscaler.autoscaler(
            revision, owner, least=size, most=spec.scaling.maximum, cpu_percent=spec.scaling.cpu_percent
        )
    yield workload.disruption_budget(revision, owner)


def _remembered(snapshot: Snapshot, status: StatusModel, known: Collection[Revision]) -> list[Revision]:
    """The revisions in use and the newest of the others, oldest first."""
    in_use, limit = set(_roles(status)), snapshot.deployment.spec.rollout.revision_history_limit
    ordered = sorted(known, key=lambda revision: revision.number)
    # The last that was good is kept, however long ago it was made.
    before = snapshot.status.stable.revision if snapshot.status.stable else None
    others = sorted((r for r in ordered if r.name not in in_use), key=lambda r: r.name == before)
    kept = {revision.name for revision in others[-limit:]} if limit else set[str]()
    return [revision for revision in ordered if revision.name in in_use | kept]


def _applies(snapshot: Snapshot, wanted: Mapping[names.ObjectKey, dict[str, Any]]) -> Iterator[Apply]:
    for key, manifest in wanted.items():
        live, stamped = snapshot.children.get(key), difference.stamped(manifest)
        if live is None or (not _immutable(key) and difference.differs(stamped, live)):
            yield Apply(stamped, creates=live is None, handover=_handover(manifest, live))


def _handover(wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The replicas that the autoscaler goes on from: a field that its only owner drops falls back to 1."""
    if live is None or wanted["kind"] != "Deployment" or "replicas" in wanted["spec"]:
        return None
    ours = any(
        entry.get("manager") == names.FIELD_MANAGER
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in live["metadata"].get("managedFields", [])
    )
    replicas = live["spec"].get("replicas", 1)
    if not ours or replicas == 1:
        return None
    named = {"apiVersion": wanted["apiVersion"], "kind": wanted["kind"]}
    return {**named, "metadata": {"name": wanted["metadata"]["name"]}, "spec": {"replicas": replicas}}


def _immutable(key: names.ObjectKey) -> bool:
    return key[0] in {"ControllerRevision", "ConfigMap"}


_RETIRED_IN_ORDER = (
    "DestinationRule",
    "HorizontalPodAutoscaler",
    "Deployment",
    "PodDisruptionBudget",
    "Service",
    "ConfigMap",
    "ControllerRevision",
)
"""What a revision leaves behind; the ModelDeployment's own children go with it, by their owner reference."""


def _retirements(snapshot: Snapshot, wanted: Mapping[names.ObjectKey, dict[str, Any]]) -> Iterator[Delete]:
    routed = snapshot.routed
    unwanted = [key for key in snapshot.children if key not in wanted and key[0] in _RETIRED_IN_ORDER]
    for kind, name in sorted(unwanted, key=lambda key: (_RETIRED_IN_ORDER.index(key[0]), key[1])):
        if name not in routed:
            yield Delete((kind, name))


# Status.


def _told(snapshot: Snapshot, move: Move, exposure: hosts.Exposure, conflict: str | None) -> StatusModel:
    """The status to write: the move's, completed by what was observed."""
    status, deployment = move.status, snapshot.deployment
    changes: dict[str, Any] = {
        "observed_generation": deployment.metadata.generation,
        "phase": move.phase,
        "router": "Istio" if snapshot.features.istio else None,
        "replicas": len(snapshot.pods),
        "conditions": merge(
            snapshot.status.conditions,
            [
                *(
                    _conflict_conditions(status, conflict)
                    if conflict
                    else phase_conditions(
                        move.phase, move.reason, " ".join([move.message, *_refusals(snapshot)])
                    )
                ),
                *_nobody_serves(snapshot, status),
                _slo_healthy(snapshot),
                _traffic_routed(snapshot, exposure),
            ],
            generation=deployment.metadata.generation,
            now=clock.stamp(snapshot.now),
        ),
    }
    if status.stable:
        name = status.stable.revision
        changes["stable"] = status.stable.model_copy(update=_observed(snapshot, name))
        changes["address"] = Address(
            url=f"http://{names.service_host(deployment.name, deployment.namespace)}"
        )
        changes["selector"] = ",".join(
            f"{key}={value}" for key, value in names.labels(deployment.name).items()
        )
    if status.canary:
        name = status.canary.revision
        changes["canary"] = status.canary.model_copy(
            update={**_observed(snapshot, name), "applied_weight": snapshot.applied_weights.get(name, 0)}
        )
    if status.rollout:
        update = {"reason": move.reason, "next_at": _next_at(status.rollout, deployment.spec.rollout)}
        changes["rollout"] = status.rollout.model_copy(update=update)
    return status.model_copy(update=changes)


def _next_at(rollout: RolloutStatus, spec: RolloutSpec) -> str | None:
    if rollout.bake_started_at:
        return clock.later(rollout.bake_started_at, spec.bake_seconds)
    if rollout.step_started_at and rollout.step_index < len(rollout.steps):
        return clock.later(rollout.step_started_at, rollout.steps[rollout.step_index].hold_seconds)
    return None


def _observed(snapshot: Snapshot, revision: str) -> dict[str, Any]:
    stored = snapshot.revision(revision)
    return {
        "model_digest": snapshot.digest_of(revision),
        "runtime_image": stored.runtime_image if stored else None,
        "ready_replicas": sum(pod.ready for pod in snapshot.pods_of(revision)),
    }


def _nobody_serves(snapshot: Snapshot, status: StatusModel) -> list[Told]:
    """Whatever the phase promises, without a ready pod behind the traffic nothing is served."""
    if status.stable is None:
        return []
    serving = [status.stable.revision]
    if status.canary and status.canary.weight:
        serving = (
            [status.canary.revision] if status.canary.weight == 100 else [*serving, status.canary.revision]
        )
    if any(pod.ready for revision in serving for pod in snapshot.pods_of(revision)):
        return []
    why = next((str(p.failure) for r in serving for p in snapshot.pods_of(r) if p.failure), "")
    return [("Ready", "False", "NoPodReady", f"No pod of {' or '.join(serving)} is ready. {why}".rstrip())]


def _slo_healthy(snapshot: Snapshot) -> Told:
    kind: ConditionType = "SLOHealthy"
    if not snapshot.features.prometheus_rules:
        return (
            kind,
            "Unknown",
            "RulesUnavailable",
            "The cluster serves no PrometheusRule: SLOs are not watched.",
        )
    match snapshot.signals:
        case None:
            return kind, "Unknown", "NotObserved", "Nothing was asked of Prometheus yet."
        case Outage(message=message):
            return kind, "Unknown", "PrometheusUnreachable", message
        case Signals(rules_loaded=False):
            return (
                kind,
                "Unknown",
                "RulesNotLoaded",
                "Prometheus has not loaded this ModelDeployment's rules.",
            )
        case Signals():
            firing = sorted({f"{a.name} ({a.revision})" for a in snapshot.signals.alerts if a.firing})
            if firing:
                return kind, "False", "AlertFiring", f"Firing: {', '.join(firing)}."
            return kind, "True", "NoAlert", "No alert fires."


def _traffic_routed(snapshot: Snapshot, exposure: hosts.Exposure) -> Told:
    kind: ConditionType = "TrafficRouted"
    if not snapshot.features.istio:
        message = "The cluster serves no Istio API: only the stable revision's Service is there."
        return kind, "False", "RouterAbsent", message
    if exposure.refusals:
        reason = exposure.refusals[0][0]
        return kind, "False", reason, " ".join(message for _, message in exposure.refusals)
    if not snapshot.applied_weights:
        return kind, "False", "NoRoute", "No route exists yet."
    return kind, "True", "Routed", "The routes are in place."


# What goes wrong around us.


def _conflict(snapshot: Snapshot, wanted: Mapping[names.ObjectKey, Any]) -> str | None:
    """A name that we need and somebody else's object has."""
    taken = sorted(snapshot.strangers & wanted.keys())
    if not taken:
        return None
    listed = ", ".join(f"{kind} {name}" for kind, name in taken)
    return (
        f"{listed} exists in namespace {snapshot.deployment.namespace} and does not belong to this"
        " ModelDeployment. Rename the ModelDeployment, or remove the object."
    )


def _conflict_conditions(status: StatusModel, message: str) -> list[Told]:
    """What serves goes on serving; a person has to mend the rest."""
    reason = "NameConflict"
    return [
        ("Ready", "True" if status.stable else "False", reason, message),
        ("Reconciling", "False", reason, message),
        ("Stalled", "True", reason, message),
    ]


def _despite(
    snapshot: Snapshot, move: Move, message: str, wanted: dict[names.ObjectKey, Any]
) -> tuple[Move, dict[names.ObjectKey, Any]]:
    """Nothing is written over another's object. The state stays as it was, but for a bad revision's traffic."""
    if State.ROLLING_BACK in {state_of(snapshot.status), state_of(move.status)}:
        return move, {key: manifest for key, manifest in wanted.items() if key not in snapshot.strangers}
    known = any(c.reason == "NameConflict" for c in snapshot.status.conditions)
    canary = snapshot.status.canary
    stalled = Move(
        status=snapshot.status,
        phase="Failed" if snapshot.status.stable is None else (snapshot.status.phase or "Failed"),
        reason="NameConflict",
        message=message,
        look_again=move.look_again if canary and canary.weight else REST_SECONDS,
        event=None if known else Event("NameConflict", message, warning=True),
    )
    return stalled, {}


def _refusals(snapshot: Snapshot) -> list[str]:
    """What the API server did not accept, in its words."""
    return [
        f"{kind} {name} is refused by the API server: {said[:_REFUSAL_LIMIT]}"
        for (kind, name), said in sorted(snapshot.refused.items())
    ]


def _refusals_untold(snapshot: Snapshot) -> list[Event]:
    told = [condition.message for condition in snapshot.status.conditions]
    fresh = [said for said in _refusals(snapshot) if not any(said in message for message in told)]
    return [Event("ChildRefused", said, warning=True) for said in fresh]


def _corrections(snapshot: Snapshot) -> list[Event]:
    """Weights in the live routes that nobody decided: corrected, told, never adopted."""
    live, before = snapshot.applied_weights, snapshot.status
    if not live or before.stable is None:
        return []
    weight = before.canary.weight if before.canary else 0
    decided = {before.stable.revision: 100 - weight}
    if before.canary:
        decided[before.canary.revision] = weight
    decided = {revision: share for revision, share in decided.items() if share > 0}
    if live == decided or before.canary is None or before.canary.applied_weight != weight:
        return []
    shown = ", ".join(f"{revision} {share}%" for revision, share in live.items())
    message = f"The VirtualService's weights were changed to {shown}; they are set back."
    return [Event("WeightDriftCorrected", message, warning=True)]
