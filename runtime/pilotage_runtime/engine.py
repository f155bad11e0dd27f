"""The engine: tensors in, tensors out, whatever the transport.

A request is checked against the contract before the model runs; from then on every failure is the
model's. A run that is predicted to be short happens inline, where a hop to a thread would cost more
than the run; a longer one goes to a thread, so that the event loop answers probes meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import ModelFailedError, Refused
from pilotage_runtime.loaders.base import Model
from pilotage_runtime.tensors import datatype_name

INLINE_SECONDS = 100e-6
_SMOOTHING = 0.1
_SMALL = 64  # elements below which a Python loop beats numpy's call overhead

logger = logging.getLogger(__name__)


class Engine:
    """One loaded model behind its contract."""

    def __init__(self, name: str, model: Model, contract: Contract, threads: int) -> None:
        self.name = name
        self.contract = contract
        self._model = model
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="infer")
        self._all_outputs = tuple(spec.name for spec in contract.outputs)
        self._shared_symbols = _shared_symbols(contract)
        # Unknown until measured, so the first run goes to a thread.
        self._seconds_per_row = float("inf")

    def refine(self, contract: Contract) -> None:
        """Take over what the warm-up taught about the outputs."""
        self.contract = contract

    def check(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> None:
        """Raise Refused unless the tensors are what the contract asks for."""
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
        for symbol, places in self._shared_symbols.items():
            sizes = {f"'{name}'": inputs[name].shape[axis] for name, axis in places}
            if len(set(sizes.values())) > 1:
                came = ", ".join(f"{size} in {name}" for name, size in sizes.items())
                raise Refused(f"dimension '{symbol}' should be equal in all its inputs, but is {came}")
        for name in outputs:
            if name not in self.contract.output_by_name:
                raise Refused(
                    f"output '{name[:60]}' is unknown; the model has {', '.join(self._all_outputs)}"
                )

    def rows(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Count a checked request's rows: the first dimension, where it varies."""
        first = self.contract.inputs[0]
        return inputs[first.name].shape[0] if first.shape and first.shape[0] == -1 else 1

    def is_short(self, rows: int) -> bool:
        """Predict whether a run of so many rows is cheaper than a hop to a thread: then `run` it at once."""
        return self._seconds_per_row * rows < INLINE_SECONDS

    async def run_in_thread(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], rows: int
    ) -> tuple[list[TensorSpec], list[np.ndarray]]:
        """Run beside the event loop; cancelling leaves a run that has begun to end unheard."""
        # In a thread the wait for Python's lock is none of the model's time, so the thread's own clock counts.
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self.run, inputs, outputs, rows, time.thread_time
        )

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        rows: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> tuple[list[TensorSpec], list[np.ndarray]]:
        """Run now, in this thread; whatever goes wrong is the model's failure. No outputs named means all."""
        names = outputs or self._all_outputs
        started = clock()
        try:
            values = self._model.run(inputs, names)
        except BaseException as error:  # whatever class a model raises, SystemExit included
            raise ModelFailedError(f"model '{self.name}' failed: {_one_line(error)}") from error
        finally:
            self._learn((clock() - started) / rows)
        by_name = self.contract.output_by_name
        specs = [by_name[name] for name in names]
        for spec, value in zip(specs, values, strict=True):
            if value.dtype.kind == "f" and not spec.allow_non_finite and not _finite(value):
                raise ModelFailedError(
                    f"model '{self.name}' answered NaN or infinity in output '{spec.name}', which its contract "
                    "does not allow"
                )
        return specs, values

    def close(self) -> None:
        """Wait for the runs under way, then free the model."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._model.close()

    def _learn(self, seconds: float) -> None:
        known = self._seconds_per_row
        # Racing threads may lose an update: an average bears that.
        self._seconds_per_row = seconds if known == float("inf") else known + _SMOOTHING * (seconds - known)

    def forget_timing(self) -> None:
        """Start measuring anew: the first run of a session also allocates."""
        self._seconds_per_row = float("inf")

    def _refuse_names(self, inputs: Mapping[str, np.ndarray]) -> None:
        expected = ", ".join(
            f"'{spec.name}' {spec.datatype} {list(spec.shape)}" for spec in self.contract.inputs
        )
        missing = [name for name in self.contract.input_by_name if name not in inputs]
        unknown = [name[:60] for name in inputs if name not in self.contract.input_by_name]
        parts = [f"input '{name}' is missing" for name in missing]
        parts += [f"input '{name}' is unknown" for name in unknown]
        raise Refused(f"{'; '.join(parts[:8])}; expected: {expected}")

    def _features(self, spec: TensorSpec) -> str:
        names = self.contract.feature_names
        return f"; a row is {', '.join(names)}" if names and spec is self.contract.inputs[0] else ""


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


def _shared_symbols(contract: Contract) -> dict[str, list[tuple[str, int]]]:
    places: dict[str, list[tuple[str, int]]] = {}
    for spec in contract.inputs:
        for axis, symbol in enumerate(spec.symbols):
            if symbol:
                places.setdefault(symbol, []).append((spec.name, axis))
    return {symbol: where for symbol, where in places.items() if len(where) > 1}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
