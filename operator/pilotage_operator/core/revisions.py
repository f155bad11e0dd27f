"""What makes a revision: `spec.model` and `spec.runtime` as the user wrote them, empties dropped.

An immutable ControllerRevision stores the inputs and the pod template rendered from them. Inputs are
compared with stored inputs; the hash only names. So a newer operator, CRD or default image restarts nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pilotage_operator.core import names

_HASH_LENGTH = 10


@dataclass(frozen=True)
class Revision:
    """One immutable version of what runs."""

    name: str
    inputs: Mapping[str, Any]
    template: Mapping[str, Any]
    attempt: int = 1
    number: int = 1
    """Its place in the history, as ControllerRevision counts."""

    @property
    def inputs_hash(self) -> str:
        return inputs_hash(self.inputs)

    @property
    def runtime_image(self) -> str:
        return self.template["spec"]["containers"][0]["image"]

    @property
    def serves_grpc(self) -> bool:
        """Whether its pods have a port for gRPC; the template says so, whatever the spec says by now."""
        ports = self.template["spec"]["containers"][0].get("ports", [])
        return any(port["name"] == "grpc" for port in ports)

    @property
    def given_digest(self) -> str | None:
        """The digest that the user wrote, if any."""
        return self.inputs.get("model", {}).get("digest")


def inputs_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The revision's inputs in a spec, as it stands in the cluster."""
    kept = {section: _without_empties(spec.get(section)) for section in ("model", "runtime")}
    return {section: value for section, value in kept.items() if value not in (None, {}, [])}


def inputs_hash(inputs: Mapping[str, Any]) -> str:
    """A short name for inputs."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def revision_name(deployment: str, inputs: Mapping[str, Any], attempt: int) -> str:
    """NAME-HASH, and NAME-HASH-ATTEMPT once re-armed, so that a second try has fresh series."""
    base = f"{deployment}-{inputs_hash(inputs)}"
    return base if attempt == 1 else f"{base}-{attempt}"


def from_controller_revision(manifest: Mapping[str, Any]) -> Revision:
    data = manifest["data"]
    return Revision(
        name=manifest["metadata"]["name"],
        inputs=data["inputs"],
        template=data["template"],
        attempt=data.get("attempt", 1),
        number=manifest["revision"],
    )


def controller_revision(revision: Revision, deployment: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": revision.name, "labels": names.labels(deployment, revision.name)},
        "data": {"inputs": revision.inputs, "template": revision.template, "attempt": revision.attempt},
        "revision": revision.number,
    }


def find(history: Iterable[Revision], inputs: Mapping[str, Any], attempt: int) -> Revision | None:
    """The stored revision of these inputs at this attempt."""
    return next((r for r in history if r.inputs == inputs and r.attempt == attempt), None)


def _without_empties(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _without_empties(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, {}, [])}
    if isinstance(value, list):
        return [_without_empties(item) for item in value]
    return value
