"""The queue of keys, in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from pilotage_operator.handlers.queue import Key, Queue

FRAUD, SCORE, SPAM = ("shop", "fraud"), ("shop", "score"), ("mail", "spam")


class Time:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def queue(time: Time) -> Queue:
    return Queue(time)


def taken(queue: Queue) -> Key | None:
    """The key that a free worker gets at once, if any."""
    worker = queue.take()
    try:
        worker.send(None)
    except StopIteration as got:
        return got.value
    worker.close()
    return None


async def test_a_key_is_taken_when_due_and_not_before(queue: Queue, time: Time) -> None:
    queue.add(FRAUD, 10)
    time.now += 9.9
    assert taken(queue) is None
    time.now += 0.1
    assert taken(queue) == FRAUD
    assert taken(queue) is None


async def test_an_earlier_time_wins_whichever_is_asked_first(queue: Queue, time: Time) -> None:
    queue.add(FRAUD, 30)
    queue.add(FRAUD, 5)
    queue.add(FRAUD, 20)
    assert len(queue) == 1
    time.now += 5
    assert taken(queue) == FRAUD
    queue.done(FRAUD)
    time.now += 100
    assert taken(queue) is None, "the later times were replaced, not added"


async def test_the_key_that_is_due_first_comes_first(queue: Queue, time: Time) -> None:
    queue.add(FRAUD, 3)
    queue.add(SCORE, 1)
    queue.add(SPAM, 2)
    time.now += 3
    assert [taken(queue), taken(queue), taken(queue)] == [SCORE, SPAM, FRAUD]


async def test_a_key_runs_once_at_a_time_and_what_is_asked_meanwhile_follows(queue: Queue) -> None:
    queue.add(FRAUD)
    assert taken(queue) == FRAUD
    queue.add(FRAUD)
    queue.add(FRAUD)
    assert taken(queue) is None, "it is still running"
    queue.done(FRAUD)
    assert taken(queue) == FRAUD
    queue.done(FRAUD)
    assert taken(queue) is None, "two events asked for one more look"


async def test_a_running_key_does_not_hold_up_the_others(queue: Queue) -> None:
    queue.add(FRAUD)
    assert taken(queue) == FRAUD
    queue.add(FRAUD)
    queue.add(SCORE, 0)
    assert taken(queue) == SCORE


async def test_a_worker_that_waits_is_woken_by_a_new_key(queue: Queue) -> None:
    worker = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add(FRAUD)
    assert await asyncio.wait_for(worker, 5) == FRAUD


async def test_a_worker_that_waits_is_woken_by_the_end_of_a_run(queue: Queue) -> None:
    queue.add(FRAUD)
    assert taken(queue) == FRAUD
    queue.add(FRAUD)
    worker = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not worker.done()
    queue.done(FRAUD)
    assert await asyncio.wait_for(worker, 5) == FRAUD


async def test_of_two_waiting_workers_only_one_gets_the_key(queue: Queue) -> None:
    workers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add(FRAUD)
    done, waiting = await asyncio.wait(workers, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [FRAUD]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_forgotten_and_nothing_runs_twice_in_any_order(time: Time, seed: int) -> None:
    chance, queue = random.Random(seed), Queue(time)
    running: set[Key] = set()
    asked: dict[Key, float] = {}
    for _ in range(500):
        match chance.choice(["add", "add", "take", "take", "done", "wait"]):
            case "add":
                key, delay = chance.choice([FRAUD, SCORE, SPAM]), chance.choice([0, 1, 5])
                queue.add(key, delay)
                asked[key] = min(asked.get(key, float("inf")), time.now + delay)
            case "take":
                due = {key for key, at in asked.items() if at <= time.now and key not in running}
                key = taken(queue)
                assert key in due if due else key is None
                if key is not None:
                    running.add(key)
                    del asked[key]
            case "done" if running:
                key = chance.choice(sorted(running))
                running.remove(key)
                queue.done(key)
            case _:
                time.now += 1
        assert len(queue) == len(asked)
