"""Whether requests may share a run: shown by running, since a model's graph can hide what mixes its rows.

A Softmax over the wrong axis gives every row the others' answers; a model exported for one row answers one row
whatever it is asked. So rows run together must answer what each answers alone, in different company.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np

from pilotage_runtime.contract import Contract
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import ModelFailedError, Refused
from pilotage_runtime.tensors import DATATYPES

Tensors = Mapping[str, np.ndarray]

_SEED = 20240607
_FACTOR = 30.0  # so much larger is a row whose company would show
# Kernels of another size add up in another order.
_RELATIVE = {"FP16": 2e-2, "BF16": 1e-1, "FP32": 1e-3, "FP64": 1e-6}
_ABSOLUTE = {"FP16": 1e-2, "BF16": 1e-1, "FP32": 1e-5, "FP64": 1e-9}


def why_not(engine: Engine, sample: Tensors) -> str | None:
    """Say why requests may not share a run; None: they may."""
    contract = engine.contract
    if engine.limits.max_batch_rows == 1:
        return "switched off: at most 1 row may share a run"
    for kind, specs in (("input", contract.inputs), ("output", contract.outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] != -1:
                return f"{kind} '{spec.name}' has shape {list(spec.shape)}: its first dimension is no number of rows"
    if len({array.shape[0] for array in sample.values()}) > 1:
        return "the sample's inputs differ in their first dimension: it is no number of rows"
    one = {name: array[:1] for name, array in sample.items()}
    try:
        alone = _run(engine, one)
    except (ModelFailedError, Refused) as error:
        return f"the sample's first row does not run alone: {error}"
    second = _first_that_runs(engine, _others(contract, sample))
    if second is None:
        return "no second, different row runs to compare with; state a sample of two rows in contract.json"
    if (difference := _differs(engine, [(one, alone), second])) is not None:
        return difference
    # Where a run's scale is that of its largest row (ONNX's dynamic quantization), rows of like size hide it, zeros too.
    third = _first_that_runs(engine, _of_other_size(contract, second[0]))
    return None if third is None else _differs(engine, [second, third])


def _first_that_runs(engine: Engine, rows: Iterator[Tensors]) -> tuple[Tensors, list[np.ndarray]] | None:
    for row in rows:
        with suppress(ModelFailedError, Refused):  # it may lie outside what the model can answer
            return row, _run(engine, row)
    return None


def _differs(engine: Engine, rows: list[tuple[Tensors, list[np.ndarray]]]) -> str | None:
    names = list(rows[0][0])
    for order in ((0, 1), (1, 0, 0), (0, 1, 1, 0, 1)):
        together = {name: np.concatenate([rows[at][0][name] for at in order]) for name in names}
        try:
            values = _run(engine, together)
        except (ModelFailedError, Refused) as error:
            return f"{len(order)} rows do not run together: {error}"
        for spec, value, *alone in zip(
            engine.contract.outputs, values, *(row[1] for row in rows), strict=True
        ):
            if value.shape[:1] != (len(order),):
                return f"output '{spec.name}' has shape {list(value.shape)} for {len(order)} rows"
            for place, at in enumerate(order):
                if not _equal(spec.datatype, value[place : place + 1], alone[at]):
                    return f"output '{spec.name}' of a row depends on the rows beside it"
    return None


def _run(engine: Engine, inputs: Tensors) -> list[np.ndarray]:
    engine.check(inputs, (), unseen=True)
    return engine.run(inputs, (), engine.rows(inputs))[1]


def _equal(datatype: str, value: np.ndarray, alone: np.ndarray) -> bool:
    if value.shape != alone.shape:
        return False
    if datatype not in _RELATIVE:
        return bool(np.array_equal(value, alone))
    return bool(
        np.allclose(
            value.astype(np.float64),
            alone.astype(np.float64),
            rtol=_RELATIVE[datatype],
            atol=_ABSOLUTE[datatype],
            equal_nan=True,
        )
    )


def _others(contract: Contract, sample: Tensors) -> Iterator[Tensors]:
    """Give rows that differ from the sample's first, the likeliest to run first."""
    rows = next(iter(sample.values())).shape[0]
    for at in range(1, rows):
        row = {name: array[at : at + 1] for name, array in sample.items()}
        if any(not np.array_equal(array, sample[name][:1]) for name, array in row.items()):
            yield row
    random = np.random.default_rng(_SEED)
    for whole in ("same", "less", "zero", "one"):
        row = {
            spec.name: _another(sample[spec.name][:1], spec.datatype, whole, random)
            for spec in contract.inputs
        }
        if any(not np.array_equal(array, sample[name][:1]) for name, array in row.items()):
            yield row


def _of_other_size(contract: Contract, row: Tensors) -> Iterator[Tensors]:
    """Give rows that are much larger or smaller, the likeliest to tell first; whole numbers stay small."""
    for factor in (_FACTOR, 1 / _FACTOR):
        for whole in (2, None):
            other = {
                spec.name: _sized(row[spec.name], spec.datatype, factor, whole) for spec in contract.inputs
            }
            if any(not np.array_equal(array, row[name]) for name, array in other.items()):
                yield other


def _sized(array: np.ndarray, datatype: str, factor: float, whole: int | None) -> np.ndarray:
    if datatype in _RELATIVE:
        largest = DATATYPES[datatype].largest
        assert largest is not None, "it is a number with a fraction"
        return np.clip(array.astype(np.float64) * factor, -largest, largest).astype(array.dtype)
    return array if whole is None or datatype in ("BYTES", "BOOL") else np.full_like(array, whole)


def _another(array: np.ndarray, datatype: str, whole: str, random: np.random.Generator) -> np.ndarray:
    if datatype in _RELATIVE:
        scaled = array.astype(np.float64) * random.uniform(0.5, 1.5, array.shape)
        return (scaled + random.uniform(0.0, 0.1, array.shape)).astype(array.dtype)
    if datatype == "BYTES" or whole == "same":
        return array
    if datatype == "BOOL":
        return ~array
    if whole == "less":
        return np.maximum(array, 1) - 1
    return np.full_like(array, 0 if whole == "zero" else 1)
