"""Zero-delay batching: what has come while the model was busy, or within one turn of the loop, runs together.

A queue of entries, each one request of a number of rows. When the model is free, the entry at the head runs
with every later one that may share its run: equal but for the rows, and no more rows in all than allowed.
Nobody waits for company unless told to (`delay_seconds`), and the order of a caller's requests is kept.

    queued ──► running ──► answered
       │          └──────► ended: too late, or its caller left; the run goes on unheard
       └─────────────────► ended: the same, and it never runs

All of it happens in the event loop's thread but the run itself, when that is predicted to be long.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from pilotage_runtime.contract import TensorSpec
from pilotage_runtime.errors import BusyError, ModelFailedError, Refused, TooLateError

logger = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]


class Entry(ABC):
    """One request's place in the queue; a transport derives from it and answers in `succeeded` or `failed`.

    Exactly one of the two is called, once, in the event loop's thread; none after `leave`.
    """

    __slots__ = ("deadline", "ended", "inputs", "key", "outputs", "queued", "ran", "rows", "timer", "unseen")

    def __init__(
        self,
        inputs: Tensors,
        outputs: tuple[str, ...],
        rows: int,
        key: Hashable,
        deadline: float | None = None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.rows = rows
        self.key = key  # entries with equal keys may share a run
        self.deadline = deadline  # by the loop's clock
        self.unseen = False  # its prediction enters no metric
        self.queued = False
        self.ended = False
        self.timer: asyncio.TimerHandle | None = None
        self.ran: tuple[float, float] | None = None  # when its run began and ended, by time.perf_counter

    @abstractmethod
    def succeeded(self, specs: Sequence[TensorSpec], values: Sequence[np.ndarray]) -> None:
        """Take the answer: one value of `rows` rows for each spec."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Take the failure: ModelFailedError, TooLateError, BusyError, or Refused where the model is closed."""


class Runner(Protocol):
    """What runs a batch: the engine."""

    def is_short(self, rows: int) -> bool:
        """Predict whether running so many rows is cheaper than a hop to a thread."""
        ...

    def run(
        self, inputs: Tensors, outputs: Sequence[str], rows: int, *, in_thread: bool = False
    ) -> tuple[list[TensorSpec], list[np.ndarray]]:
        """Run once; raise ModelFailedError, whatever went wrong."""
        ...

    def predicted(
        self, entries: Sequence[Entry], specs: Sequence[TensorSpec], values: Sequence[np.ndarray]
    ) -> None:
        """See what a whole run answered, before its entries do."""
        ...


Outcome = tuple[list[TensorSpec], list[np.ndarray]] | ModelFailedError


class Batcher:
    """The queue of one model."""

    def __init__(
        self, runner: Runner, *, concurrency: int, max_rows: int, max_entries: int, delay_seconds: float = 0
    ) -> None:
        self._runner = runner
        self._concurrency = concurrency
        self._free = concurrency  # runs that may begin
        self._max_rows = max_rows
        self._max_entries = max_entries
        self._delay = delay_seconds
        self._queue: deque[Entry] = deque()
        self._rows = 0
        self._closed: Refused | None = None
        self._flush_due = False
        self._delay_timer: asyncio.TimerHandle | None = None
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="infer")
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """How many entries wait for a run."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._queue) or self._free < self._concurrency

    def submit(self, entry: Entry) -> None:
        """Queue an entry, or fail it at once where the queue is full or closed."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        if len(self._queue) >= self._max_entries:
            entry.ended = True
            entry.failed(self._closed or BusyError(self._max_entries))
            return
        self._queue.append(entry)
        entry.queued = True
        self._rows += entry.rows
        if self._free <= 0:
            self._watch(entry, loop)
        elif not self._flush_due:
            if self._delay and self._rows < self._max_rows:
                self._watch(entry, loop)
                if self._delay_timer is None:
                    self._delay_timer = loop.call_later(self._delay, self._flush)
            else:
                self._flush_due = True
                loop.call_soon(self._flush)

    def leave(self, entry: Entry) -> None:
        """End an entry whose caller has left: what is queued never runs."""
        self._end(entry)

    def close(self) -> None:
        """Wait for the runs under way; what is still queued, or comes later, is refused."""
        self._closed = Refused("the model was unloaded", 503)
        self._max_entries = 0
        while self._queue:
            self._fail(self._queue.popleft(), self._closed)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _flush(self) -> None:
        """Begin as many runs as may."""
        self._flush_due = False
        if self._delay_timer is not None:
            self._delay_timer.cancel()
            self._delay_timer = None
        while self._queue and self._free > 0:
            batch = self._take()
            rows = sum([entry.rows for entry in batch])
            if self._runner.is_short(rows):
                self._finish(batch, self._run(batch, rows, in_thread=False))
            else:
                self._start(batch, rows)
        if self._queue:
            assert self._loop is not None
            for entry in self._queue:
                self._watch(entry, self._loop)

    def _take(self) -> list[Entry]:
        """Take the head of the queue and whatever may run with it."""
        queue = self._queue
        head = queue.popleft()
        batch, rows, key = [head], head.rows, head.key
        passed: list[Entry] = []
        while key is not None and queue and rows < self._max_rows:
            entry = queue.popleft()
            if entry.key == key and rows + entry.rows <= self._max_rows:
                batch.append(entry)
                rows += entry.rows
            else:
                passed.append(entry)
        queue.extendleft(reversed(passed))
        self._rows -= rows
        for entry in batch:
            entry.queued = False
        return batch

    def _start(self, batch: list[Entry], rows: int) -> None:
        loop = self._loop
        assert loop is not None
        self._free -= 1
        for entry in batch:
            self._watch(entry, loop)

        def done(future: Future[Outcome]) -> None:
            # The loop is gone only where a test or an embedding program closed it under a run.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._finish_in_loop, batch, future)

        try:
            running = self._pool.submit(self._run, batch, rows, in_thread=True)
        except RuntimeError:  # closed between two runs of one batch
            self._free += 1
            for entry in batch:
                self._fail(entry, self._closed or Refused("this server is stopping", 503))
        else:
            running.add_done_callback(done)

    def _finish_in_loop(self, batch: list[Entry], future: Future[Outcome]) -> None:
        self._free += 1
        self._finish(batch, future.result())
        # Whatever came meanwhile has waited long enough.
        if self._queue and not self._flush_due:
            self._flush_due = True
            assert self._loop is not None
            self._loop.call_soon(self._flush)

    def _run(self, batch: list[Entry], rows: int, *, in_thread: bool) -> Outcome:
        head = batch[0]
        began = time.perf_counter()
        try:
            if len(batch) == 1:
                return self._runner.run(head.inputs, head.outputs, rows, in_thread=in_thread)
            inputs = {name: np.concatenate([entry.inputs[name] for entry in batch]) for name in head.inputs}
            specs, values = self._runner.run(inputs, head.outputs, rows, in_thread=in_thread)
        except ModelFailedError as error:
            return error
        except Exception as error:  # an answer is owed even where what failed is ours
            logger.exception("a run failed unexpectedly")
            return ModelFailedError(f"the model's answer cannot be used: {type(error).__name__}")
        finally:
            ran = (began, time.perf_counter())
            for entry in batch:
                entry.ran = ran
        for spec, value in zip(specs, values, strict=True):
            if value.shape[:1] != (rows,):
                return ModelFailedError(
                    f"output '{spec.name}' has shape {list(value.shape)} for a batch of {rows} rows"
                )
        return specs, values

    def _finish(self, batch: list[Entry], outcome: Outcome) -> None:
        if isinstance(outcome, ModelFailedError):
            if len(batch) > 1:
                self._alone(batch)
            elif not batch[0].ended:
                self._fail(batch[0], outcome)
            return
        specs, values = outcome
        try:
            self._runner.predicted(batch, specs, values)
        except Exception:
            # Whatever a model answered that cannot be counted: the answers are owed all the same.
            logger.exception("an answer could not be counted")
        if len(batch) == 1:
            self._deliver(batch[0], specs, values)
            return
        begin = 0
        for entry in batch:
            end = begin + entry.rows
            self._deliver(entry, specs, [value[begin:end] for value in values])
            begin = end

    def _deliver(self, entry: Entry, specs: list[TensorSpec], values: list[np.ndarray]) -> None:
        if entry.ended:
            return
        assert self._loop is not None
        # A run in the loop's own thread holds the timer back with everything else.
        if entry.deadline is not None and self._loop.time() > entry.deadline:
            self._fail(entry, TooLateError())
            return
        self._settle(entry)
        try:
            entry.succeeded(specs, values)
        except Exception:
            # Those beside it are owed their answers all the same.
            logger.exception("an answer could not be given")

    def _alone(self, batch: list[Entry]) -> None:
        """Run each entry of a failed batch by itself, once, so that the bad one fails alone."""
        for entry in batch:
            if not entry.ended:
                self._start([entry], entry.rows)

    def _watch(self, entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
        if entry.deadline is not None and entry.timer is None:
            entry.timer = loop.call_at(entry.deadline, self._expire, entry)

    def _expire(self, entry: Entry) -> None:
        if not entry.ended:
            self._end(entry)
            self._fail(entry, TooLateError())

    def _end(self, entry: Entry) -> None:
        if entry.queued:
            self._queue.remove(entry)
            self._rows -= entry.rows
        self._settle(entry)

    def _fail(self, entry: Entry, error: Exception) -> None:
        self._settle(entry)
        try:
            entry.failed(error)
        except Exception:
            logger.exception("a failure could not be told")

    @staticmethod
    def _settle(entry: Entry) -> None:
        entry.ended = True
        entry.queued = False
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
