"""Requests that share a run: which may, in what order, and what one bad one does to the others."""

import asyncio
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pilotage_runtime import batchable, formats, warmup
from pilotage_runtime.contract import Contract, TensorSpec, refine
from pilotage_runtime.engine import Engine, Limits
from pilotage_runtime.errors import BusyError, ModelFailedError, TooLateError
from pilotage_runtime.failure import Stage
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.telemetry import Sheet
from tests.runtime.scripted import Scripted, Unheard, contract, double, engine


def x(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, dtype=np.float32)}


def short(made: Engine, seconds: float = 1e-6) -> Engine:
    made._seconds = [seconds] * len(made._seconds)
    return made


def runs(made: Engine) -> list[list[float]]:
    model = made._model
    assert isinstance(model, Scripted)
    return model.runs


async def infer_all(made: Engine, *requests: dict[str, np.ndarray], **more: Any) -> list[Any]:
    """Infer all in one turn of the loop; give each one's answer or failure."""
    answers = await asyncio.gather(
        *(made.infer(request, **more) for request in requests), return_exceptions=True
    )
    return [answer if isinstance(answer, BaseException) else answer[1][0].tolist() for answer in answers]


async def test_requests_of_one_turn_share_a_run_and_each_gets_its_own_rows() -> None:
    made = short(engine())
    assert await infer_all(made, x(1), x(2, 3), x(4)) == [[2], [4, 6], [8]]
    assert runs(made) == [[1, 2, 3, 4]]


async def test_rows_are_counted_and_not_requests() -> None:
    made = short(engine(max_batch_rows=4))
    assert await infer_all(made, x(1, 2), x(3), x(4, 5), x(6)) == [[2, 4], [6], [8, 10], [12]]
    # The last fits beside the first two, and waits for none behind it.
    assert runs(made) == [[1, 2, 3, 6], [4, 5]]


async def test_an_answer_that_held_up_its_own_deadline_is_too_late() -> None:
    def slow(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        time.sleep(0.02)
        return double(inputs, outputs)

    made = short(engine(slow))  # predicted to be short, so it runs in the loop's own thread
    deadline = asyncio.get_running_loop().time() + 0.01
    (answer,) = await infer_all(made, x(1), deadline=deadline)
    assert isinstance(answer, TooLateError)


async def test_whoever_does_not_fit_keeps_its_place() -> None:
    made = short(engine(max_batch_rows=4))
    await infer_all(made, x(1, 2), x(3, 4, 5), x(6, 7, 8))
    assert runs(made) == [[1, 2], [3, 4, 5], [6, 7, 8]]


async def test_a_request_larger_than_a_batch_runs_alone() -> None:
    made = short(engine(max_batch_rows=4))
    assert await infer_all(made, x(*range(9)), x(1)) == [[value * 2 for value in range(9)], [2]]
    assert [len(run) for run in runs(made)] == [9, 1]


async def test_nothing_is_merged_that_was_not_proven() -> None:
    made = short(engine())
    made.unbatched = "not proven"
    assert await infer_all(made, x(1), x(2)) == [[2], [4]]
    assert runs(made) == [[1], [2]]


async def test_only_requests_with_equal_outputs_parameters_and_other_dimensions_share_a_run() -> None:
    described = Contract(
        inputs=(TensorSpec("x", "FP32", (-1, -1)),),
        outputs=(TensorSpec("y", "FP32", (-1, -1)), TensorSpec("z", "FP32", (-1, -1))),
    )

    def both(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        return [inputs["x"] * 2 for _ in outputs]

    made = short(engine(both, described))
    narrow, wide = ({"x": np.ones((1, width), np.float32)} for width in (2, 3))
    assert made.key(narrow, (), None) == made.key(narrow, (), None)
    assert made.key(narrow, (), None) != made.key(wide, (), None)
    assert made.key(narrow, ("y",), None) != made.key(narrow, (), None)
    assert made.key(narrow, (), b'{"beams":2}') != made.key(narrow, (), None)
    await infer_all(made, narrow, wide, narrow, wide)
    assert [(len(run), len(run[0])) for run in runs(made)] == [(2, 2), (2, 3)]  # pyright: ignore[reportArgumentType]


async def test_an_answer_that_cannot_be_given_harms_none_beside_it() -> None:
    class Broken(Unheard):
        def succeeded(self, specs: Sequence[TensorSpec], values: Sequence[Any]) -> None:
            raise RuntimeError("its connection is closed")

        def failed(self, error: Exception) -> None:
            raise RuntimeError("its connection is closed")

    for failing in (double, never):
        made = short(engine(failing), seconds=1)  # in a thread
        broken = Broken(1)
        broken.inputs, broken.key = x(1), made.key(x(1), (), None)
        made.submit(broken)
        (answer,) = await infer_all(made, x(2))
        assert answer == [4] if failing is double else isinstance(answer, ModelFailedError)
        # What comes behind it is served too.
        assert len(await infer_all(made, x(3))) == 1
        assert not made.busy


def never(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
    raise ValueError("no")


async def test_one_bad_request_fails_alone_and_its_batch_runs_again_once() -> None:
    def refuses_seven(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        if 7 in inputs["x"]:
            raise ValueError("seven")
        return double(inputs, outputs)

    made = short(engine(refuses_seven))
    answers = await infer_all(made, x(1), x(7), x(3))
    assert (answers[0], answers[2]) == ([2], [6])
    assert isinstance(answers[1], ModelFailedError)
    assert sorted(map(tuple, runs(made))) == [(1,), (1, 7, 3), (3,), (7,)]


async def test_one_answer_that_is_no_number_fails_alone() -> None:
    def root(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        del outputs
        with np.errstate(invalid="ignore"):
            return [np.sqrt(inputs["x"])]

    answers = await infer_all(short(engine(root)), x(4), x(-1), x(9))
    assert (answers[0], answers[2]) == ([2], [3])
    assert "NaN" in str(answers[1])


async def test_an_answer_with_other_rows_than_asked_for_is_tried_alone() -> None:
    def first_only(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        return [double(inputs, outputs)[0][:1]]

    assert await infer_all(short(engine(first_only)), x(1), x(2)) == [[2], [4]]


async def test_what_comes_while_the_model_is_busy_runs_together_next() -> None:
    gate = threading.Event()

    def wait(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    made = engine(wait)
    first = asyncio.create_task(made.infer(x(1)))
    while not runs(made):  # noqa: ASYNC110 - the model has no event
        await asyncio.sleep(0.001)
    rest = [asyncio.create_task(made.infer(x(value))) for value in (2, 3, 4)]
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(first, *rest)
    assert runs(made) == [[1], [2, 3, 4]]


async def test_a_request_waits_for_company_only_when_told_to_and_only_so_long() -> None:
    patient = short(engine(max_delay_seconds=0.05))
    first = asyncio.create_task(patient.infer(x(1)))
    await asyncio.sleep(0.005)
    second = asyncio.create_task(patient.infer(x(2)))
    await asyncio.gather(first, second)
    assert runs(patient) == [[1, 2]]

    full = short(engine(max_delay_seconds=30, max_batch_rows=2))
    assert await infer_all(full, x(1), x(2)) == [[2], [4]]

    prompt = short(engine())
    first = asyncio.create_task(prompt.infer(x(1)))
    await asyncio.sleep(0.005)
    await asyncio.gather(first, prompt.infer(x(2)))
    assert runs(prompt) == [[1], [2]]


async def test_a_deadline_ends_the_wait_for_company() -> None:
    made = short(engine(max_delay_seconds=30))
    with pytest.raises(TooLateError):
        await made.infer(x(1), deadline=asyncio.get_running_loop().time() + 0.02)
    assert (runs(made), made.waiting) == ([], 0)


async def test_a_full_queue_refuses() -> None:
    made = short(engine(max_waiting=2))
    answers = await infer_all(made, x(1), x(2), x(3))
    assert answers[:2] == [[2], [4]]
    assert isinstance(answers[2], BusyError)


async def test_a_cancelled_request_leaves_the_queue() -> None:
    made = short(engine(max_delay_seconds=30))
    task = asyncio.create_task(made.infer(x(1)))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.waiting == 0
    made._batcher._delay = 0
    assert await infer_all(made, x(2)) == [[4]]
    assert runs(made) == [[2]]


async def test_a_random_crowd_gets_its_own_answers() -> None:
    seed = 20261125
    print(f"seed {seed}")
    random = np.random.default_rng(seed)

    def picky(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return double(inputs, outputs)

    made = engine(picky, threads=2, max_batch_rows=8)
    made._seconds = [1e-6, 1e-6, 1e-6, 1, 1, 1] + [1.0] * 10
    pending: list[tuple[np.ndarray, asyncio.Task[Any]]] = []
    for _ in range(400):
        values = random.integers(-1, 40, random.integers(1, 6)).astype(np.float32)
        task = asyncio.create_task(made.infer({"x": values}))
        pending.append((values, task))
        if random.random() < 0.1:
            task.cancel()
        if random.random() < 0.3:
            await asyncio.sleep(0)
    for values, task in pending:
        try:
            answer = (await task)[1][0]
        except asyncio.CancelledError:
            continue
        except ModelFailedError:
            assert (values < 0).any()
        else:
            assert answer.tolist() == (values * 2).tolist()
    made.close()


# Whether requests may share a run is shown at load, with real graphs.


def saved(path: Path, nodes: list[Any], out: list[Any] | None = None, rows: Any = "N") -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 3] if out is None else out)
    graph = helper.make_graph(nodes, "g", [value], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def warmed(path: Path, **limits: Any) -> Engine:
    model = by_format.load(formats.detect(path, Stage.LOAD), LoadOptions(threads=1))
    stated = refine(model.contract(), path.parent)
    made = Engine("m", "1", model, stated, limits=Limits(**limits), slot=Sheet().slot(1))
    warmup.warm_up(made)
    return made


def test_rows_that_do_not_touch_each_other_are_batched(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    assert warmed(saved(tmp_path / "m.onnx", nodes)).unbatched is None


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "most"], ["y"]),
        ],
        [helper.make_node("CumSum", ["x", "axis"], ["y"])],
    ],
)
def test_a_graph_that_mixes_rows_is_not_batched(tmp_path: Path, nodes: list[Any]) -> None:
    if nodes[0].op_type == "CumSum":
        axis = helper.make_tensor("zero", TensorProto.INT64, [], [0])
        nodes = [helper.make_node("Constant", [], ["axis"], value=axis), *nodes]
    made = warmed(saved(tmp_path / "m.onnx", nodes))
    assert made.unbatched == "output 'y' of a row depends on the rows beside it"


@pytest.mark.parametrize("table", [None, [[0, 0, 0], [9, -7, 5], [0.1, -0.2, 0.3]]])
def test_a_model_that_is_quantized_as_it_runs_is_not_batched(tmp_path: Path, table: list[Any] | None) -> None:
    """Its scale is that of the largest row in a run. Zeros show nothing of it, nor does a zero for padding."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["v"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    values = [] if table is None else [numpy_helper.from_array(np.array(table, np.float32), "table")]
    first = helper.make_node("Identity", ["x"], ["v"])
    if table is not None:
        first = helper.make_node("GatherND", ["table", "x"], ["v"])
    kind, width = (TensorProto.FLOAT, 3) if table is None else (TensorProto.INT64, 1)
    graph = helper.make_graph(
        [first, *nodes],
        "quantized",
        [helper.make_tensor_value_info("x", kind, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        values,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        path := tmp_path / "m.onnx",
    )
    assert warmed(path).unbatched == "output 'y' of a row depends on the rows beside it"


@pytest.mark.parametrize("answer", ["class", "probabilities"])
def test_what_is_quantized_as_it_runs_shows_of_coarse_answers_too(tmp_path: Path, answer: str) -> None:
    """Of two small rows a class, or a probability near one half, is the same whatever the scale is."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [], [0.03])
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["v"]),
        helper.make_node("Constant", [], ["weight"], value=weight),
        helper.make_node("Mul", ["v", "weight"], ["logit"]),
        helper.make_node("ArgMax", ["logit"], ["y"], axis=1, keepdims=0)
        if answer == "class"
        else helper.make_node("Sigmoid", ["logit"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes)
    if answer == "class":
        model = onnx.load(path)
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, ["N"]))
        onnx.save(model, path)
    assert warmed(path).unbatched == "output 'y' of a row depends on the rows beside it"


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x: np.where(np.isnan(x), np.nan_to_num(np.nanmean(x)), x),
        lambda x: np.zeros_like(x) if np.isnan(x).any() else x,
        lambda x: np.abs(x) + 1 if (x < 0).any() else x,
        lambda x: x / 255 if x.max() > 255 else x,
    ],
    ids=["filled with the mean", "any NaN", "any negative", "any above 255"],
)
def test_what_one_number_of_a_run_decides_for_all_is_not_batched(mixing: Any) -> None:
    tensor = TensorSpec("x", "FP32", (-1,), allow_non_finite=True)
    answer = TensorSpec("y", "FP32", (-1,), allow_non_finite=True)
    made = engine(lambda inputs, _: [mixing(inputs["x"])], Contract((tensor,), (answer,)))
    warmup.warm_up(made)
    assert made.unbatched == "output 'y' of a row depends on the rows beside it"


def test_ranges_of_features_do_not_hide_what_mixes_rows(tmp_path: Path) -> None:
    """A row of another size is refused, but callers' numbers differ by as much as the ranges allow."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["v"]),
        helper.make_node("Softmax", ["v"], ["y"], axis=1),
    ]
    bounds = [
        {"name": "age", "minimum": 18, "maximum": 100},
        {"name": "income", "minimum": 1000, "maximum": 1_000_000},
        {"name": "kind", "categories": [1, 2]},
    ]
    rows = [[40, 50_000, 1], [41, 51_000, 2]]
    data = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": rows}
    described = {"features": bounds, "sample": {"request": {"inputs": [data]}}}
    (tmp_path / "contract.json").write_text(json.dumps(described))
    path = saved(tmp_path / "m.onnx", nodes)
    assert warmed(path).unbatched == "output 'y' of a row depends on the rows beside it"


def test_a_row_that_is_too_large_for_the_model_proves_nothing_against_it(tmp_path: Path) -> None:
    """Of 3000 and more, exp is infinite, which an answer may not be."""
    assert warmed(saved(tmp_path / "m.onnx", [helper.make_node("Exp", ["x"], ["y"])])).unbatched is None


def test_a_graph_for_one_row_or_with_one_answer_is_not_batched(tmp_path: Path) -> None:
    identity = [helper.make_node("Identity", ["x"], ["y"])]
    fixed = warmed(saved(tmp_path / "fixed.onnx", identity, rows=1))
    assert "input 'x' has shape [1, 3]: its first dimension is no number of rows" in (fixed.unbatched or "")
    mean = [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)]
    one = warmed(saved(tmp_path / "one.onnx", mean, out=["M", "K"]))
    assert one.unbatched == "output 'y' has shape [1, 1]: its first dimension is no number of rows"


def test_batching_can_be_switched_off(tmp_path: Path) -> None:
    made = warmed(saved(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])]), max_batch_rows=1)
    assert made.unbatched == "switched off: at most 1 row may share a run"


def test_a_sample_whose_inputs_differ_in_length_shows_that_these_are_no_rows() -> None:
    described = Contract(
        inputs=(TensorSpec("x", "FP32", (-1,)), TensorSpec("scale", "FP32", (-1,))),
        outputs=(TensorSpec("y", "FP32", (-1,)),),
    )
    made = engine(lambda inputs, _: [inputs["x"] * inputs["scale"]], described)
    reason = batchable.why_not(made, {"x": np.ones(2, np.float32), "scale": np.ones(1, np.float32)})
    assert reason == "the sample's inputs differ in their first dimension: it is no number of rows"


def test_a_model_that_cannot_be_shown_to_keep_rows_apart_is_not_batched() -> None:
    def only_zeros(inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        if inputs["x"].any():
            raise ValueError("zeros only")
        return double(inputs, outputs)

    made = engine(only_zeros, contract())
    warmup.warm_up(made)
    assert made.unbatched is not None
    assert made.unbatched.startswith("no second, different row runs to compare with")
