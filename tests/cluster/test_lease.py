"""Two operators and one Lease, on the real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pilotage_dev.control_plane import ControlPlane
from pilotage_operator.adapters import lease as leases
from pilotage_operator.adapters.kubernetes import Cluster
from pilotage_operator.adapters.lease import Lease, LeaseLost
from pilotage_operator.adapters.resources import LEASE
from tests.cluster.parts import connected, control_plane_in


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane_in(tmp_path_factory.mktemp("leased")) as found:
        yield found


@pytest.fixture
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with connected(plane) as found:
        yield found
        await found._request("DELETE", LEASE.path("default", leases.NAME))


def lease(cluster: Cluster, holder: str) -> Lease:
    return Lease(cluster, "default", holder)


async def test_a_second_operator_waits_until_the_first_has_released(cluster: Cluster) -> None:
    first, second = lease(cluster, "one"), lease(cluster, "two")
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(1)
    assert not waiting.done()
    await first.release()
    await asyncio.wait_for(waiting, 5)
    assert (await _spec(cluster))["holderIdentity"] == "two"


async def test_a_holder_that_fell_silent_is_replaced_and_then_knows(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.2)
    monkeypatch.setattr(leases, "DURATION_SECONDS", 1)
    first, second = lease(cluster, "one"), lease(cluster, "two")
    await first.acquire()
    await asyncio.wait_for(second.acquire(), 5)
    assert (await _spec(cluster))["leaseTransitions"] == 1
    with pytest.raises(LeaseLost, match="taken by another operator"):
        await asyncio.wait_for(first.keep(), 5)


@pytest.mark.parametrize("seconds", [-3600, 3600])
async def test_a_holder_whose_clock_is_wrong_keeps_it_while_it_renews_and_no_longer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.2)
    monkeypatch.setattr(leases, "DURATION_SECONDS", 2)
    first, second = lease(cluster, "one"), lease(cluster, "two")
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    for renewal in range(8):
        await _stamp(cluster, datetime.now(UTC) + timedelta(seconds=seconds + renewal))
        await asyncio.sleep(0.5)
    assert not waiting.done()
    await asyncio.wait_for(waiting, 10)
    assert (await _spec(cluster))["holderIdentity"] == "two"


async def test_release_takes_nothing_from_the_next_holder(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.2)
    monkeypatch.setattr(leases, "DURATION_SECONDS", 1)
    first, second = lease(cluster, "one"), lease(cluster, "two")
    await first.acquire()
    await second.acquire()
    await first.release()
    assert (await _spec(cluster))["holderIdentity"] == "two"


async def test_an_api_server_that_hangs_ends_the_holder_before_the_lease_ends(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_GIVE_UP_SECONDS", 2.0)
    held = lease(cluster, "one")
    await held.acquire()

    async def hang(*_: Any) -> None:
        await asyncio.sleep(60)

    # The server itself goes on for the other tests: only this connection's writes hang.
    monkeypatch.setattr(cluster, "replace", hang)
    with pytest.raises(LeaseLost, match="in time"):
        await asyncio.wait_for(held.keep(), 4)


async def _spec(cluster: Cluster) -> dict[str, Any]:
    found = await cluster.get(LEASE, "default", leases.NAME)
    assert found is not None
    return found["spec"]


async def _stamp(cluster: Cluster, moment: datetime) -> None:
    found = await cluster.get(LEASE, "default", leases.NAME)
    assert found is not None
    found["spec"]["renewTime"] = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    await cluster.replace(LEASE, "default", found)
