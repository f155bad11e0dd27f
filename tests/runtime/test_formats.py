"""What a model file is, told by its content."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pilotage_runtime import sealed
from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import choose, detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions


def refusal(path: Path, stated: str | None = None) -> tuple[str, str]:
    with pytest.raises(StartFailure) as failure:
        detect(path, Stage.VERIFY, stated)
    assert failure.value.stage == "Verify"
    return failure.value.reason, failure.value.message


def model_with_weights(location: str | None) -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if location is not None:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        weights.external_data.add(key="length", value="16")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_every_good_model_is_found_in_its_folder_and_as_a_file(models: Path) -> None:
    for path in (models / "iris" / "1", models / "fraud" / "2", models / "fraud" / "bad-latency"):
        assert detect(path, Stage.LOAD).path == path / "model.onnx"
        assert detect(path / "model.onnx", Stage.LOAD).format == "ONNX"


def test_a_pickle_is_refused_by_whatever_name_and_a_truncated_model_too(models: Path) -> None:
    reason, message = refusal(models / "broken" / "pickle.onnx")
    assert reason == "UntrustedFormat"
    assert (
        message
        == "pickle.onnx is a Python pickle, which runs code when it is loaded; convert the model to ONNX, "
        "or state `trusted: true` and its digest"
    )
    reason, message = refusal(models / "broken" / "truncated.onnx")
    assert reason == "InvalidModel"
    assert "the file ends" in message


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_model_cut_anywhere_is_found_out(models: Path, tmp_path: Path, share: float) -> None:
    whole = (models / "fraud" / "2" / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: int(len(whole) * share)])
    assert refusal(tmp_path)[0] == "InvalidModel"


@pytest.mark.parametrize(
    ("content", "stated", "reason"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", None, "UnknownFormat"),
        (b"<!DOCTYPE html><html>sign in</html>", "ONNX", "InvalidModel"),
        (b"PK\x03\x04archive", None, "InvalidModel"),
        (b"", None, "InvalidModel"),
        (b"\x78\x9cjoblib", None, "UntrustedFormat"),
        (b"\x08\x09" + b"\xff" * 64, None, "InvalidModel"),
        (b"\x08\x09\x08\x09", None, "InvalidModel"),
    ],
)
def test_what_is_no_onnx_is_refused_with_its_reason(
    tmp_path: Path, content: bytes, stated: str | None, reason: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert refusal(tmp_path, stated)[0] == reason


def test_a_folder_must_hold_one_model(tmp_path: Path, models: Path) -> None:
    assert refusal(tmp_path)[1] == "the folder should hold one model file at its top, but holds nothing"
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes((models / "iris" / "1" / "model.onnx").read_bytes())
    assert refusal(tmp_path)[1].endswith("but holds a.onnx, b.onnx")
    assert refusal(tmp_path / "nowhere")[0] == "UnknownFormat"


def test_of_a_sealed_model_what_lies_beside_it_is_left_alone(tmp_path: Path, models: Path) -> None:
    sealed.seal(models / "iris" / "1" / "model.onnx", tmp_path / "model.jwe", bytes(32))
    (tmp_path / "README.md").write_text("# Iris\n")
    (tmp_path / "contract.json").write_text("{}")
    (tmp_path / "below").mkdir()
    for stated in (None, "ONNX"):
        assert choose(tmp_path, Stage.LOAD, stated) == tmp_path / "model.jwe"


@pytest.mark.parametrize(("sealed_name", "plain_name"), [("a.jwe", "b"), ("a.onnx", "b.onnx")])
def test_a_sealed_file_may_be_the_model_as_much_as_a_plain_one(
    tmp_path: Path, models: Path, sealed_name: str, plain_name: str
) -> None:
    sealed.seal(models / "fraud" / "1" / "model.onnx", tmp_path / sealed_name, bytes(32))
    shutil.copy(models / "iris" / "1" / "model.onnx", tmp_path / plain_name)
    assert refusal(tmp_path)[1].endswith(f"but holds {sealed_name}, {plain_name}")


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret", "sub/../../secret"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\x00" * 16)
    (folder / "model.onnx").write_bytes(model_with_weights(location).SerializeToString())
    reason, message = refusal(folder)
    assert reason == "InvalidModel"
    assert f"takes weights from '{location}', outside its own folder" in message


def test_weights_behind_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\x00" * 16)
    (folder / "weights.bin").symlink_to(tmp_path / "secret")
    (folder / "model.onnx").write_bytes(model_with_weights("weights.bin").SerializeToString())
    assert "outside its own folder" in refusal(folder)[1]


def test_weights_hidden_in_a_subgraph_are_found(tmp_path: Path) -> None:
    inner = model_with_weights("../../etc/shadow").graph
    branch = helper.make_graph(inner.node, "branch", [], inner.output, inner.initializer)
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), inner.input[0]],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert "outside its own folder" in refusal(tmp_path)[1]


def test_weights_inside_the_folder_are_served(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.full(4, 2, np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(model_with_weights("weights.bin").SerializeToString())
    model = by_format.load(detect(tmp_path, Stage.LOAD), LoadOptions(threads=1))
    assert model.run({"x": np.ones(4, np.float32)}, ["y"])[0].tolist() == [3, 3, 3, 3]


def test_custom_operators_are_refused(tmp_path: Path) -> None:
    model = model_with_weights(None)
    model.graph.node[0].domain = "com.example"
    model.graph.node[0].op_type = "Evil"
    model.opset_import.add(domain="com.example", version=1)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StartFailure, match=r"the operator Evil of the domain com\.example") as failure:
        by_format.load(detect(tmp_path, Stage.LOAD), LoadOptions(threads=1))
    assert (failure.value.stage, failure.value.reason, failure.value.exit_code) == ("Load", "InvalidModel", 1)
