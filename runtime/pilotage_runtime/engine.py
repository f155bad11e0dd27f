"""The engine: tensors in, tensors out, whatever the transport.

A request is checked against the contract before the model runs; from then on every failure is the
model's. A run that is predicted to be short happens inline, where a hop to a thread would cost more
than the run; a longer one goes to a thread, so that the event loop answers probes meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pilotage_runtime import ranges
from pilotage_runtime.batching import Batcher, Entry
from pilotage_runtime.classes import Classes
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import ModelFailedError, OutOfRange, Refused
from pilotage_runtime.loaders.base import Model, StreamingModel
from pilotage_runtime.streaming import Streams
from pilotage_runtime.telemetry import Slot
from pilotage_runtime.tensors import datatype_name

INLINE_SECONDS = 100e-6
_SMOOTHING = 0.1
_SIZES = 16
_SMALL = 64  # elements below which a Python loop beats numpy's call overhead

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How a model's requests are put together and held back."""

    threads: int = 1
    max_batch_rows: int = 64
    max_delay_seconds: float = 0
    max_waiting: int = 512


class Engine:
    """One loaded model behind its contract."""

    def __init__(
        self, name: str, version: str, model: Model, contract: Contract, *, limits: Limits, slot: Slot
    ) -> None:
        self.name = name
        self.version = version
        self.contract = contract
        self.slot = slot
        self.limits = limits
        self.used_at = time.perf_counter()
        # Requests it was chosen for that are not answered yet, those whose bodies still come among them.
        self.holders = 0
        # Whether requests may share a run is proven by the warm-up; until then, why not.
        self.unbatched: str | None = "not proven yet"
        self._model = model
        self._streams = Streams(name, model) if isinstance(model, StreamingModel) else None
        self._all_outputs = tuple(spec.name for spec in contract.outputs)
        self._shared_symbols = _shared_symbols(contract)
        self._seconds = list[float]()
        self.forget_timing()
        self._batcher = Batcher(
            self,
            concurrency=limits.threads,
            max_rows=limits.max_batch_rows,
            max_entries=limits.max_waiting,
            delay_seconds=limits.max_delay_seconds,
        )
        self.refine(contract)
        self.submit = self._batcher.submit
        self.leave = self._batcher.leave

    def refine(self, contract: Contract) -> None:
        """Take over what the warm-up taught about the outputs."""
        self.contract = contract
        probability = contract.probability
        self._probability = probability.name if probability else None
        self._classes = Classes(contract, self.slot)
        self.slot.features.places(feature.name for feature in contract.features if feature.bounded)
        # Of numpy's kinds V is bfloat16, which is no type of its own.
        self._finite_inputs = tuple(
            spec.name for spec in contract.inputs if spec.dtype.kind in "fV" and not spec.allow_non_finite
        )
        self._fixed_rows = all(-1 not in spec.shape[1:] for spec in contract.inputs)

    def check(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], *, unseen: bool = False
    ) -> None:
        """Raise Refused unless the tensors are what the contract asks for; `unseen` enters no metric."""
        specs = self.contract.input_by_name
        if inputs.keys() != specs.keys():
            self._refuse_names(inputs)
        for name, array in inputs.items():
            spec = specs[name]
            if array.dtype != spec.dtype:
                raise Refused(
                    f"input '{name}': datatype {datatype_name(array.dtype)} came, {spec.datatype} is expected"
                )
            if not _fits(array.shape, spec.shape):
                raise Refused(
                    f"input '{name}': shape {list(array.shape)} came, {list(spec.shape)} is expected"
                    f"{' (-1 is any size)' if -1 in spec.shape else ''}{self._features(spec)}"
                )
        if self.contract.bounded_columns:
            try:
                ranges.check(self.contract, inputs)
            except OutOfRange as refused:
                if not unseen:
                    self.slot.out_of_range(refused.feature)
                raise
        for name in self._finite_inputs:
            if not _finite(inputs[name]):
                raise Refused(
                    f"input '{name}' holds NaN or infinity, which its contract allows only with allow_non_finite"
                )
        for symbol, places in self._shared_symbols.items():
            self._equal(f"dimension '{symbol}'", [(name, inputs[name].shape[axis]) for name, axis in places])
        if self.unbatched is None and len(inputs) > 1:
            # Rows, as was proven: a run that others share is cut up by them.
            self._equal("the number of rows", [(name, array.shape[0]) for name, array in inputs.items()])
        for name in outputs:
            if name not in self.contract.output_by_name:
                raise Refused(
                    f"output '{name[:60]}' is unknown; the model has {', '.join(self._all_outputs)}"
                )

    def rows(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Count a checked request's rows: the first dimension, where it varies."""
        first = self.contract.inputs[0]
        return inputs[first.name].shape[0] if first.shape and first.shape[0] == -1 else 1

    def key(
        self, inputs: Mapping[str, np.ndarray], outputs: tuple[str, ...], parameters: Hashable
    ) -> Hashable:
        """Give what requests that may share a run have in common; None shares with nobody."""
        if self.unbatched is not None:
            return None
        if self._fixed_rows:
            return (outputs, parameters)
        return (outputs, parameters, tuple([array.shape[1:] for array in inputs.values()]))

    def is_short(self, rows: int) -> bool:
        """Predict whether a run of so many rows is cheaper than a hop to a thread: then `run` it at once."""
        return self._seconds[min(rows.bit_length(), _SIZES - 1)] < INLINE_SECONDS

    async def infer(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...] = (),
        *,
        sharing: Hashable = None,
        deadline: float | None = None,
        unseen: bool = False,
    ) -> tuple[list[TensorSpec], list[np.ndarray]]:
        """Check, queue, run; raise Refused, ModelFailedError, TooLateError or BusyError. Cancelling leaves the queue."""
        self.check(inputs, outputs, unseen=unseen)
        entry = _Awaited(inputs, outputs, self.rows(inputs), self.key(inputs, outputs, sharing), deadline)
        entry.unseen = unseen
        self.submit(entry)
        try:
            return await entry.future
        except asyncio.CancelledError:
            self.leave(entry)
            raise

    async def pieces(
        self,
        inputs: Mapping[str, np.ndarray],
        parameters: Mapping[str, Any],
        *,
        deadline: float | None = None,
        unseen: bool = False,
    ) -> AsyncGenerator[tuple[list[TensorSpec], list[np.ndarray]]]:
        """Yield an answer piece by piece; of a model that does not stream, whole. Raises what `infer` raises."""
        if self._streams is None:
            yield await self.infer(inputs, deadline=deadline, unseen=unseen)
            return
        self.check(inputs, (), unseen=unseen)
        specs = list(self.contract.outputs)
        stream = self._streams.run(inputs, parameters, deadline)
        try:
            async for piece in stream:
                values = [np.asarray(piece[spec.name]) for spec in specs]
                self._check_finite(specs, values)
                yield specs, values
        finally:
            await stream.aclose()

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        rows: int,
        *,
        in_thread: bool = False,
    ) -> tuple[list[TensorSpec], list[np.ndarray]]:
        """Run now, in this thread; whatever goes wrong is the model's failure. No outputs named means all."""
        names = outputs or self._all_outputs
        # In a thread the wait for Python's lock is none of the model's time, so the thread's own clock counts.
        clock = time.thread_time if in_thread else time.perf_counter
        started = clock()
        try:
            values = self._model.run(inputs, names)
        except BaseException as error:  # whatever class a model raises, SystemExit included
            raise ModelFailedError.raised(self.name, error) from error
        finally:
            self._learn(rows, clock() - started)
        by_name = self.contract.output_by_name
        specs = [by_name[name] for name in names]
        self._check_finite(specs, values)
        return specs, values

    def _check_finite(self, specs: Sequence[TensorSpec], values: Sequence[np.ndarray]) -> None:
        for spec, value in zip(specs, values, strict=True):
            if value.dtype.kind in "fV" and not spec.allow_non_finite and not _finite(value):
                raise ModelFailedError(
                    f"model '{self.name}' answered NaN or infinity in output '{spec.name}', which its contract "
                    "does not allow"
                )

    def predicted(
        self, entries: Sequence[Entry], specs: Sequence[TensorSpec], values: Sequence[np.ndarray]
    ) -> None:
        """Count a run's rows and how sure the model was of them; a batch in one go."""
        rows = sum([entry.rows for entry in entries])
        seen = values
        if any(entry.unseen for entry in entries):
            begin, kept = 0, list[int]()
            for entry in entries:
                if not entry.unseen:
                    kept.extend(range(begin, begin + entry.rows))
                begin += entry.rows
            rows = len(kept)
            seen = [value[kept] if value.shape[:1] == (begin,) else value[:0] for value in values]
        confidences: Sequence[float] = ()
        for spec, value in zip(specs, seen, strict=True):
            if spec.name == self._classes.output and value.size:
                self._classes.count(value)
            if spec.name == self._probability and value.ndim == 2 and value.size:
                confidences = _confidences(value)
        self.slot.predicted(rows, confidences)

    @property
    def platform(self) -> str:
        """What runs the model."""
        return self._model.platform

    def close(self) -> None:
        """Wait for the runs under way, then free the model."""
        self._batcher.close()
        self._model.close()

    @property
    def busy(self) -> bool:
        """Whether somebody is owed an answer, or a run goes on unheard."""
        return (
            self.holders > 0 or self._batcher.busy or (self._streams is not None and self._streams.open > 0)
        )

    @property
    def streams(self) -> bool:
        """Whether the model answers piece by piece."""
        return self._streams is not None

    @property
    def waiting(self) -> int:
        """How many requests wait for a run."""
        return self._batcher.waiting

    def _learn(self, rows: int, seconds: float) -> None:
        size = min(rows.bit_length(), _SIZES - 1)
        known = self._seconds[size]
        # Racing threads may lose an update: an average bears that.
        self._seconds[size] = seconds if known == float("inf") else known + _SMOOTHING * (seconds - known)

    def forget_timing(self) -> None:
        """Start measuring anew: the first run of a session also allocates."""
        # By the power of two below the number of rows; unknown until measured, so the first run goes to a thread.
        self._seconds = [float("inf")] * _SIZES

    def _refuse_names(self, inputs: Mapping[str, np.ndarray]) -> None:
        expected = ", ".join(
            f"'{spec.name}' {spec.datatype} {list(spec.shape)}" for spec in self.contract.inputs
        )
        missing = [name for name in self.contract.input_by_name if name not in inputs]
        unknown = [name[:60] for name in inputs if name not in self.contract.input_by_name]
        parts = [f"input '{name}' is missing" for name in missing]
        parts += [f"input '{name}' is unknown" for name in unknown]
        raise Refused(f"{'; '.join(parts[:8])}; expected: {expected}")

    @staticmethod
    def _equal(what: str, sizes: Sequence[tuple[str, int]]) -> None:
        if len({size for _, size in sizes}) > 1:
            came = ", ".join(f"{size} in '{name}'" for name, size in sizes)
            raise Refused(f"{what} should be equal in all its inputs, but is {came}")

    def _features(self, spec: TensorSpec) -> str:
        names = self.contract.feature_names
        return f"; a row is {', '.join(names)}" if names and spec is self.contract.inputs[0] else ""


class _Awaited(Entry):
    """An entry that somebody awaits."""

    __slots__ = ("future",)

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        rows: int,
        key: Hashable,
        deadline: float | None,
    ) -> None:
        super().__init__(inputs, outputs, rows, key, deadline)
        self.future: asyncio.Future[tuple[list[TensorSpec], list[np.ndarray]]] = (
            asyncio.get_running_loop().create_future()
        )

    def succeeded(self, specs: Sequence[TensorSpec], values: Sequence[np.ndarray]) -> None:
        if not self.future.done():
            self.future.set_result((list(specs), list(values)))

    def failed(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    for size, known in zip(shape, expected, strict=True):  # noqa: SIM110 - all() over a generator takes twice as long
        if known not in (-1, size):
            return False
    return True


def _finite(value: np.ndarray) -> bool:
    if value.size <= _SMALL:
        for number in value.ravel().tolist():  # noqa: SIM110 - as above
            if number - number != 0:  # NaN and the infinities
                return False
        return True
    return bool(np.isfinite(value).all())


def _confidences(value: np.ndarray) -> list[float]:
    """Give the highest probability of each row."""
    if value.shape[1] == 1:  # the positive class alone
        return np.maximum(value, 1 - value).ravel().tolist()
    return [max(row) for row in value.tolist()] if value.size <= _SMALL else value.max(axis=1).tolist()


def _shared_symbols(contract: Contract) -> dict[str, list[tuple[str, int]]]:
    places: dict[str, list[tuple[str, int]]] = {}
    for spec in contract.inputs:
        for axis, symbol in enumerate(spec.symbols):
            if symbol:
                places.setdefault(symbol, []).append((spec.name, axis))
    return {symbol: where for symbol, where in places.items() if len(where) > 1}
