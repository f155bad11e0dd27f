"""Whether requests may share a run: shown by running, since a model's graph can hide what mixes its rows.

A Softmax over the wrong axis gives every row the others' answers; a model exported for one row answers one row
whatever it is asked. So rows run together must answer what each answers alone, in different company.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import ModelFailedError, Refused
from pilotage_runtime.tensors import DATATYPES

Tensors = Mapping[str, np.ndarray]

_SEED = 20240607
_FACTOR = 30.0  # so much larger is a row whose company would show
_CROWD = 8
_MISSING = 0.2  # of a crowd's numbers, where NaN is taken
_FAR = (_FACTOR**3, _FACTOR**2, _FACTOR)  # and so much one that joins a crowd, if the model answers it
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
    third = _first_that_runs(engine, _of_other_size(contract, second[0], (_FACTOR, 1 / _FACTOR)))
    if third is not None and (difference := _differs(engine, [second, third])) is not None:
        return difference
    return _moved(engine, (third or second)[0])


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


def _moved(engine: Engine, row: Tensors) -> str | None:
    """Say which output of a crowd is another once a far larger row joins it, and one of other signs, and one of NaN.

    Classes, and probabilities near 0 or 1, seldom show of two rows what mixes them. What joins is not looked at
    itself: it may be beyond what the model can answer well.
    """
    contract = engine.contract
    for mixed in (False, True):
        crowd = _first_that_runs(
            engine, (_allowed(contract, rows, row) for rows in _crowds(contract, row, mixed=mixed))
        )
        if crowd is None:
            continue
        inputs, without = crowd
        for companies in _companies(contract, row, mixed=mixed):
            allowed = (_allowed(contract, rows, row) for rows in companies)
            beside = _first_that_runs(engine, (_joined([inputs, rows]) for rows in allowed))
            if beside is None:
                continue
            for spec, value, alone in zip(contract.outputs, beside[1], without, strict=True):
                if not _equal(spec.datatype, value[:_CROWD], alone):
                    return f"output '{spec.name}' of a row depends on the rows beside it"
    return None


def _joined(parts: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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


def _crowds(contract: Contract, row: Tensors, *, mixed: bool) -> Iterator[Tensors]:
    """Give rows like this one, as different as they may be first; `mixed`: of both signs, with some NaN."""
    random = np.random.default_rng(_SEED)
    many = {name: np.repeat(array, _CROWD, axis=0) for name, array in row.items()}
    for whole in (True, False):
        yield {
            spec.name: _varied(many[spec.name], spec, random, mixed=mixed, whole=whole)
            for spec in contract.inputs
        }


def _varied(
    array: np.ndarray, spec: TensorSpec, random: np.random.Generator, *, mixed: bool, whole: bool
) -> np.ndarray:
    if spec.datatype in _RELATIVE:
        factors = random.uniform(-1.5 if mixed else 0.5, 1.5, array.shape)
        if mixed and spec.allow_non_finite:
            factors[random.random(array.shape) < _MISSING] = np.nan
        return (array.astype(np.float64) * factors).astype(array.dtype)
    if spec.datatype == "BYTES" or not whole:
        return array
    return random.integers(0, 2 if spec.datatype == "BOOL" else 3, array.shape).astype(array.dtype)


def _companies(contract: Contract, row: Tensors, *, mixed: bool) -> Iterator[Sequence[Tensors]]:
    """Give what joins a crowd, each the likeliest to run and tell first.

    A graph may ask whether any number is negative, or NaN, which a mixed crowd has itself. NaN comes alone: it hides
    what is the largest.
    """
    far = list(_of_other_size(contract, row, _FAR))
    if mixed:
        yield far
        return
    yield [*(_joined([one, _scaled(contract, row, -1.0)]) for one in far), *far]
    if any(spec.allow_non_finite for spec in contract.inputs):
        yield [_scaled(contract, row, np.nan)]


def _scaled(contract: Contract, row: Tensors, factor: float) -> Tensors:
    return {
        spec.name: (row[spec.name].astype(np.float64) * factor).astype(spec.dtype)
        if spec.datatype in _RELATIVE and (not np.isnan(factor) or spec.allow_non_finite)
        else row[spec.name]
        for spec in contract.inputs
    }


def _of_other_size(contract: Contract, row: Tensors, factors: Sequence[float]) -> Iterator[Tensors]:
    """Give rows that are much larger or smaller, the likeliest to tell first; whole numbers stay small."""
    for factor in factors:
        for whole in (
            (2, None) if any(spec.datatype not in _RELATIVE for spec in contract.inputs) else (None,)
        ):
            other = {
                spec.name: _sized(row[spec.name], spec.datatype, factor, whole) for spec in contract.inputs
            }
            if any(not np.array_equal(array, row[name]) for name, array in other.items()):
                yield other


def _allowed(contract: Contract, rows: Tensors, known: Tensors) -> Tensors:
    """Bring numbers into the ranges that their features state; a category stays that of the row known to run."""
    kept = dict(rows)
    for columns in contract.bounded_columns:
        array = kept[columns.name]
        table = array.reshape(-1, columns.width).copy()
        if columns.bounded:
            numbers = table[:, columns.indices].astype(np.float64)
            table[:, columns.indices] = np.clip(numbers, columns.lows, columns.highs).astype(array.dtype)
        for index, _, _ in columns.listed:
            table[:, index] = known[columns.name].reshape(-1, columns.width)[0, index]
        kept[columns.name] = table.reshape(array.shape)
    return kept


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
