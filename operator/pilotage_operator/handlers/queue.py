"""The keys to reconcile: each at most once at a time, and never forgotten while it runs."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[str, str]
"""(namespace, name)."""


@dataclass(order=True)
class _Due:
    at: float
    key: Key = field(compare=False)


class Queue:
    """Keys with the time at which each is due; an earlier time replaces a later one."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._due: dict[Key, float] = {}
        self._heap: list[_Due] = []
        self._running: set[Key] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Ask for a reconcile in `delay` seconds, or sooner if that was asked before."""
        at = self._clock() + delay
        if at < self._due.get(key, float("inf")):
            self._due[key] = at
            heapq.heappush(self._heap, _Due(at, key))
            self._changed.set()

    async def take(self) -> Key:
        """Wait for the next key that is due and not being reconciled."""
        while True:
            key, wait = self._next()
            if key is not None:
                self._running.add(key)
                del self._due[key]
                return key
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """The reconcile of a key has ended; what was asked meanwhile may start."""
        self._running.discard(key)
        if key in self._due:
            heapq.heappush(self._heap, _Due(self._due[key], key))
        self._changed.set()

    def _next(self) -> tuple[Key | None, float | None]:
        """The key that is due, or else the seconds until one will be."""
        while self._heap:
            first = self._heap[0]
            outdated = self._due.get(first.key) != first.at
            # A running key comes back by `done`.
            if outdated or first.key in self._running:
                heapq.heappop(self._heap)
                continue
            left = first.at - self._clock()
            if left > 0:
                return None, left
            heapq.heappop(self._heap)
            return first.key, None
        return None, None
