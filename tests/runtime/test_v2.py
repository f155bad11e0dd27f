"""The protocol's JSON, datatype by datatype."""

import time
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.protocol import v2

ANY = Contract(inputs=(), outputs=())


def answer(request_id: str | None, specs: list[TensorSpec], values: list[np.ndarray]) -> bytes:
    body, binary = v2.answer("m", "1", v2.InferRequest(request_id, {}, ()), specs, values)
    assert isinstance(body, bytes)
    assert binary is None
    return body


def parsed(datatype: str, data: Any, shape: list[int] | None = None, contract: Contract = ANY) -> np.ndarray:
    entry = {"name": "x", "datatype": datatype, "shape": shape or [len(data)], "data": data}
    return v2.parse(orjson.dumps({"inputs": [entry]}), contract).inputs["x"]


@pytest.mark.parametrize(
    ("datatype", "data", "dtype"),
    [
        ("BOOL", [True, False], "bool"),
        ("INT8", [-128, 127], "int8"),
        ("INT16", [-32768, 32767], "int16"),
        ("INT32", [-(2**31), 2**31 - 1], "int32"),
        ("INT64", [-(2**63), 2**63 - 1], "int64"),
        ("UINT8", [0, 255], "uint8"),
        ("UINT16", [0, 65535], "uint16"),
        ("UINT32", [0, 2**32 - 1], "uint32"),
        ("UINT64", [0, 2**64 - 1], "uint64"),
        ("FP16", [0.5, -2], "float16"),
        ("FP32", [0.5, -2], "float32"),
        ("FP64", [0.1, 1e300], "float64"),
        ("BYTES", ["a", "é\x00"], "object"),
    ],
)
def test_every_datatype_comes_in_and_goes_out_unchanged(datatype: str, data: list[Any], dtype: str) -> None:
    array = parsed(datatype, data)
    assert array.dtype == np.dtype(dtype)
    assert array.tolist() == data
    document = orjson.loads(answer("7", [TensorSpec("y", datatype, (-1,))], [array]))
    assert document == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": datatype, "shape": [len(data)], "data": data}],
    }


@pytest.mark.parametrize(
    ("datatype", "data", "sentence"),
    [
        ("INT8", [1, 128], "128 is outside INT8, which holds -128 to 127"),
        ("UINT8", [-1], "-1 is outside UINT8, which holds 0 to 255"),
        ("UINT64", [-1], "-1 is outside UINT64"),
        ("INT64", [2**63], "9223372036854775808 is outside INT64"),
        ("INT32", [1.5], "INT32 takes whole numbers, but data holds numbers with a fraction"),
        ("INT32", [True], "INT32 takes whole numbers, but data holds true or false"),
        ("BOOL", [0, 1], "BOOL takes true or false, but data holds whole numbers"),
        ("BYTES", [1, 2], "BYTES takes strings, but data holds whole numbers"),
        ("FP32", [True, 3.5], "data holds true or false among other values"),
        ("INT64", [[1, 2], [True, 2]], "data holds true or false among other values"),
        ("BYTES", ["a", 1], "BYTES takes strings, but data holds mixed values"),
        ("FP16", [70000], "data holds a number too large for FP16"),
        ("FP32", ["nan"], "FP32 takes numbers, but data holds strings"),
        ("FP32", [{}], "FP32 takes numbers, but data holds null, objects or mixed values"),
    ],
)
def test_what_a_datatype_cannot_hold_is_refused(datatype: str, data: list[Any], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        parsed(datatype, data)
    assert sentence in refused.value.message
    assert refused.value.status == 400


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_short_long_and_nested_lists_are_read_alike(datatype: str) -> None:
    largest = float(np.finfo(f"float{datatype[2:]}").max)
    few = [0.1, -2, 0, 1e-3, largest, -largest, 2049]
    many = parsed(datatype, few * 20)[: len(few)]
    nested = v2.parse(
        orjson.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [1, 7], "data": [few]}]}), ANY
    ).inputs["x"][0]
    for other in (many, nested):
        np.testing.assert_array_equal(parsed(datatype, few), other, strict=True)


def test_a_number_that_rounds_to_the_largest_is_none_too_large() -> None:
    assert parsed("FP32", [3.4028235e38])[0] == np.finfo(np.float32).max
    assert parsed("FP16", [65510.0])[0] == np.finfo(np.float16).max


def test_null_is_a_missing_value_only_where_the_contract_allows_it() -> None:
    allowing = Contract(inputs=(TensorSpec("x", "FP32", (-1,), allow_non_finite=True),), outputs=())
    assert np.isnan(parsed("FP32", [1, None], contract=allowing)[1])
    with pytest.raises(Refused, match="numbers and null only"):
        parsed("FP32", [1, {}, None], contract=allowing)


def test_allowed_non_finite_answers_are_null_in_json() -> None:
    body = answer(None, [TensorSpec("y", "FP32", (-1,))], [np.array([1, np.nan], np.float32)])
    assert orjson.loads(body)["outputs"][0]["data"] == [1, None]


def test_an_answer_is_flat_and_row_major_whatever_the_memory_order() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    output = orjson.loads(answer(None, [TensorSpec("y", "FP32", (-1, 2))], [turned]))["outputs"][0]
    assert (output["shape"], output["data"]) == ([3, 2], [0, 3, 1, 4, 2, 5])


def test_a_message_repeats_no_megabyte_of_what_came() -> None:
    with pytest.raises(Refused) as refused:
        v2.read({"inputs": [{"name": "n" * 10**6, "datatype": "d" * 10**6, "shape": [1], "data": [1]}]}, ANY)
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize("datatype", ["BYTES", "FP32", "INT8"])
@pytest.mark.parametrize("nested", [False, True])
def test_one_long_string_gives_no_room_to_the_others(datatype: str, nested: bool) -> None:
    words = ["a" * 2**20, *[""] * 2**14]
    tracemalloc.start()
    try:
        with pytest.raises(Refused):
            parsed(datatype, [[word] for word in words] if nested else words, [1])
        # Each as long as the longest, as numpy holds strings, they would take 64 GiB.
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sizes", [65, 4000, 300_000])
@pytest.mark.parametrize("size", [1, 2**62])
def test_more_dimensions_than_an_array_can_have_are_refused_at_once(sizes: int, size: int) -> None:
    started = time.monotonic()
    with pytest.raises(Refused, match=f"shape has {sizes} dimensions; at most 64 are taken"):
        parsed("FP32", [1], [size] * sizes)
    assert time.monotonic() - started < 5
    assert parsed("FP32", [1], [1] * 64).ndim == 64


def test_a_very_long_list_of_outputs_is_read_in_time_that_grows_with_it() -> None:
    outputs = [{"name": str(number), "parameters": {"binary_data": True}} for number in range(100_000)]
    started = time.monotonic()
    came = v2.read(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "outputs": outputs}, ANY
    )
    assert len(came.outputs) == 100_000
    assert time.monotonic() - started < 5
