"""ONNX with BF16 inputs or outputs: onnxruntime's Python has no such arrays, but gives and takes their bits."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.loaders.base import Tensors
from pilotage_runtime.tensors import DATATYPES

TYPE = "tensor(bfloat16)"
_DTYPE = DATATYPES["BF16"].dtype
_ELEMENT_TYPE = 16  # TensorProto.BFLOAT16 in onnx.proto


def needed(session: ort.InferenceSession) -> bool:
    """Whether a model has any BF16; raise StartFailure where it also takes text, of which no bits can be given."""
    inputs = session.get_inputs()
    if all(argument.type != TYPE for argument in (*inputs, *session.get_outputs())):
        return False
    for argument in inputs:
        if argument.type == "tensor(string)":
            raise StartFailure(
                Stage.LOAD,
                Reason.INVALID_MODEL,
                f"the model has BF16 and its input '{argument.name}' is text, which onnxruntime's Python cannot give "
                "together; let the model cast its BF16 from and to FP32",
            )
    return True


def run(session: ort.InferenceSession, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
    """Infer once, with numpy's arrays of BF16 on both sides."""
    # onnxruntime reads the memory of these arrays, which therefore have to outlive the run.
    # (np.ascontiguousarray would make a list of one of a single number.)
    kept = {name: np.asarray(value, order="C") for name, value in inputs.items()}
    given = {name: _given(value) for name, value in kept.items()}
    answered = session.run_with_ort_values(list(outputs), given)
    return [_taken(value) for value in answered]


def _given(value: np.ndarray) -> ort.OrtValue:
    if value.dtype != _DTYPE:
        return ort.OrtValue.ortvalue_from_numpy(value)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value.view(np.uint16), _ELEMENT_TYPE)


def _taken(value: Any) -> np.ndarray:
    if value.data_type() != TYPE:
        return value.numpy()
    shape = tuple(value.shape())
    size = int(np.prod(shape))
    if size == 0:
        return np.empty(shape, _DTYPE)
    bits = ctypes.string_at(value.data_ptr(), size * _DTYPE.itemsize)
    return np.frombuffer(bits, _DTYPE).reshape(shape)
