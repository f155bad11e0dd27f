"""A steady load of real payloads, and what became of each request."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

TIMEOUT_SECONDS = 5.0
LONGEST_SECONDS = 1800.0
"""A load ends by itself, also if nobody stops it."""


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent, what it got (0: no answer), and how long it took."""

    at: float
    code: int
    seconds: float

    @property
    def failed(self) -> bool:
        return self.code == 0 or self.code >= 400


@dataclass
class Load:
    """Requests at a fixed rate, in a thread of its own, until stopped."""

    url: str
    host: str
    payloads: Sequence[bytes]
    per_second: float = 50
    slow_after_seconds: float | None = None
    """Answers later than this count as bad."""
    answers: list[Answer] = field(default_factory=list[Answer])
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT_SECONDS + 5)

    def between(self, start: float, end: float | None = None) -> list[Answer]:
        """The requests sent in a span of `time.time()` seconds."""
        return [a for a in list(self.answers) if start <= a.at and (end is None or a.at < end)]

    def bad(self, answer: Answer) -> bool:
        slow = self.slow_after_seconds is not None and answer.seconds > self.slow_after_seconds
        return answer.failed or slow

    def codes(self, start: float, end: float | None = None) -> Counter[int]:
        return Counter(answer.code for answer in self.between(start, end))

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, limits=limits) as client:
            began, running = time.monotonic(), set[asyncio.Task[None]]()
            for number, payload in enumerate(itertools.cycle(self.payloads)):
                due = number / self.per_second
                if self._stop.is_set() or due > LONGEST_SECONDS:
                    break
                await asyncio.sleep(max(0.0, began + due - time.monotonic()))
                task = asyncio.create_task(self._send(client, payload))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)

    async def _send(self, client: httpx.AsyncClient, payload: bytes) -> None:
        at, began = time.time(), time.monotonic()
        headers = {"Host": self.host, "Content-Type": "application/json"}
        try:
            code = (await client.post(self.url, content=payload, headers=headers)).status_code
        except httpx.HTTPError:
            code = 0
        self.answers.append(Answer(at, code, time.monotonic() - began))
