"""The readers of messages and files, each with what it may do to any bytes at all."""

import contextlib
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from fuzz import http
from pilotage_runtime import content, sealed
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.features import Feature
from pilotage_runtime.loaders import onnx_file, onnx_zip_map
from pilotage_runtime.protocol import messages, rows, v2, v2_grpc
from pilotage_runtime.services import generate
from pilotage_runtime.tensors import DATATYPES

_ANY = Contract((), ())
_NULLS = Contract((TensorSpec("x", "FP32", (-1,), allow_non_finite=True),), ())
_ROWS = Contract(
    (
        TensorSpec("age", "INT64", (-1, 1)),
        TensorSpec("city", "BYTES", (-1,)),
        TensorSpec("image", "FP32", (-1, 2, -1)),
        TensorSpec("member", "BOOL", (-1,)),
    ),
    (),
    features=(Feature("city", categories=("Bern", "Ulm")),),
)
_METHODS = messages.load()


def document(data: bytes) -> None:
    """V2's JSON, and answers that carry what it held."""
    for contract in (_ANY, _NULLS):
        with contextlib.suppress(Refused):
            request = v2.parse(data, contract)
            _fit(request)
            _carried(request, contract)


def tail(data: bytes) -> None:
    """JSON with binary tensors behind it; the first two bytes say where it ends."""
    with contextlib.suppress(Refused):
        request = v2.parse(data[2:], _ANY, int.from_bytes(data[:2], "little"))
        _fit(request)
        _carried(request, _ANY)


def message(data: bytes) -> None:
    """A message of gRPC, and an answer that carries what it held."""
    with contextlib.suppress(Refused, DecodeError):
        request = v2_grpc.read(_METHODS["ModelInfer"].read(data))
        _fit(request)
        specs = [TensorSpec(name, _datatype(array), array.shape) for name, array in request.inputs.items()]
        answer = v2_grpc.write(_METHODS["ModelInfer"].response(), request, specs, [*request.inputs.values()])
        _METHODS["ModelInfer"].write(answer)


def row(data: bytes) -> None:
    """Rows of /predict, and inputs by name of /generate."""
    with contextlib.suppress(orjson.JSONDecodeError):
        came = orjson.loads(data)
        with contextlib.suppress(Refused):
            inputs, _ = rows.read(came, _ROWS)
            _fit(v2.InferRequest(None, inputs, ()))
        with contextlib.suppress(Refused):
            _fit(generate.read(came, _ROWS))


def onnx(data: bytes) -> None:
    """An ONNX file, which is vetted and rewritten without being loaded."""
    with contextlib.suppress(onnx_file.MalformedOnnxError):
        onnx_file.locations_in(data)
        stripped = onnx_zip_map.stripped(data)
        if stripped is not None:
            onnx_file.locations_in(stripped.model)


def format_(data: bytes) -> None:
    """A file of whatever format."""
    with contextlib.suppress(content.BrokenContentError):
        content.recognise(content.Content(Path("model"), data))


def envelope(data: bytes) -> None:
    """A file that says that it is encrypted."""
    with tempfile.TemporaryDirectory() as folder:
        keys, path = Path(folder) / "keys", Path(folder) / "model"
        keys.mkdir()
        (keys / "key").write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
        path.write_bytes(data)
        if sealed.is_sealed(data[: sealed.HEAD_BYTES]):
            with contextlib.suppress(StartFailure):
                sealed.open_sealed(path, keys)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "document": document,
    "tail": tail,
    "message": message,
    "row": row,
    "onnx": onnx,
    "format": format_,
    "envelope": envelope,
    "http": http.connection,
}


def _fit(request: v2.InferRequest) -> None:
    assert request.inputs, "a request without inputs"
    for name, array in request.inputs.items():
        assert array.dtype == DATATYPES[_datatype(array)].dtype, name
        assert array.size == prod(array.shape) > 0, name
        if array.dtype == object:
            assert all(type(value) is str for value in array.flat), name
        else:
            array.sum()  # every element can be read


def _carried(request: v2.InferRequest, contract: Contract) -> None:
    """Answer with the inputs, and read the answer."""
    specs = [TensorSpec(name, _datatype(array), array.shape) for name, array in request.inputs.items()]
    body, length = v2.answer("m", "1", request, specs, [*request.inputs.values()])
    whole: Any = body if isinstance(body, bytes) else b"".join(body)
    answer = orjson.loads(whole[:length])
    read = v2.parse(
        orjson.dumps({"inputs": answer["outputs"]}) + (whole[length:] if length else b""),
        _NULLS if any(array.dtype.kind in "fV" for array in request.inputs.values()) else contract,
        None if length is None else len(orjson.dumps({"inputs": answer["outputs"]})),
    )
    for name, array in request.inputs.items():
        assert read.inputs[name].shape == array.shape, name
        assert read.inputs[name].dtype == array.dtype, name


def _datatype(array: Any) -> str:
    return next(name for name, datatype in DATATYPES.items() if datatype.dtype == array.dtype)
