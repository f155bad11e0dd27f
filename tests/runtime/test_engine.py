"""The engine alone: checks before the run, failures after it, inline or in a thread."""

import threading
from typing import Any

import numpy as np
import pytest

from pilotage_runtime import warmup
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import ModelFailedError, Refused
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.features import Feature
from tests.runtime.scripted import Scripted, contract, double, engine


async def infer(runner: Engine, inputs: dict[str, np.ndarray]) -> Any:
    return await runner.infer(inputs)


def predict(runner: Engine, seconds: float) -> None:
    """Let the engine believe that a row takes so long."""
    runner._seconds = [seconds * 2 ** max(0, size - 1) for size in range(len(runner._seconds))]


def threads(runner: Engine) -> list[int]:
    model = runner._model
    assert isinstance(model, Scripted)
    return model.threads


def x(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, dtype=np.float32)}


async def test_tensors_in_tensors_out() -> None:
    specs, values = await infer(engine(), x(1, 2))
    assert [spec.name for spec in specs] == ["y"]
    assert values[0].tolist() == [2, 4]


@pytest.mark.parametrize(
    "raised", [ValueError("v"), KeyError("k"), MemoryError(), SystemExit(3), KeyboardInterrupt(), TimeoutError(),
               type("Strange", (BaseException,), {})(), Refused("a model that blames the caller")]
)  # fmt: skip
async def test_whatever_the_model_raises_is_the_models_failure(raised: BaseException) -> None:
    def fail(inputs: Any, outputs: Any) -> list[Any]:
        raise raised

    for predicted in (0.0, 1.0):  # inline, and in a thread
        failing = engine(fail)
        predict(failing, predicted)
        with pytest.raises(ModelFailedError, match="model 'm' failed"):
            await infer(failing, x(1))


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
async def test_a_non_finite_answer_is_a_failure_unless_the_contract_allows_it(
    size: int, value: float, dtype: str
) -> None:
    def answer(inputs: Any, outputs: Any) -> list[Any]:
        return [np.array([0.5] * size + [value], dtype=dtype)]

    with pytest.raises(ModelFailedError, match="NaN or infinity in output 'y'"):
        await infer(engine(answer), x(1))
    _, values = await infer(engine(answer, contract(allow_non_finite=True)), x(1))
    assert not np.isfinite(values[0][-1])


async def test_a_short_run_stays_in_the_loops_thread_and_a_long_one_leaves_it() -> None:
    runner = engine()
    predict(runner, 30e-6)
    await infer(runner, x(1))
    assert threads(runner).pop() == threading.get_ident()
    predict(runner, 30e-6)
    await infer(runner, x(*range(10)))  # ten rows are predicted to take eight times as long
    assert threads(runner).pop() != threading.get_ident()


async def test_one_long_run_is_enough_to_move_the_next_to_a_thread() -> None:
    runner = engine()
    predict(runner, 30e-6)
    runner._learn(1, 0.5)
    await infer(runner, x(1))
    assert threads(runner) != [threading.get_ident()]


def test_inputs_that_share_a_named_dimension_must_agree() -> None:
    two = Contract(
        inputs=(TensorSpec("a", "FP32", (-1, 2), ("N", None)), TensorSpec("b", "FP32", (-1,), ("N",))),
        outputs=(),
    )
    given = {"a": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float32)}
    with pytest.raises(
        Refused, match="dimension 'N' should be equal in all its inputs, but is 3 in 'a', 4 in 'b'"
    ):
        engine(double, two).check(given, ())


def test_inputs_of_rows_must_agree_in_their_number() -> None:
    two = Contract(
        inputs=(TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1,))),
        outputs=(TensorSpec("y", "FP32", (-1,)),),
    )
    given = {"a": np.zeros((3, 2), np.float32), "b": np.zeros(1, np.float32)}
    proven = engine(double, two)
    with pytest.raises(
        Refused, match="the number of rows should be equal in all its inputs, but is 3 in 'a', 1 in 'b'"
    ):
        proven.check(given, ())
    proven.unbatched = "what they are nobody knows"
    proven.check(given, ())


def test_a_sample_is_inferred_and_its_answer_compared() -> None:
    sample = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [3]}]}
    good = Contract(
        contract().inputs, contract().outputs, (), sample, {"outputs": [{"name": "y", "data": [6]}]}
    )
    warmup.warm_up(engine(double, good))
    wrong = Contract(
        contract().inputs, contract().outputs, (), sample, {"outputs": [{"name": "y", "data": [7]}]}
    )
    with pytest.raises(
        StartFailure, match=r"'y' of the sample should be \[7.0\], but the model answered \[6.0\]"
    ):
        warmup.warm_up(engine(double, wrong))


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ({"name": "z", "data": [6]}, r"expects output 'z', but the model gave \['y'\]"),
        ({"name": "y", "data": [6, 6]}, r"output 'y' of the sample has shape \[1\], not the expected"),
        ({"name": "y", "data": [7]}, r"'y' of the sample should be \[7\], but the model answered \[6\]"),
    ],
)
def test_an_answer_in_whole_numbers_is_compared_with_the_samples_too(
    output: dict[str, Any], sentence: str
) -> None:
    whole = contract(datatype="INT64").outputs
    sample = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [3]}]}

    def rounded(inputs: Any, outputs: Any) -> list[Any]:
        return [double(inputs, outputs)[0].astype(np.int64)]

    with pytest.raises(StartFailure, match=sentence):
        warmup.warm_up(engine(rounded, Contract(contract().inputs, whole, (), sample, {"outputs": [output]})))


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [3]}]}, "input 'x' is missing"),
        ({"inputs": []}, "'inputs' should be a list of tensors"),
    ],
)
def test_a_sample_that_does_not_fit_its_model_fails_the_warm_up(
    sample: dict[str, Any], sentence: str
) -> None:
    described = Contract(contract().inputs, contract().outputs, (), sample)
    with pytest.raises(StartFailure, match=sentence) as failure:
        warmup.warm_up(engine(double, described))
    assert failure.value.reason == "WarmUpFailed"


def test_ranges_without_a_sample_of_them_fail_the_warm_up_and_ask_for_one() -> None:
    adults = Contract((TensorSpec("x", "FP32", (-1, 1)),), contract().outputs, features=(Feature("age", 18),))
    with pytest.raises(StartFailure) as failure:
        warmup.warm_up(engine(double, adults))
    assert failure.value.message == (
        "contract.json refuses a generated row of zeros: feature 'age': 0 came, at least 18 is expected; "
        "state a sample in it"
    )


def test_without_a_sample_a_generated_row_must_run_but_may_answer_nan() -> None:
    warmup.warm_up(engine(lambda inputs, outputs: [np.array([np.nan], np.float32)]))

    def fail(inputs: Any, outputs: Any) -> list[Any]:
        raise ValueError("no")

    with pytest.raises(StartFailure, match=r"failed: no \(a generated row of zeros; state a sample"):
        warmup.warm_up(engine(fail))


def test_a_generated_row_has_ones_for_the_dimensions_that_vary() -> None:
    described = Contract(
        inputs=(TensorSpec("image", "UINT8", (-1, 3, -1)), TensorSpec("text", "BYTES", (-1, 2))), outputs=()
    )
    row = warmup.generated(described)
    assert (row["image"].shape, row["image"].dtype) == ((1, 3, 1), np.uint8)
    assert row["text"].tolist() == [["", ""]]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_what_is_no_number_is_the_callers_fault_unless_the_contract_takes_it(
    datatype: str, value: float
) -> None:
    spec = TensorSpec("x", datatype, (-1,))
    strict = engine(described=Contract((spec,), contract().outputs))
    inputs = {"x": np.array([1, value], dtype=spec.dtype)}
    with pytest.raises(Refused, match="input 'x' holds NaN or infinity"):
        strict.check(inputs, ())
    lenient = TensorSpec("x", datatype, (-1,), allow_non_finite=True)
    engine(described=Contract((lenient,), contract().outputs)).check(inputs, ())
