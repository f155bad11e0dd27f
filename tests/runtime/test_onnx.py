"""onnxruntime where it cannot do what is asked, and where its Python can do less than it can."""

import json
from pathlib import Path

import httpx
import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format, onnx
from pilotage_runtime.loaders.base import LoadOptions
from tests.runtime.conftest import Servers


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (LoadOptions(threads=1, device="cuda"), "this onnxruntime cannot use a GPU"),
        (LoadOptions(threads=1, precision="float16"), "convert it: onnxconverter_common"),
    ],
)
def test_what_the_machine_cannot_do_is_said_at_load(
    models: Path, options: LoadOptions, sentence: str
) -> None:
    with pytest.raises(StartFailure, match=sentence) as failure:
        by_format.load(detect(models / "iris" / "1", Stage.LOAD), options)
    assert failure.value.reason == "LoadFailed"


def test_a_gpu_that_the_library_could_use_and_the_machine_lacks_is_no_silent_cpu(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As onnxruntime-gpu answers everywhere.
    monkeypatch.setattr(
        onnx.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(StartFailure, match="cannot start CUDAExecutionProvider here"):
        by_format.load(detect(models / "iris" / "1", Stage.LOAD), LoadOptions(threads=1, device="cuda"))


def test_two_packages_that_overwrite_each_other_are_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "_installed", lambda _: True)
    with pytest.raises(StartFailure, match="onnxruntime and onnxruntime-gpu are both installed"):
        by_format.load(detect(models / "iris" / "1", Stage.LOAD), LoadOptions(threads=1))


def same(path: Path, kind: int) -> Path:
    """A model that answers what it is asked, of one type."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N"])],
        [helper.make_tensor_value_info("y", kind, ["N"])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    (path / "model.onnx").write_bytes(made.SerializeToString())
    return path


def test_half_precision_is_served(tmp_path: Path) -> None:
    model = by_format.load(detect(same(tmp_path, TensorProto.FLOAT16), Stage.LOAD), LoadOptions(threads=1))
    assert model.contract().inputs[0].datatype == "FP16"
    [answer] = model.run({"x": np.array([1.5], np.float16)}, ["y"])
    assert (answer.dtype, answer.tolist()) == (np.float16, [1.5])


def test_a_type_that_the_protocol_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    model = by_format.load(
        detect(same(tmp_path, TensorProto.FLOAT8E4M3FN), Stage.LOAD), LoadOptions(threads=1)
    )
    with pytest.raises(StartFailure, match=r"'x' is tensor\(float8e4m3fn\), .*tensor\(bfloat16\)") as failure:
        model.contract()
    assert failure.value.reason == "InvalidModel"


def bfloat16(path: Path, *, text: bool = False) -> Path:
    """A model that doubles BF16 as BF16 and as FP32, adds INT64 to itself, and may take a text besides."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "two"], ["y32"]),
        helper.make_node("Cast", ["y32"], ["y"], to=TensorProto.BFLOAT16),
        helper.make_node("Add", ["n", "n"], ["n2"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["N", 2]),
        helper.make_tensor_value_info("n", TensorProto.INT64, ["N"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["N", 2]),
        helper.make_tensor_value_info("y32", TensorProto.FLOAT, ["N", 2]),
        helper.make_tensor_value_info("n2", TensorProto.INT64, ["N"]),
    ]
    if text:
        nodes.append(helper.make_node("Identity", ["text"], ["echo"]))
        inputs.append(helper.make_tensor_value_info("text", TensorProto.STRING, ["N"]))
        outputs.append(helper.make_tensor_value_info("echo", TensorProto.STRING, ["N"]))
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    graph = helper.make_graph(nodes, "g", inputs, outputs, [two])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (path / "model.onnx").write_bytes(made.SerializeToString())
    return path


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    model = by_format.load(detect(bfloat16(tmp_path), Stage.LOAD), LoadOptions(threads=1))
    contract = model.contract()
    assert [spec.datatype for spec in contract.inputs] == ["BF16", "INT64"]
    assert [spec.datatype for spec in contract.outputs] == ["BF16", "FP32", "INT64"]
    x = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)[:, ::2]  # not contiguous
    n = np.arange(3)
    y, y32, n2 = model.run({"x": x, "n": n}, ("y", "y32", "n2"))
    assert (y.dtype, y32.dtype) == (x.dtype, np.float32)
    assert y.tolist() == (x * 2).tolist()
    assert y32.tolist() == (x.astype(np.float32) * 2).tolist()
    assert n2.tolist() == [0, 2, 4]
    [none] = model.run({"x": x[:0], "n": n[:0]}, ("y",))
    assert (none.shape, none.dtype) == ((0, 2), x.dtype)


def test_a_single_bfloat16_stays_one(tmp_path: Path) -> None:
    """A number of no dimension is no list of one: the answer would have a shape that nobody asked for."""
    one, two = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, []) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [one], [two])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    model = by_format.load(detect(tmp_path, Stage.LOAD), LoadOptions(threads=1))
    [y] = model.run({"x": np.array(1.5, ml_dtypes.bfloat16)}, ("y",))
    assert (y.shape, y.tolist()) == ((), 1.5)


def test_bfloat16_is_served_as_json_and_as_binary(tmp_path: Path, serve: Servers) -> None:
    server = serve(bfloat16(tmp_path), "m")
    n = {"name": "n", "datatype": "INT64", "shape": [1], "data": [7]}
    x = {"name": "x", "datatype": "BF16", "shape": [1, 2]}
    answer = server.infer({"inputs": [{**x, "data": [1.5, -4]}, n]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0] == {"name": "y", "datatype": "BF16", "shape": [1, 2], "data": [3, -8]}
    head = json.dumps(
        {
            "inputs": [{**x, "parameters": {"binary_data_size": 4}}, n],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    )
    bits = np.array([1.5, -4], ml_dtypes.bfloat16).tobytes()
    binary = httpx.post(
        f"{server.client.base_url}{server.infer_path}",
        content=head.encode() + bits,
        headers={"inference-header-content-length": str(len(head))},
    )
    assert binary.status_code == 200, binary.text
    assert np.frombuffer(binary.content[-4:], ml_dtypes.bfloat16).tolist() == [3, -8]


def test_bfloat16_beside_text_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartFailure, match="its input 'text' is text") as failure:
        by_format.load(detect(bfloat16(tmp_path, text=True), Stage.LOAD), LoadOptions(threads=1))
    assert failure.value.reason == "InvalidModel"
