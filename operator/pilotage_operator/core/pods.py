"""What the pods of a revision say: readiness, the digest that was fetched, and whose fault a failure is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pilotage_operator.core import clock, names
from pilotage_operator.core.fetching import Fetched

Fault = Literal["Model", "Infrastructure"]

MODEL_REASONS = frozenset({
    "NotFound", "InvalidURI", "TooLarge", "DigestMismatch", "UnknownFormat", "UntrustedFormat",
    "InvalidModel", "LoadFailed", "WarmUpFailed", "UnsafeArchive", "WorkersCrashed", "SignatureInvalid",
})  # fmt: skip
"""Reasons in a termination message that content alone decides: another try gives the same."""

_IMAGE_REASONS = frozenset({
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
})  # fmt: skip
_SETUP_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_CRASHES_THAT_CONDEMN = 3
_MESSAGE_LIMIT = 1024
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Failure:
    """Why a pod does not serve."""

    fault: Fault
    stage: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}: {self.message}"


@dataclass(frozen=True)
class Pod:
    """A model pod as decisions see it."""

    name: str
    revision: str
    created_at: datetime
    ready: bool = False
    digest: str | None = None
    failure: Failure | None = None
    refused: bool = False
    """Its content differs from the revision's pinned digest: never ready, and no reason for a rollback."""
    began: datetime | None = None
    """When its first container started: its node, volumes and images were there from then on."""
    fetching_since: datetime | None = None
    """When the fetch that runs now began."""
    fetched: Fetched | None = None
    """How far it is, by its log: only of the fetch that everybody waits for, and only where the log says so."""


def pod_from(manifest: Mapping[str, Any]) -> Pod | None:
    """Read a pod of the API server; None for one that has gone, is going away, or is none of ours."""
    metadata = manifest["metadata"]
    revision = metadata.get("labels", {}).get(names.LABEL_REVISION)
    if revision is None or metadata.get("deletionTimestamp"):
        return None
    status = manifest.get("status", {})
    if status.get("phase") == "Failed":
        # Its node gave it up (evicted, shut down, refused); it stays for hours beside its replacement.
        return None
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    fetch = _container(status.get("initContainerStatuses"), names.FETCH_CONTAINER)
    inference = _container(status.get("containerStatuses"), names.INFERENCE_CONTAINER)
    failure = _scheduling_failure(conditions) or _failure(fetch, "Fetch") or _failure(inference, "Serve")
    refused = failure is not None and failure.reason == "ModelContentChanged"
    return Pod(
        name=metadata["name"],
        revision=revision,
        created_at=clock.parse(metadata["creationTimestamp"]),
        ready=conditions.get("Ready", {}).get("status") == "True",
        digest=_fetched_digest(fetch),
        failure=failure,
        refused=refused,
        began=_began(fetch, "running", "terminated"),
        fetching_since=_began(fetch, "running"),
    )


def creation_failure(deployment: Mapping[str, Any]) -> Failure | None:
    """Why no pod could even be made, in the words of the API server."""
    conditions = {c["type"]: c for c in deployment.get("status", {}).get("conditions", [])}
    refused = conditions.get("ReplicaFailure", {})
    if refused.get("status") != "True":
        return None
    return Failure("Infrastructure", "Create", "FailedCreate", _cut(refused.get("message", "")))


def worst_failure(pods: Iterable[Pod]) -> Failure | None:
    """The failure to act on: the model's own before the infrastructure's; refused pods do not count."""
    failures = [pod.failure for pod in pods if pod.failure and not pod.refused and not pod.ready]
    return min(failures, key=lambda failure: (failure.fault != "Model", failure.reason), default=None)


def first_fetch(pods: Iterable[Pod]) -> Pod | None:
    """The pod of a revision whose fetch runs for longest, while none has fetched the model."""
    found = list(pods)
    if any(pod.digest for pod in found):
        return None
    began = [(pod.fetching_since, pod.name, pod) for pod in found if pod.fetching_since]
    return min(began, key=lambda each: each[:2])[2] if began else None


def _container(statuses: list[dict[str, Any]] | None, name: str) -> dict[str, Any]:
    return next((status for status in statuses or [] if status.get("name") == name), {})


def _scheduling_failure(conditions: Mapping[str, Mapping[str, Any]]) -> Failure | None:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return Failure("Infrastructure", "Schedule", "Unschedulable", _cut(scheduled.get("message", "")))
    return None


def _failure(container: Mapping[str, Any], stage: str) -> Failure | None:
    state = container.get("state", {})
    waiting = state.get("waiting", {})
    reason = waiting.get("reason", "")
    if reason in _IMAGE_REASONS:
        return Failure("Infrastructure", "Image", reason, _cut(waiting.get("message", "")))
    if reason in _SETUP_REASONS:
        return Failure("Infrastructure", "Start", reason, _cut(waiting.get("message", "")))
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated")
    if not ended or ended.get("exitCode") == 0 or container.get("ready"):
        return None
    told = _told(ended.get("message", ""))
    if isinstance(told.get("reason"), str):
        fault: Fault = "Model" if told["reason"] in MODEL_REASONS else "Infrastructure"
        stage = _word(told.get("stage", stage))
        return Failure(fault, stage, _word(told["reason"]), _cut(_text(told.get("message", ""))))
    crashes = container.get("restartCount", 0)
    # A crash that left no word may be an eviction or a node's fault; only its repetition is the model's.
    fault = "Model" if stage == "Serve" and crashes >= _CRASHES_THAT_CONDEMN else "Infrastructure"
    cause = ended.get("reason") or "Error"
    return Failure(fault, stage, cause, f"exit code {ended.get('exitCode')} after {crashes} restarts")


def _began(container: Mapping[str, Any], *states: str) -> datetime | None:
    """When a container came into the state that it is in, if that is one of these."""
    state = container.get("state", {})
    began = next((state[name].get("startedAt") for name in states if name in state), None)
    return clock.parse(began) if began else None


def _fetched_digest(fetch: Mapping[str, Any]) -> str | None:
    ended = fetch.get("state", {}).get("terminated", {})
    if ended.get("exitCode") != 0:
        return None
    digest = _told(ended.get("message", "")).get("digest")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def _told(message: str) -> dict[str, Any]:
    """The termination message, which comes from a container and is hostile until parsed."""
    try:
        told = json.loads(message)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _text(value: Any) -> str:
    """As a text that can be written on: half of a surrogate pair is no character."""
    return str(value).encode(errors="replace").decode()


def _word(value: Any) -> str:
    """As a condition's reason may be; what is none came from an image that is not ours."""
    return value if isinstance(value, str) and _REASON.fullmatch(value) else "Unknown"


def _cut(text: str) -> str:
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"
