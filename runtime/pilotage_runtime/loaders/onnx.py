"""ONNX through onnxruntime."""

import functools
import os
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

# Read when the library is loaded: else it reports model names, hashes and a device's id to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import onnx_bfloat16, onnx_file, onnx_zip_map
from pilotage_runtime.loaders.base import LoadOptions, Tensors

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    "tensor(float16)": "FP16",
    onnx_bfloat16.TYPE: "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{
        f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
_ZIP_MAPS = {
    "seq(map(int64,tensor(float)))": "FP32",
    "seq(map(string,tensor(float)))": "FP32",
}
_FATAL_ONLY = 4
_UNKNOWN_OPERATOR = re.compile(r"Fatal error: ([\w.-]*):(\w+)\(-?\d+\) is not a registered function/op")


class OnnxModel:
    """One inference session.

    A ZipMap output (a list of {class: probability}, scikit-learn converters' default) is served as a
    probability tensor: the ZipMap is taken off before the session is made. Where the file is too large for
    that, it stays, and its classes are learnt from the warm-up's first answer.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        if options.precision != "float32":
            raise StartFailure(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                f"precision {options.precision} was asked for, but an ONNX model has the precision that it was "
                "converted with; convert it: onnxconverter_common.float16.convert_float_to_float16(model)",
            )
        _refuse_two_libraries()
        providers = _providers(options)
        bare = _without_zip_maps(file)
        self._labels = bare.labels if bare else {}
        try:
            self._session = ort.InferenceSession(
                bare.model if bare else file.content or str(file.path),
                _session_options(options.threads),
                providers=providers,
            )
        except Exception as error:
            if unknown := _UNKNOWN_OPERATOR.search(str(error)):
                raise StartFailure(
                    Stage.LOAD,
                    Reason.INVALID_MODEL,
                    f"{file.path.name} uses the operator {unknown[2]} of the domain {unknown[1] or 'ai.onnx'}, which onnxruntime "
                    "does not have; libraries of custom operators are code and are not loaded",
                ) from error
            reason = Reason.INVALID_MODEL if "INVALID" in str(error) else Reason.LOAD_FAILED
            raise StartFailure(
                Stage.LOAD, reason, f"onnxruntime refuses {file.path.name}: {error}"
            ) from error
        if providers[0] not in self._session.get_providers():
            # onnxruntime itself goes on with the CPU and says so to nobody.
            raise StartFailure(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                f"device cuda was asked for, but onnxruntime cannot start {providers[0]} here: no GPU is given to this "
                "container, or its driver or CUDA libraries do not fit; see the node's driver, or use device cpu",
            )
        self._zip_maps = frozenset(
            output.name for output in self._session.get_outputs() if output.type in _ZIP_MAPS
        )
        self._classes: dict[str, list[Any]] = {}
        self._bfloat16 = onnx_bfloat16.needed(self._session)

    def contract(self) -> Contract:
        """Read inputs and outputs from the session."""
        return Contract(
            inputs=tuple(_spec(argument) for argument in self._session.get_inputs()),
            outputs=tuple(
                self._zip_map_spec(argument)
                if argument.name in self._zip_maps
                else _spec(argument, self._labels.get(argument.name, ()))
                for argument in self._session.get_outputs()
            ),
        )

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Infer once and give tensors only."""
        if self._bfloat16:
            return onnx_bfloat16.run(self._session, inputs, outputs)
        values: list[Any] = self._session.run(outputs, inputs)  # pyright: ignore[reportAssignmentType]
        if self._zip_maps:
            for at, name in enumerate(outputs):
                if name in self._zip_maps:
                    values[at] = self._probabilities(name, values[at])
        return values

    def close(self) -> None:
        """Free the session's memory."""
        del self._session

    def _probabilities(self, name: str, rows: list[dict[Any, float]]) -> np.ndarray:
        classes = self._classes.get(name)
        if classes is None:
            classes = self._classes[name] = list(rows[0])
        return np.array([[row[label] for label in classes] for row in rows], dtype=np.float32)

    def _zip_map_spec(self, argument: Any) -> TensorSpec:
        classes = self._classes.get(argument.name)
        return TensorSpec(
            name=argument.name,
            datatype=_ZIP_MAPS[argument.type],
            shape=(-1, len(classes) if classes else -1),
            labels=tuple(str(label) for label in classes or ()),
        )


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads eat the very CPU quota that they wait for.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY  # whatever matters comes as an exception
    return options


def _providers(options: LoadOptions) -> list[str]:
    if options.device == "cpu":
        return ["CPUExecutionProvider"]
    available = ort.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise StartFailure(
            Stage.LOAD,
            Reason.LOAD_FAILED,
            "device cuda was asked for, but this onnxruntime cannot use a GPU (it has "
            f"{', '.join(available)}): use an image with pilotage[runtime-gpu], or device cpu",
        )
    ort.preload_dlls()  # from NVIDIA's packages, where CUDA is not installed on the system
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _refuse_two_libraries() -> None:
    """Refuse the module that two packages have written: which of them runs is chance."""
    if all(_installed(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        raise StartFailure(
            Stage.LOAD,
            Reason.LOAD_FAILED,
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then install "
            "pilotage[runtime] or pilotage[runtime-gpu]",
        )


@functools.cache
def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _without_zip_maps(file: ModelFile) -> onnx_zip_map.Stripped | None:
    try:
        if file.content is not None:
            return onnx_zip_map.stripped(file.content)
        if file.path.stat().st_size > onnx_zip_map.MOST_BYTES:
            return None
        model = file.path.read_bytes()
        # A model that lies in memory has no folder from which to take external weights.
        return None if onnx_file.locations_in(model) else onnx_zip_map.stripped(model)
    except onnx_file.MalformedOnnxError as error:
        raise StartFailure(Stage.LOAD, Reason.INVALID_MODEL, f"{file.path.name}: {error}") from error


def _spec(argument: Any, labels: tuple[str, ...] = ()) -> TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        raise StartFailure(
            Stage.LOAD,
            Reason.INVALID_MODEL,
            f"'{argument.name}' is {argument.type}, which the inference protocol cannot carry; "
            f"served are {', '.join(sorted(_DATATYPES))} and ZipMap outputs",
        )
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in argument.shape)
    symbols = tuple(dim if isinstance(dim, str) else None for dim in argument.shape)
    return TensorSpec(argument.name, datatype, shape, symbols, labels)
