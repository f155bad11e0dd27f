"""Several objects at once: one that hangs is noticed, one that breaks stops no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from pilotage_operator import __main__ as program
from pilotage_operator.handlers import events
from pilotage_operator.handlers.events import Workers
from pilotage_operator.handlers.queue import Key, Queue
from pilotage_operator.handlers.reconcile import Reconciler

HANGING, BROKEN, GOOD = ("shop", "hanging"), ("shop", "broken"), ("shop", "good")


class Scripted:
    """What is reconciled, in the place of a reconciler: one key hangs, one breaks, the rest is well."""

    def __init__(self) -> None:
        self.done: list[Key] = []

    async def reconcile(self, key: Key) -> float | None:
        if key == HANGING:
            await asyncio.Event().wait()
        if key == BROKEN:
            raise ZeroDivisionError
        self.done.append(key)
        return None


@asynccontextmanager
async def at_work(reconciler: Scripted) -> AsyncIterator[tuple[Queue, Workers]]:
    queue = Queue()
    workers = Workers(queue, cast("Reconciler", reconciler))
    running = asyncio.create_task(workers.run())
    yield queue, workers
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reconcile_that_hangs_fails_the_liveness_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STUCK_AFTER_SECONDS", 0.05)
    async with at_work(Scripted()) as (queue, workers):
        assert await program._alive(workers) == {"stuck": []}
        queue.add(HANGING)
        await _until(lambda: workers.stuck() == [HANGING])
        with pytest.raises(RuntimeError, match="hanging"):
            await program._alive(workers)


async def test_what_hangs_or_breaks_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    reconciler = Scripted()
    async with at_work(reconciler) as (queue, _):
        for key in (HANGING, BROKEN, GOOD):
            queue.add(key)
        await _until(lambda: reconciler.done == [GOOD])
        await _until(lambda: "reconcile broke" in caplog.text)
        assert "ZeroDivisionError" in caplog.text


async def _until(true: Callable[[], Any]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not become true in 5 s")
