"""When the log of a fetch is read: seldom, for one pod, and never so that anything fails."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from pilotage_operator.adapters.fetch_log import READ_SECONDS, FetchLog
from pilotage_operator.adapters.kubernetes import Cluster, ClusterError
from pilotage_operator.core.fetching import Fetched
from pilotage_operator.core.pods import Pod

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Logs:
    """A cluster whose fetching pods have come further at each look, and a clock."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.now = 0.0
        self.error: ClusterError | None = None

    async def end_of_log(self, namespace: str, pod: str, container: str, **_: Any) -> bytes:
        self.read.append(f"{namespace}/{pod}/{container}")
        if self.error:
            raise self.error
        return b'{"message": "downloading", "bytes": %d, "of": 100}' % len(self.read)


@pytest.fixture
def logs() -> Logs:
    return Logs()


@pytest.fixture
def log(logs: Logs) -> FetchLog:
    return FetchLog(cast("Cluster", logs), clock=lambda: logs.now)


def pod(
    name: str = "new-1", revision: str = "new", *, digest: str | None = None, fetches: bool = True
) -> Pod:
    return Pod(name, revision, BEGAN, digest=digest, fetching_since=BEGAN if fetches else None)


async def seen(log: FetchLog, *pods: Pod, revision: str | None = "new") -> list[Fetched | None]:
    return [each.fetched for each in await log.complete("shop", "fraud", revision, pods)]


async def test_the_pod_that_is_waited_for_says_how_far_it_is_and_the_others_are_as_they_were(
    log: FetchLog, logs: Logs
) -> None:
    found = await seen(log, pod("old-1", "old"), pod("new-2"), pod("new-1"))
    assert found == [None, None, Fetched(1, 100)]
    assert logs.read == ["shop/new-1/fetch"]


async def test_no_log_is_read_again_before_its_time_however_often_one_looks(
    log: FetchLog, logs: Logs
) -> None:
    for _ in range(20):
        assert await seen(log, pod()) == [Fetched(1, 100)]
        logs.now += READ_SECONDS / 25
    # Nor for another pod: one that crashes is replaced in no time.
    assert await seen(log, pod("new-2")) == [None]
    logs.now = READ_SECONDS
    assert await seen(log, pod("new-2")) == [Fetched(2, 100)]
    assert len(logs.read) == 2


@pytest.mark.parametrize("code", [0, 400, 403, 500])
async def test_a_log_that_cannot_be_read_is_no_error_and_is_not_asked_for_at_each_look(
    log: FetchLog, logs: Logs, code: int
) -> None:
    logs.error = ClusterError(code, "no")
    assert await seen(log, pod()) == await seen(log, pod()) == [None]
    assert len(logs.read) == 1
    logs.error, logs.now = None, READ_SECONDS
    assert await seen(log, pod()) == [Fetched(2, 100)]


async def test_nothing_is_read_where_nobody_waits_for_a_fetch(log: FetchLog, logs: Logs) -> None:
    await seen(log, pod(), revision=None)
    await seen(log, pod(fetches=False))
    await seen(log, pod(), pod("new-2", digest="sha256:" + "a" * 64))
    assert logs.read == []


async def test_what_is_over_is_forgotten(log: FetchLog, logs: Logs) -> None:
    await seen(log, pod())
    await seen(log, pod(fetches=False))
    assert await seen(log, pod()) == [Fetched(2, 100)]
    log.forget("shop", "fraud")
    assert await seen(log, pod()) == [Fetched(3, 100)]
