"""Requests and responses for whoever labels them later: a sample, redacted, sent when serving leaves time.

    note ──► queue ──► sent
      │        └─────► failed: the sink refused, or was away for too long
      └──────────────► dropped: it did not fit into the queue

Serving pays for a hash, and for a sampled request for a copy of its tensors. The queue is bounded in events and in
bytes, and one task empties it, so that a sink that is slow or away costs events and nothing else.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Sequence

import numpy as np

from pilotage_runtime.contract import TensorSpec
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import BusyError, ModelFailedError, TooLateError
from pilotage_runtime.protocol import v2
from pilotage_runtime.repository import Repository
from pilotage_runtime.services import payload_event
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.payload_event import Payload, Redaction
from pilotage_runtime.services.payload_sink import FileSink, HttpSink, Sink, UnsentError
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import PayloadResult

MAX_EVENTS = 10_000
MAX_BYTES = 16 * 2**20
MAX_PAYLOAD_BYTES = 2**20
BATCH_EVENTS = 200
BATCH_BYTES = 2**18
GATHER_SECONDS = 0.5
ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
FLUSH_SECONDS = 5
_EACH = 2  # events of one inference
_HASHED = 2**64
_STATUS = {TooLateError: 504, BusyError: 429, ModelFailedError: 500}

Answer = tuple[Sequence[TensorSpec], Sequence[np.ndarray]]

logger = logging.getLogger(__name__)


class PayloadLog:
    """Notes inferences, and sends them from a task of its own."""

    def __init__(self, sink: Sink, *, share: float = 1, redaction: Redaction | None = None) -> None:
        self._sink = sink
        self._share = share
        self._redaction = redaction or Redaction()
        self._queue: deque[Payload] = deque()
        self._held = 0  # payloads in the queue and on their way
        self._bytes = 0
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    @property
    def bytes_held(self) -> int:
        """How much memory events take, by what their tensors weigh."""
        return self._bytes

    def note(
        self,
        exchange: Exchange,
        engine: Engine,
        request: v2.InferRequest,
        status: int,
        answer: Answer = ((), ()),
    ) -> None:
        """Queue an answered inference, if it is in the sample and fits; it fails for nobody."""
        if not sampled(exchange.request_id, self._share):
            return
        try:
            weight = payload_event.weigh(request, answer[1])
            if (
                weight > MAX_PAYLOAD_BYTES
                or self._bytes + weight > MAX_BYTES
                or (self._held + 1) * _EACH > MAX_EVENTS
            ):
                engine.slot.payloads(PayloadResult.DROPPED, _EACH)
                return
            taken = payload_event.payload(
                exchange,
                engine,
                request,
                status,
                zip(*answer, strict=True),
                redaction=self._redaction,
                weight=weight,
            )
        except Exception:
            logger.exception("a payload cannot be logged", extra={"request_id": exchange.request_id})
            engine.slot.payloads(PayloadResult.FAILED, _EACH)
            return
        self._queue.append(taken)
        self._held += 1
        self._bytes += weight

    async def noted(
        self,
        answering: Awaitable[tuple[list[TensorSpec], list[np.ndarray]]],
        exchange: Exchange,
        engine: Engine,
        request: v2.InferRequest,
    ) -> tuple[list[TensorSpec], list[np.ndarray]]:
        """Await an answer, and note it; what was refused before it ran has no values that the contract knows."""
        try:
            answer = await answering
        except (TooLateError, BusyError, ModelFailedError) as error:
            self.note(exchange, engine, request, _STATUS[type(error)])
            raise
        self.note(exchange, engine, request, 200, answer)
        return answer

    async def start(self) -> None:
        """Begin sending."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Send what is left, within a bound."""
        self._stopping.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, FLUSH_SECONDS)
        if self._held:
            logger.warning("payloads were not sent in time", extra={"events": self._held * _EACH})
            self._ended(list(self._queue), PayloadResult.DROPPED)
            self._queue.clear()
        await self._sink.close()

    async def _run(self) -> None:
        while self._queue or not self._stopping.is_set():
            await self._pause(GATHER_SECONDS)
            while batch := self._take():
                await self._deliver(batch)

    def _take(self) -> list[Payload]:
        batch, size = list[Payload](), 0
        while self._queue and len(batch) * _EACH < BATCH_EVENTS:
            if batch and size + self._queue[0].weight > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
            size += batch[-1].weight
        return batch

    async def _deliver(self, batch: list[Payload]) -> None:
        result = PayloadResult.DROPPED  # where the flush's time is up
        try:
            await self._send(await asyncio.to_thread(_written, batch))
            result = PayloadResult.SENT
            if self._failing:
                logger.info("payloads are sent again")
            self._failing = False
        except UnsentError as error:
            result = PayloadResult.FAILED
            if not self._failing:  # once, however long it lasts: the metric counts
                logger.warning("payloads cannot be sent: %s", error)
            self._failing = True
        except Exception:
            result = PayloadResult.FAILED
            logger.exception("payloads cannot be written")
        finally:
            self._ended(batch, result)

    async def _send(self, events: list[bytes]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._sink.send(events)
            except UnsentError as error:
                # Whoever stops has no time for another try.
                if not error.again or attempt == ATTEMPTS or self._stopping.is_set():
                    raise
                longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt)
                # Pods that a sink's outage has brought into step fall out of it.
                await self._pause(random.uniform(longest / 2, longest))  # noqa: S311 - no secret
            else:
                return

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _ended(self, batch: Sequence[Payload], result: PayloadResult) -> None:
        for payload in batch:
            payload.slot.payloads(result, _EACH)
            self._held -= 1
            self._bytes -= payload.weight


def sampled(request_id: str, share: float) -> bool:
    """Tell whether a request is in the sample: the same for all that see its id, in every process and program."""
    if share >= 1:
        return True
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:8]) < share * _HASHED


def from_settings(settings: ServeSettings, repository: Repository) -> PayloadLog | None:
    """Make what the settings ask for: nothing, unless they say where payloads go."""
    if settings.payload_log_url is not None:
        sink: Sink = HttpSink(settings.payload_log_url)
    elif settings.payload_log_file is not None:
        sink = FileSink(settings.payload_log_file)
    else:
        return None
    redaction = Redaction(name for part in settings.payload_log_redact.split(",") if (name := part.strip()))
    # With several models a name may be one's alone, and one that is loaded later may have it.
    if unknown := redaction.unknown(repository.contracts()):
        logger.warning(
            "PILOTAGE_PAYLOAD_LOG_REDACT: no model here has an input, output or feature of this name: %s",
            ", ".join(unknown),
        )
    return PayloadLog(sink, share=settings.payload_log_sample, redaction=redaction)


def _written(batch: Sequence[Payload]) -> list[bytes]:
    return [event for payload in batch for event in payload_event.events(payload)]
