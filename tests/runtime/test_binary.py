"""Binary tensors behind the JSON of a body, in both directions, and lengths that lie."""

import struct
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.protocol import v2
from pilotage_runtime.tensors import DATATYPES

NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def contract(datatype: str) -> Contract:
    return Contract((TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", datatype, (-1, 2)),))


def request(raw: bytes, datatype: str = "FP32", size: int | None = None, **changes: Any) -> tuple[bytes, int]:
    tensor = {
        "name": "x",
        "datatype": datatype,
        "shape": [2, 2],
        "parameters": {"binary_data_size": len(raw) if size is None else size},
        **changes,
    }
    text = orjson.dumps({"inputs": [tensor]})
    return text + raw, len(text)


def parse(body: bytes, length: int, datatype: str = "FP32") -> np.ndarray:
    return v2.parse(body, contract(datatype), length).inputs["x"]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_come_and_go_as_they_are(datatype: str) -> None:
    dtype = DATATYPES[datatype].dtype
    array = np.array([[0, 1], [2, 3]]).astype(dtype)
    came = parse(*request(array.tobytes(), datatype), datatype)
    assert came.dtype == dtype
    assert (came == array).all()
    asked = v2.InferRequest("7", {}, (), binary=True)
    body, length = v2.answer("m", "1", asked, contract(datatype).outputs, [array])
    assert isinstance(body, list)
    document = orjson.loads(body[0])
    assert length == len(body[0])
    assert document["outputs"][0]["parameters"] == {"binary_data_size": array.nbytes}
    assert "data" not in document["outputs"][0]
    assert bytes(body[1]) == array.tobytes()


def test_an_aligned_tensor_is_not_copied() -> None:
    array = np.arange(4, dtype=np.float32)
    for padding in range(4):
        body, length = request(array.tobytes(), parameters={"binary_data_size": 16, "pad": "x" * padding})
        came = parse(body, length)
        whole = np.frombuffer(body, np.uint8)
        assert came.flags.aligned
        if (whole.ctypes.data + length) % 4 == 0:
            assert np.shares_memory(came, whole)


def test_texts_have_their_lengths_before_them() -> None:
    words = ["", "a", "zwölf", "\x00"]
    raw = b"".join(struct.pack("<I", len(word.encode())) + word.encode() for word in words)
    came = parse(*request(raw, "BYTES"), "BYTES")
    assert came.tolist() == [["", "a"], ["zwölf", "\x00"]]
    body, _ = v2.answer(
        "m", "1", v2.InferRequest(None, {}, (), binary=True), contract("BYTES").outputs, [came]
    )
    assert body[1] == raw


def test_bools_of_any_bit_pattern_are_true_or_false() -> None:
    came = parse(*request(b"\x00\x01\x02\xff", "BOOL"), "BOOL")
    assert came.view(np.uint8).tolist() == [[0, 1], [1, 1]]


def test_bfloat16_is_carried_in_json_as_numbers() -> None:
    text = orjson.dumps(
        {"inputs": [{"name": "x", "datatype": "BF16", "shape": [1, 2], "data": [1.0, 3.140625]}]}
    )
    came = v2.parse(text, contract("BF16")).inputs["x"]
    assert came.dtype == ml_dtypes.bfloat16
    body, _ = v2.answer("m", "1", v2.InferRequest(None, {}, ()), contract("BF16").outputs, [came])
    assert orjson.loads(body)["outputs"][0]["data"] == [1.0, 3.140625]  # pyright: ignore[reportArgumentType]


def test_binary_and_json_tensors_stand_side_by_side() -> None:
    both = Contract((TensorSpec("a", "INT64", (-1,)), TensorSpec("b", "FP32", (-1,)), TensorSpec("c", "INT8", (-1,))),
                    (TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "FP32", (-1,))))  # fmt: skip
    text = orjson.dumps(
        {
            "inputs": [
                {"name": "a", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
                {"name": "b", "datatype": "FP32", "shape": [2], "data": [1, 2]},
                {"name": "c", "datatype": "INT8", "shape": [3], "parameters": {"binary_data_size": 3}},
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}],
        }
    )
    body = text + struct.pack("<q", -5) + bytes([1, 2, 3])
    came = v2.parse(body, both, len(text))
    assert {name: array.tolist() for name, array in came.inputs.items()} == {
        "a": [-5],
        "b": [1, 2],
        "c": [1, 2, 3],
    }
    answer, _ = v2.answer("m", "1", came, both.outputs, [np.ones(1, np.float32), np.ones(2, np.float32)])
    outputs = orjson.loads(answer[0])["outputs"]  # pyright: ignore[reportArgumentType]
    assert outputs[0]["parameters"] == {"binary_data_size": 4}
    assert outputs[1]["data"] == [1, 1]


def test_an_answer_is_row_major_whatever_the_memory_order() -> None:
    turned = np.arange(6, dtype=np.int16).reshape(2, 3).T
    asked = v2.InferRequest(None, {}, (), binary=True)
    body, _ = v2.answer("m", "1", asked, contract("INT16").outputs, [turned])
    assert bytes(body[1]) == struct.pack("<6h", 0, 3, 1, 4, 2, 5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("wanted", [True, False])
def test_all_outputs_are_binary_where_that_is_asked_for_but_those_that_say_otherwise(wanted: bool) -> None:
    both = Contract(contract("INT8").inputs, (TensorSpec("y", "INT8", (-1,)), TensorSpec("z", "INT8", (-1,))))
    text = orjson.dumps(
        {
            "inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 2], "data": [1, 2]}],
            "parameters": {"binary_data_output": wanted},
            "outputs": [{"name": "y"}, {"name": "z", "parameters": {"binary_data": not wanted}}],
        }
    )
    values = [np.array([at], np.int8) for at in (5, 6)]
    body, length = v2.answer("m", "1", v2.parse(text, both), both.outputs, values)
    assert isinstance(body, list)
    assert length == len(body[0])
    assert [bytes(part) for part in body[1:]] == [b"\x05" if wanted else b"\x06"]
    y, z = orjson.loads(body[0])["outputs"]
    assert (y.get("data"), z.get("data")) == ((None, [6]) if wanted else ([5], None))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"raw": b"\x00" * 15}, "input 'x': 15 bytes came, FP32 [2, 2] has 16"),
        ({"raw": b"\x00" * 16, "size": 20}, "input 'x': binary_data_size is 20, but 16 bytes are left"),
        ({"raw": b"\x00" * 20, "size": 16}, "4 bytes are left behind the last binary input"),
        ({"raw": b"\x00" * 16, "size": -1}, "binary_data_size should be a number of bytes, but is -1"),
        (
            {"raw": b"\x00" * 16, "parameters": {"binary_data_size": "16"}},
            "binary_data_size should be a number",
        ),
        ({"raw": b"\x00" * 16, "data": [1, 2, 3, 4]}, "16 bytes are left behind the last binary input"),
        ({"raw": b"", "datatype": "BYTES"}, "0 elements came, its shape needs 4"),
        ({"raw": b"\x00\x00", "datatype": "BYTES"}, "the last element's length is cut off"),
        (
            {"raw": b"\xff\xff\xff\xff", "datatype": "BYTES"},
            "element 0 should have 4294967295 bytes, 0 are left",
        ),
        (
            {"raw": b"\x00\x00\x00\x00" * 5, "datatype": "BYTES"},
            "more than the 4 elements that its shape needs",
        ),
        (
            {"raw": b"\x01\x00\x00\x00\xff" * 4, "datatype": "BYTES"},
            "element 0 is not UTF-8: invalid start byte",
        ),
        ({"raw": b"", "parameters": {"shared_memory_region": "r"}}, "shared memory is not supported"),
    ],
)
def test_what_does_not_add_up_is_refused_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(*request(**arguments), arguments.get("datatype", "FP32"))
    assert sentence in refused.value.message


def test_a_header_that_lies_about_the_json_is_refused() -> None:
    body, length = request(b"\x00" * 16)
    with pytest.raises(Refused, match=f"is {len(body) + 1}, but the whole body has {len(body)} bytes"):
        parse(body, len(body) + 1)
    with pytest.raises(Refused, match="not JSON"):
        parse(body, length - 1)
    with pytest.raises(Refused, match="not JSON"):
        parse(body, 0)
    with pytest.raises(Refused, match="needs the header Inference-Header-Content-Length"):
        v2.parse(body[:length], contract("FP32"))


@pytest.mark.parametrize(
    ("more", "sentence", "status"),
    [
        ({"parameters": [1]}, "'parameters' should be an object, but is [1]", 400),
        ({"parameters": {"a": [1]}}, "parameter 'a' should be a string, a number, true or false", 400),
        ({"parameters": {"timeout": "1s"}}, "parameter 'timeout' should be a number of microseconds", 400),
        ({"parameters": {"timeout": -1}}, "parameter 'timeout' should be a number of microseconds", 400),
        (
            {"parameters": {"binary_data_output": 1}},
            "'binary_data_output' should be true or false, but is 1",
            400,
        ),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' is asked for twice", 400),
        ({"outputs": [{"name": "y", "parameters": 3}]}, "outputs[0].parameters should be an object", 400),
        (
            {"outputs": [{"name": "y", "parameters": {"binary_data": 3}}]},
            "binary_data should be true or false",
            400,
        ),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification extension", 501),
        (
            {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
            "output 'y': shared memory is not supported",
            501,
        ),
    ],
)
def test_parameters_are_checked(more: dict[str, Any], sentence: str, status: int) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    with pytest.raises(Refused) as refused:
        v2.parse(orjson.dumps({"inputs": [tensor], **more}), contract("FP32"))
    assert sentence in refused.value.message
    assert refused.value.status == status


def test_parameters_for_the_model_keep_requests_apart() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}

    def sharing(**parameters: Any) -> bytes | None:
        text = orjson.dumps({"inputs": [tensor], "parameters": parameters})
        return v2.parse(text, contract("FP32")).sharing

    assert sharing(timeout=5, binary_data_output=True, priority=1) is None
    assert sharing(a=1, b=2) == sharing(b=2, a=1) != sharing(a=1)
