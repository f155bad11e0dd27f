"""Requests that are nearly right: each gives tensors that fit or a refusal, never anything else.

`PILOTAGE_SEED=N` tries others than the usual ones; `python -m fuzz` goes further, with atheris.
"""

import asyncio
import os
import struct
from typing import Any

import numpy as np
import orjson
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.protocol import v2
from pilotage_runtime.tensors import DATATYPES
from tests.runtime.scripted import serving
from tests.runtime.test_grpc import METHODS

SEED = int(os.environ.get("PILOTAGE_SEED", "1"))
EXAMPLES = 300
_many = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
_numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, -1, 127, 128, 255, 256, 65504, 65520, 3.4028235e38, 3.5e38, 2**53 + 1]),
)
_leaves = st.one_of(_numbers, st.booleans(), st.none(), st.text(max_size=4), st.just({}))
_uniform = st.one_of(*(st.lists(kind, max_size=6) for kind in (_numbers, st.booleans(), st.text(max_size=4))))
_data = st.one_of(_uniform, st.recursive(_leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=8))
_sizes = st.one_of(st.integers(0, 7), st.sampled_from([-1, 2**31, 2**62, 1.5, True, "1", None]))
_shapes = st.one_of(st.lists(_sizes, max_size=4), st.just([1] * 65), _leaves)


@st.composite
def fitting(draw: st.DrawFn) -> dict[str, Any]:
    """A tensor whose shape is that of its data."""
    data = draw(_uniform)
    return {"name": "x", "datatype": draw(st.sampled_from([*DATATYPES])), "shape": [len(data)], "data": data}


_tensors = st.one_of(
    fitting(),
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.one_of(st.sampled_from(["x", "y"]), _leaves),
            "datatype": st.one_of(st.sampled_from([*DATATYPES]), _leaves),
            "shape": _shapes,
            "data": _data,
            "parameters": st.one_of(st.fixed_dictionaries({"binary_data_size": _leaves}), _leaves),
        },
    ),
)
_outputs = st.lists(
    st.one_of(
        _leaves,
        st.fixed_dictionaries(
            {"name": st.sampled_from(["x", "y", "z"])},
            optional={"parameters": st.one_of(_leaves, st.fixed_dictionaries({"binary_data": _leaves}))},
        ),
    ),
    max_size=2,
)
_documents = st.one_of(
    _leaves,
    st.fixed_dictionaries(
        {"inputs": st.one_of(st.lists(_tensors, max_size=2), _leaves)},
        optional={
            "id": _leaves,
            "outputs": st.one_of(_outputs, _leaves),
            "parameters": st.one_of(
                _leaves,
                st.dictionaries(st.sampled_from(["timeout", "binary_data_output", "a"]), _leaves, max_size=3),
            ),
        },
    ),
)


@seed(SEED)
@_many
@given(_documents)
def test_a_document_gives_tensors_that_fit_or_a_refusal(document: Any) -> None:
    TARGETS["document"](orjson.dumps(document))


@seed(SEED)
@_many
@given(
    st.sampled_from([*DATATYPES]),
    st.lists(st.integers(0, 3), max_size=3),
    st.binary(max_size=40),
    st.integers(-2, 2),
)
def test_a_binary_body_gives_tensors_that_fit_or_a_refusal(
    datatype: str, shape: list[int], raw: bytes, lie: int
) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    text = orjson.dumps({"inputs": [tensor]})
    TARGETS["tail"](struct.pack("<H", len(text) + lie) + text + raw)


@seed(SEED)
@_many
@given(st.data())
def test_a_message_gives_tensors_that_fit_or_a_refusal(data: st.DataObject) -> None:
    message = METHODS["ModelInfer"].request(model_name="m")
    for name in data.draw(st.lists(st.sampled_from(["x", "y"]), max_size=2)):
        tensor = message.inputs.add(
            name=name,
            datatype=data.draw(st.sampled_from([*DATATYPES, "", "FP33"])),
            shape=data.draw(st.lists(st.integers(-1, 3), max_size=3)),
        )
        if data.draw(st.booleans()):
            tensor.contents.int_contents.extend(data.draw(st.lists(st.integers(-300, 300), max_size=4)))
        if data.draw(st.booleans()):
            tensor.contents.bytes_contents.extend(data.draw(st.lists(st.binary(max_size=3), max_size=4)))
        if data.draw(st.booleans()):
            tensor.contents.fp32_contents.extend(data.draw(st.lists(st.floats(width=32), max_size=4)))
    message.raw_input_contents.extend(data.draw(st.lists(st.binary(max_size=16), max_size=2)))
    TARGETS["message"](message.SerializeToString())


@seed(SEED)
@_many
@given(
    st.dictionaries(
        st.sampled_from(["age", "city", "image", "member", "other", "parameters", "id"]), _data, max_size=7
    ),
    st.booleans(),
)
def test_rows_give_tensors_that_fit_or_a_refusal(row: dict[str, Any], good: bool) -> None:
    if good:
        row = {"age": 1, "city": "Ulm", "image": [[1], [2]], "member": True, **row}
    TARGETS["row"](orjson.dumps(row))
    TARGETS["row"](orjson.dumps([row, row]))


@seed(SEED)
@_many
@given(
    st.sampled_from([name for name in DATATYPES if name != "BYTES"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.data(),
)
def test_what_is_answered_is_read_back_equal(
    datatype: str, rows: int, width: int, data: st.DataObject
) -> None:
    dtype = DATATYPES[datatype].dtype
    size = rows * width * dtype.itemsize
    value = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    value = value % 2 == 1 if datatype == "BOOL" else value.view(dtype)
    value = value.reshape(rows, width)
    finite = np.isfinite(value.astype(np.float64)) if dtype.kind in "fV" else np.ones(value.shape, bool)
    spec = TensorSpec("x", datatype, (-1, width), allow_non_finite=True)
    for binary in (True, False):
        body, length = v2.answer("m", "1", v2.InferRequest(None, {}, (), binary=binary), [spec], [value])
        whole = body if isinstance(body, bytes) else b"".join(body)
        text = whole[:length].replace(b'"outputs"', b'"inputs"')
        came = v2.parse(
            text + (whole[length:] if length else b""), Contract((spec,), ()), length and len(text)
        ).inputs["x"]
        assert came.dtype == dtype
        assert came.shape == value.shape
        if binary:
            assert came.tobytes() == value.tobytes()
        else:  # JSON has no NaN, and no sign of zero in integers
            assert (came[finite] == value[finite]).all()


@seed(SEED)
@settings(_many, max_examples=15)
@given(st.lists(_documents, min_size=10, max_size=20))
def test_a_server_refuses_what_does_not_fit_and_answers_the_next(documents: list[Any]) -> None:
    async def talk() -> None:
        async with serving() as world:
            caller = await world.caller()
            for document in documents:
                for path in ("/v2/models/m/infer", "/v2/models/m/generate", "/models/m/predict", "/predict"):
                    caller.send(orjson.dumps(document), path)
                    answer = await caller.answer()
                    assert answer.status in (200, 400, 501), (document, answer)
                    assert answer.status == 200 or answer.error
                assert (await caller.infer(1)).status == 200
            assert world.count(500) == world.in_flight == 0

    asyncio.run(talk())
