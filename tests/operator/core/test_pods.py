"""Whose fault it is that a pod does not serve, read from pods as the kubelet reports them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage_operator.core import clock
from pilotage_operator.core.pods import MODEL_REASONS, Failure, Pod, pod_from, worst_failure

DIGEST = "sha256:" + "0123456789abcdef" * 4
INFRASTRUCTURE_REASONS = (
    "StoreUnavailable", "AccessDenied", "TimedOut", "Truncated", "AddressNotAllowed", "CredentialsMissing", "DiskFull",
)  # fmt: skip


def manifest(
    *,
    fetch: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    conditions: dict[str, dict[str, str]] | None = None,
    **status: Any,
) -> dict[str, Any]:
    """A pod with these container statuses and conditions."""
    return {
        "metadata": {
            "name": "fraud-1-x",
            "labels": {"pilotage.dev/revision": "fraud-1"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "status": {
            "conditions": [{"type": kind, **told} for kind, told in (conditions or {}).items()],
            "initContainerStatuses": [{"name": "fetch", **fetch}] if fetch else [],
            "containerStatuses": [{"name": "inference", **inference}] if inference else [],
            **status,
        },
    }


def ended(message: str = "", code: int = 1, *, restarts: int = 0, reason: str = "Error") -> dict[str, Any]:
    """A container that waits for its next start."""
    return {
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
        "lastState": {"terminated": {"exitCode": code, "reason": reason, "message": message}},
    }


def fetched(message: str) -> dict[str, Any]:
    return {"state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}}


def told(**words: Any) -> str:
    return json.dumps(words)


def failure_of(**parts: Any) -> Failure | None:
    pod = pod_from(manifest(**parts))
    assert pod is not None
    return pod.failure


@pytest.mark.parametrize("reason", sorted(MODEL_REASONS))
def test_what_the_content_decides_is_the_models_fault(reason: str) -> None:
    message = told(stage="Verify", reason=reason, message="as it is")
    assert failure_of(fetch=ended(message)) == Failure("Model", "Verify", reason, "as it is")


@pytest.mark.parametrize("reason", [*INFRASTRUCTURE_REASONS, "SomethingNew"])
def test_what_another_try_may_mend_is_not(reason: str) -> None:
    message = told(stage="Download", reason=reason, message="no answer")
    assert failure_of(fetch=ended(message, 75)) == Failure("Infrastructure", "Download", reason, "no answer")


def test_a_model_that_does_not_load_is_told_by_the_serving_container() -> None:
    message = told(stage="Load", reason="LoadFailed", message="unknown operator Foo")
    found = failure_of(fetch=fetched(told(digest=DIGEST)), inference=ended(message))
    assert found == Failure("Model", "Load", "LoadFailed", "unknown operator Foo")


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "SignatureValidationFailed"]
)
def test_an_image_that_cannot_be_pulled_is_infrastructure(reason: str) -> None:
    waiting = {"state": {"waiting": {"reason": reason, "message": "manifest unknown"}}}
    expected = Failure("Infrastructure", "Image", reason, "manifest unknown")
    assert failure_of(fetch=waiting) == expected
    assert failure_of(inference=waiting) == expected


def test_a_missing_secret_is_infrastructure() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}
    found = failure_of(fetch={"state": {"waiting": waiting}})
    assert found == Failure("Infrastructure", "Start", waiting["reason"], waiting["message"])


def test_a_pod_without_a_node_is_infrastructure() -> None:
    scheduled = {"status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    found = failure_of(conditions={"PodScheduled": scheduled})
    assert found == Failure("Infrastructure", "Schedule", "Unschedulable", "0/3 nodes are available")


@pytest.mark.parametrize(("restarts", "fault"), [(0, "Infrastructure"), (2, "Infrastructure"), (3, "Model")])
def test_a_wordless_crash_is_the_models_fault_once_it_repeats(restarts: int, fault: str) -> None:
    found = failure_of(inference=ended(code=137, reason="OOMKilled", restarts=restarts))
    assert found == Failure(fault, "Serve", "OOMKilled", f"exit code 137 after {restarts} restarts")


def test_a_fetch_that_crashes_without_a_word_is_never_the_models_fault() -> None:
    found = failure_of(fetch=ended(code=137, restarts=50))
    assert found is not None
    assert found.fault == "Infrastructure"


@pytest.mark.parametrize(
    "inference",
    [
        {"ready": True, "state": {"running": {}}},
        {"ready": True, "restartCount": 7, "lastState": ended()["lastState"], "state": {"running": {}}},
        {"state": {"waiting": {"reason": "PodInitializing"}}},
        {"state": {"terminated": {"exitCode": 0}}},
    ],
)
def test_what_serves_starts_or_ended_well_has_not_failed(inference: dict[str, Any]) -> None:
    assert failure_of(fetch=fetched(told(digest=DIGEST)), inference=inference) is None


def test_a_fetch_that_succeeds_after_failures_has_succeeded() -> None:
    pod = pod_from(
        manifest(fetch={**ended("{}"), **fetched(told(digest=DIGEST, bytes=9)), "restartCount": 4})
    )
    assert pod is not None
    assert (pod.digest, pod.failure) == (DIGEST, None)


def test_other_content_than_the_pinned_is_refused_and_condemns_nobody() -> None:
    message = told(stage="Verify", reason="ModelContentChanged", message="pinned a, fetched b", digest=DIGEST)
    pod = pod_from(manifest(fetch=ended(message)))
    assert pod is not None
    assert pod.refused
    assert not pod.ready
    assert pod.digest is None
    assert worst_failure([pod]) is None


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:abc", DIGEST.upper(), DIGEST + "0", DIGEST + "\n", "md5:1", 7, None, [DIGEST]],
)
def test_what_is_no_digest_pins_nothing(digest: Any) -> None:
    pod = pod_from(manifest(fetch=fetched(told(digest=digest))))
    assert pod is not None
    assert pod.digest is None


def test_a_pod_that_leaves_or_is_none_of_ours_is_not_seen() -> None:
    leaving, other = manifest(), manifest()
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    other["metadata"]["labels"] = {"app": "db"}
    assert (pod_from(leaving), pod_from(other)) == (None, None)


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown", "Preempting", "UnexpectedAdmissionError"])
def test_a_pod_that_its_node_gave_up_is_not_seen(reason: str) -> None:
    """It stays for hours beside its replacement: it would hold up the rollout, then pass for a slow start."""
    assert pod_from(manifest(phase="Failed", reason=reason)) is None


def test_readiness_is_the_pods_condition() -> None:
    for status in ("True", "False"):
        pod = pod_from(manifest(conditions={"Ready": {"status": status}}))
        assert pod is not None
        assert pod.ready == (status == "True")


def test_the_models_own_failure_is_acted_on_first_and_ready_pods_do_not_count() -> None:
    model = Failure("Model", "Load", "LoadFailed", "")
    store = Failure("Infrastructure", "Download", "StoreUnavailable", "")

    def pod(failure: Failure | None, **parts: Any) -> Pod:
        seen = pod_from(manifest())
        assert seen is not None
        return Pod(seen.name, seen.revision, seen.created_at, failure=failure, **parts)

    assert worst_failure([pod(store), pod(model), pod(None)]) == model
    assert worst_failure([pod(store), pod(model, ready=True)]) == store
    assert worst_failure([pod(None)]) is None


words = st.text(st.characters(), max_size=40)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
telling = st.dictionaries(st.sampled_from(["stage", "reason", "message", "digest", "bytes"]), anything)


@given(st.one_of(words, anything.map(json.dumps), telling.map(json.dumps)), st.sampled_from([0, 1, 75, 137]))
def test_whatever_a_container_writes_it_is_read_and_can_be_written_on(message: str, code: int) -> None:
    pod = pod_from(manifest(fetch={"state": {"terminated": {"exitCode": code, "message": message}}}))
    assert pod is not None
    assert (pod.failure is None) == (code == 0)
    str(pod).encode()
    if pod.failure:
        assert len(str(pod.failure)) <= 1500


@pytest.mark.parametrize(
    "message",
    [
        "[" * 4096,
        '{"a":' * 800,
        "9" * 4096,
        '{"reason": ["LoadFailed"]}',
        '{"message": "\\ud800"}',
        "NaN",
        "\x00",
    ],
)
def test_known_ways_to_break_a_reader_do_not(message: str) -> None:
    found = failure_of(inference=ended(message, restarts=1))
    assert found is not None
    assert found.fault == "Infrastructure"
    str(found).encode()


def test_a_long_message_is_cut() -> None:
    found = failure_of(fetch=ended(told(reason="LoadFailed", message="x" * 4000)))
    assert found is not None
    assert len(found.message) == 1024
    assert found.message.endswith("x…")


AT = {"startedAt": "2026-01-01T00:00:07Z"}


@pytest.mark.parametrize("state", [{"running": AT}, {"terminated": {"exitCode": 0, **AT}}])
def test_a_pod_has_begun_once_its_fetch_has_started(state: dict[str, Any]) -> None:
    begun = pod_from(manifest(fetch={"state": state}))
    assert begun is not None
    assert begun.began == clock.parse("2026-01-01T00:00:07Z")


@pytest.mark.parametrize("fetch", [None, {"state": {"waiting": {"reason": "PodInitializing"}}}])
def test_a_pod_whose_image_is_pulled_or_whose_volume_is_mounted_has_not_begun(
    fetch: dict[str, Any] | None,
) -> None:
    waiting = pod_from(manifest(fetch=fetch))
    assert waiting is not None
    assert (waiting.began, waiting.failure) == (None, None)


def test_a_fetch_that_runs_says_since_when() -> None:
    running = pod_from(manifest(fetch={"state": {"running": {"startedAt": "2026-01-01T00:00:07Z"}}}))
    assert running is not None
    assert running.fetching_since == clock.parse("2026-01-01T00:00:07Z")
    done = pod_from(manifest(fetch=fetched(told(digest=DIGEST))))
    assert done is not None
    assert done.fetching_since is None
