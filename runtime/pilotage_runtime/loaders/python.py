"""A model in Python: a folder whose `model.py` holds a class.

    class Model:
        def load(self, folder): ...            # optional: a pathlib.Path; read what lies beside model.py
        def preprocess(self, inputs): ...      # optional: what it returns goes to predict
        def predict(self, inputs): ...         # {name: numpy array}, to {name: array}, an array, or a tuple
        def postprocess(self, outputs): ...    # optional: what predict returned, or each piece that it yielded

`predict` that yields makes a stream, and may take the request's `parameters` as second argument. contract.json
says which tensors come and go. One call runs at a time in each worker (of a stream, one step), unless the class
says `thread_safe = True`. The file is code, so `trust` is asked before it is imported.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy as np

from pilotage_runtime.contract import Contract, TensorSpec, complete
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import CLASS_FILE, ModelFile
from pilotage_runtime.loaders import trust
from pilotage_runtime.loaders.base import LoadOptions, Model, Tensors

_NAME = "Model"
_END = object()


def load(file: ModelFile, options: LoadOptions) -> Model:
    """Import the class, make one and let it load."""
    trust.require(file, options)
    contract = complete(file.folder, CLASS_FILE)
    try:
        instance = _class(_imported(file))()
        if hasattr(instance, "load"):
            instance.load(file.path.parent)
    except StartFailure:
        raise
    except BaseException as error:  # its code may raise anything, SystemExit included
        text = " ".join(str(error).split())[:500]
        raise StartFailure(
            Stage.LOAD, Reason.LOAD_FAILED, f"{CLASS_FILE} failed at load: {type(error).__name__}: {text}"
        ) from error
    streams = inspect.isgeneratorfunction(instance.predict)
    return _StreamingPythonModel(instance, contract) if streams else _PythonModel(instance, contract)


class _PythonModel:
    """An object of the class."""

    platform = "python_class"

    def __init__(self, instance: Any, contract: Contract) -> None:
        self._instance = instance
        self._contract = contract
        safe = getattr(instance, "thread_safe", False)
        self._turn: AbstractContextManager[Any] = contextlib.nullcontext() if safe else threading.Lock()
        self._takes_parameters = len(inspect.signature(instance.predict).parameters) > 1

    def contract(self) -> Contract:
        """Give what contract.json says."""
        return self._contract

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Call the class' methods one after the other."""
        with self._turn:
            named = self._named(self._predicted(inputs, {}))
        return [named[name] for name in outputs]

    def close(self) -> None:
        """Let go of the object."""
        del self._instance

    def _predicted(self, inputs: Tensors, parameters: Mapping[str, Any]) -> Any:
        # Its own: what it changes in place may be the request's bytes, which cannot be, or what is logged of it.
        own = {name: array.copy() for name, array in inputs.items()}
        prepare = getattr(self._instance, "preprocess", None)
        prepared = prepare(own) if prepare else own
        if self._takes_parameters:
            return self._instance.predict(prepared, parameters)
        return self._instance.predict(prepared)

    def _named(self, answer: Any) -> dict[str, np.ndarray]:
        """Take what the class answered as the contract's outputs."""
        finish = getattr(self._instance, "postprocess", None)
        finished = finish(answer) if finish else answer
        specs = self._contract.outputs
        if not isinstance(finished, Mapping):
            values = finished if isinstance(finished, tuple) else (finished,)
            if len(values) != len(specs):
                raise ValueError(f"{len(values)} outputs came, {len(specs)} are in the contract")
            finished = dict(zip((spec.name for spec in specs), values, strict=True))
        if missing := [spec.name for spec in specs if spec.name not in finished]:
            raise ValueError(f"output {', '.join(missing)} is missing; came: {', '.join(map(str, finished))}")
        return {spec.name: _array(spec, finished[spec.name]) for spec in specs}


class _StreamingPythonModel(_PythonModel):
    """An object whose `predict` yields."""

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Answer with all pieces as one, joined along the first dimension."""
        pieces = list(self.stream(inputs, {}))
        if not pieces:
            raise ValueError("the stream ended without a piece")
        return [np.concatenate([piece[name] for piece in pieces]) for name in outputs]

    def stream(self, inputs: Tensors, parameters: Mapping[str, Any]) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the outputs of each piece; closing this closes the class' own generator."""
        with self._turn:
            pieces = self._predicted(inputs, parameters)
        try:
            while True:
                with self._turn:
                    piece = next(pieces, _END)
                    if piece is _END:
                        return
                    named = self._named(piece)
                yield named
        finally:
            with self._turn:
                pieces.close()


def _imported(file: ModelFile) -> ModuleType:
    # A compiled copy beside the file would change the folder's digest.
    sys.dont_write_bytecode = True
    folder = str(file.path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that no file of the model takes the place of a library
    name = f"pilotage_model_{hashlib.sha256(folder.encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file.path)
    assert spec is not None, "it is a file ending in .py"
    assert spec.loader is not None, "as above"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as pickles and dataclasses of the file expect
    spec.loader.exec_module(module)
    return module


def _class(module: ModuleType) -> Any:
    """Choose the class: the one that can predict, or among several the one called Model."""
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "predict")
    }
    if _NAME in found:
        return found[_NAME]
    if len(found) != 1:
        came = ", ".join(sorted(found)) or "none"
        raise StartFailure(
            Stage.LOAD,
            Reason.INVALID_MODEL,
            f"{CLASS_FILE} should hold one class with a method predict, or one called {_NAME}; it holds {came}",
        )
    return next(iter(found.values()))


def _array(spec: TensorSpec, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if spec.datatype == "BYTES":
        return array.astype(object)
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise ValueError(f"output '{spec.name}' should be {spec.datatype}, but is {array.dtype}")
    return array.astype(spec.dtype, copy=False)
