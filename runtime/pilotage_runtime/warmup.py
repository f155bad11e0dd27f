"""Real inferences before the model is ready: its own sample or a generated row, and then batches of it."""

import logging
import time
from typing import Any

import numpy as np

from pilotage_runtime import batchable
from pilotage_runtime.contract import Contract
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import ModelFailedError, Refused
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.protocol import v2

RUNS = 10
# Batches are run in to learn how long each size takes; a slow model learns that while it serves.
_BATCHES_SECONDS = 1.0
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5

logger = logging.getLogger(__name__)


def warm_up(engine: Engine) -> None:
    """Infer the sample, compare its answer where one is stated, and measure how long a run takes."""
    contract = engine.contract
    try:
        request = (
            v2.read(contract.sample_request, contract)
            if contract.sample_request is not None
            else v2.InferRequest(None, generated(contract), ())
        )
        engine.check(request.inputs, request.outputs, unseen=True)
    except Refused as refusal:
        if contract.sample_request is None:
            raise _failed(
                f"contract.json refuses a generated row of zeros: {refusal.message}; state a sample in it"
            ) from refusal
        raise _failed(
            f"the sample, of contract.json or MLflow's example, does not fit the model: {refusal.message}"
        ) from refusal
    names = request.outputs or tuple(spec.name for spec in contract.outputs)
    rows = engine.rows(request.inputs)
    try:
        specs, values = engine.run(request.inputs, names, rows)
    except ModelFailedError as error:
        if contract.sample_request is None and error.__cause__ is None:
            # All zeros may lie outside what the model can answer: no proof against it.
            logger.warning("warm-up with a generated row of zeros: %s", error)
            return
        hint = (
            "" if contract.sample_request else " (a generated row of zeros; state a sample in contract.json)"
        )
        raise _failed(f"{error}{hint}") from error
    if contract.sample_response is not None:
        answer = {spec.name: value for spec, value in zip(specs, values, strict=True)}
        _compare(contract.sample_response, answer)
    engine.unbatched = batchable.why_not(engine, request.inputs)
    engine.forget_timing()
    for _ in range(RUNS):
        engine.run(request.inputs, names, rows)
    if engine.unbatched is None:
        _run_in(engine, {name: array[:1] for name, array in request.inputs.items()})


def _run_in(engine: Engine, row: dict[str, np.ndarray]) -> None:
    """Run the batch sizes in use, the powers of two, as far as time allows."""
    until = time.monotonic() + _BATCHES_SECONDS
    rows = 1
    while rows <= engine.limits.max_batch_rows and time.monotonic() < until:
        batch = {name: np.repeat(array, rows, axis=0) for name, array in row.items()}
        for _ in range(3):
            try:
                engine.run(batch, (), rows)
            except ModelFailedError as error:
                engine.unbatched = f"{rows} rows do not run together: {error}"
                return
        rows *= 2


def generated(contract: Contract) -> dict[str, np.ndarray]:
    """Make a row of zeros or empty strings: every dimension that may vary is 1."""
    return {
        spec.name: np.full([1 if size == -1 else size for size in spec.shape], "", dtype=object)
        if spec.datatype == "BYTES"
        else np.zeros([1 if size == -1 else size for size in spec.shape], dtype=spec.dtype)
        for spec in contract.inputs
    }


def _compare(expected: dict[str, Any], answer: dict[str, np.ndarray]) -> None:
    for entry in expected["outputs"]:
        name = entry["name"]
        if name not in answer:
            raise _failed(
                f"contract.json's sample expects output '{name}', but the model gave {sorted(answer)}"
            )
        value = answer[name]
        try:
            wanted = np.array(entry["data"], dtype=value.dtype).reshape(value.shape)
        except (ValueError, TypeError) as error:
            raise _failed(
                f"output '{name}' of the sample has shape {list(value.shape)}, not the expected"
            ) from error
        same = (
            np.allclose(value, wanted, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
            if value.dtype.kind == "f"
            else np.array_equal(value, wanted)
        )
        if not same:
            raise _failed(
                f"output '{name}' of the sample should be {_few(wanted)}, but the model answered {_few(value)}"
            )


def _few(value: np.ndarray) -> str:
    numbers = value.ravel().tolist()
    return f"[{', '.join(str(number) for number in numbers[:6])}{', …' if len(numbers) > 6 else ''}]"


def _failed(message: str) -> StartFailure:
    return StartFailure(Stage.WARM_UP, Reason.WARM_UP_FAILED, message)
