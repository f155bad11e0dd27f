"""TensorFlow's SavedModel through its `serving_default` signature.

A SavedModel is a graph, which TensorFlow runs without Python; but graphs can read and write files, so those
with such operators are refused before anything runs. (Keras' Lambda layers are Python, and in no SavedModel.)
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets; whatever matters comes as an exception
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import tabular
from pilotage_runtime.loaders.base import LoadOptions, Tensors
from pilotage_runtime.tensors import DATATYPES, datatype_name

_SIGNATURE = "serving_default"
# Operators of the graph that reach outside it. Restoring variables reads files too, below the model's folder.
_OUTSIDE = frozenset({
    "ReadFile", "WriteFile", "MatchingFiles", "PrintV2", "PyFunc", "PyFuncStateless", "EagerPyFunc", "LookupTableExport",
    "TFRecordDataset", "TFRecordReader", "TFRecordReaderV2", "TextLineDataset", "TextLineReader", "TextLineReaderV2",
    "FixedLengthRecordDataset", "FixedLengthRecordDatasetV2", "FixedLengthRecordReader", "WholeFileReader",
    "WholeFileReaderV2", "SaveDataset", "SaveDatasetV2", "LoadDataset", "DebugIdentity", "DebugIdentityV2",
    "DebugIdentityV3", "Save", "SaveSlices", "SqlDataset", "RpcClient", "RpcCall", "CollectiveReduce",
})  # fmt: skip


class TensorFlowModel:
    """The default signature of a SavedModel."""

    platform = "tensorflow_savedmodel"

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        _use_threads(options.threads)
        if options.device == "cuda" and not tf.config.list_physical_devices("GPU"):
            raise StartFailure(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                "device cuda was asked for, but TensorFlow sees no GPU here: use an image with the package "
                "tensorflow[and-cuda], or leave the device out",
            )
        try:
            saved = saved_model_pb2.SavedModel.FromString(file.path.read_bytes())
        except Exception as error:
            raise tabular.refused(file, "tensorflow", error) from error
        if outside := sorted(set(_operators(saved)) & _OUTSIDE):
            raise StartFailure(
                Stage.LOAD,
                Reason.INVALID_MODEL,
                f"{file.path.name} is not loaded: its graph reaches outside by {', '.join(outside)}",
            )
        try:
            self._model: Any = tf.saved_model.load(str(file.path.parent))
            signatures = self._model.signatures
        except Exception as error:
            raise tabular.refused(file, "tensorflow", error) from error
        if _SIGNATURE not in signatures:
            raise StartFailure(
                Stage.LOAD,
                Reason.INVALID_MODEL,
                f"{file.path.name} has no signature {_SIGNATURE}; it has {', '.join(signatures) or 'none'}: "
                "save it with tf.saved_model.save(model, folder, signatures=...), or model.export(folder) in Keras",
            )
        self._call: Any = signatures[_SIGNATURE]

    def contract(self) -> Contract:
        """Read inputs and outputs from the signature."""
        inputs: dict[str, Any] = self._call.structured_input_signature[1]
        return Contract(
            tuple(_spec(name, spec) for name, spec in sorted(inputs.items())),
            tuple(_spec(name, spec) for name, spec in sorted(self._call.structured_outputs.items())),
        )

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Call the signature; strings come back as text."""
        answer = self._call(**{name: tf.constant(array) for name, array in inputs.items()})
        return [_array(answer[name].numpy()) for name in outputs]

    def close(self) -> None:
        """Let go of graph and variables."""
        del self._call, self._model


def _use_threads(threads: int) -> None:
    """TensorFlow takes its number of threads once in a process, before it has computed anything."""
    with suppress(RuntimeError):  # something else in this process has computed already
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def _operators(saved: Any) -> Iterator[str]:
    for meta_graph in saved.meta_graphs:
        yield from (node.op for node in meta_graph.graph_def.node)
        for function in meta_graph.graph_def.library.function:
            yield from (node.op for node in function.node_def)


def _spec(name: str, spec: Any) -> TensorSpec:
    datatype = "BYTES" if spec.dtype == tf.string else datatype_name(np.dtype(spec.dtype.as_numpy_dtype))
    if datatype not in DATATYPES or spec.shape.rank is None:
        what = spec.dtype.name if datatype not in DATATYPES else "of a shape that may have any rank"
        raise StartFailure(
            Stage.LOAD, Reason.INVALID_MODEL, f"'{name}' is {what}, which the inference protocol cannot carry"
        )
    return TensorSpec(name, datatype, tuple(-1 if size is None else size for size in spec.shape))


def _array(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "OS":
        return value
    texts = [
        text.decode(errors="replace") if isinstance(text, bytes) else text for text in value.ravel().tolist()
    ]
    return np.array(texts, dtype=object).reshape(value.shape)
