"""An estimator of scikit-learn, or one with the same methods, however it was loaded.

Numbers come as one matrix `X`. An estimator that was trained on a table of mixed columns takes an input for
each of them once contract.json states these inputs: only that file knows their types.
"""

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pilotage_runtime import contract_file
from pilotage_runtime.contract import Contract, TensorSpec, complete
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import tabular
from pilotage_runtime.loaders.base import LoadOptions, Tensors
from pilotage_runtime.tensors import DATATYPES, datatype_name


class EstimatorModel:
    """An object with `predict`, and perhaps `predict_proba` and `classes_`."""

    def __init__(self, estimator: Any, platform: str, file: ModelFile, options: LoadOptions) -> None:
        self.platform = platform
        self._estimator = estimator
        self._names = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
        self._pandas: ModuleType | None = None
        _serve_with(estimator, options.threads)
        # The names of columns are the contract's business; scikit-learn would warn of each request.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        inputs = self._stated_inputs(file) or (
            tabular.matrix(int(getattr(estimator, "n_features_in_", -1)), "FP64", missing=False),
        )
        self._contract = self._describe(inputs, file)

    def contract(self) -> Contract:
        """Read features and classes from the estimator."""
        return self._contract

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Call the method that each output stands for; in the contract's type, which follows no input."""
        rows, specs = self._rows(inputs), self._contract.output_by_name
        return [self._answer(rows, name).astype(specs[name].dtype, copy=False) for name in outputs]

    def close(self) -> None:
        """Let go of the estimator."""
        del self._estimator

    def _answer(self, rows: Any, name: str) -> np.ndarray:
        if name == tabular.PROBABILITIES:
            return np.asarray(self._estimator.predict_proba(rows))
        return np.asarray(self._estimator.predict(rows))

    def _rows(self, inputs: Tensors) -> Any:
        if self._pandas is None:
            return inputs[tabular.INPUT]
        columns = {name: inputs[name].reshape(-1) for name in self._names or inputs}
        return self._pandas.DataFrame(columns, copy=False)

    def _stated_inputs(self, file: ModelFile) -> tuple[TensorSpec, ...]:
        """The inputs of contract.json, where it names columns or the matrix's type."""
        stated = contract_file.read(file.folder)
        if stated is None or not stated.inputs:
            return ()
        names = [tensor.name for tensor in stated.inputs]
        if names == [tabular.INPUT]:
            datatype, shape = stated.inputs[0].datatype, stated.inputs[0].shape
            columns = int(getattr(self._estimator, "n_features_in_", shape[-1] if shape else -1))
            return (tabular.matrix(columns, datatype or "FP64", missing=False),)
        if self._names and set(names) != set(self._names):
            raise contract_file.invalid(
                f"inputs: {', '.join(names)} are stated, but the model was trained on {', '.join(self._names)}"
            )
        try:
            import pandas as pd  # noqa: PLC0415 - only a table of named columns needs it
        except ImportError as error:
            raise StartFailure(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                f"inputs that are columns of a table need pandas, which is missing ({error}): "
                "pip install 'pilotage[sklearn]'",
            ) from error
        self._pandas = pd
        specs: list[TensorSpec] = []
        for tensor in stated.inputs:
            if tensor.datatype is None or tensor.shape not in ([-1], [-1, 1]):
                raise contract_file.invalid(
                    f"inputs.{tensor.name}: a column needs a datatype, and shape [-1] or [-1, 1]"
                )
            specs.append(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)))
        return tuple(specs)

    def _describe(self, inputs: tuple[TensorSpec, ...], file: ModelFile) -> Contract:
        classes = getattr(self._estimator, "classes_", None)
        answer = None
        try:  # one row of zeros, to learn the answer's form: it may be outside the domain
            answer = self._answer(self._rows(_zeros(inputs)), tabular.PREDICTION)
        except Exception as error:
            # So scikit-learn says that it looks for columns by their names, which a matrix has not.
            if self._pandas is None and self._names and "only supported for dataframes" in str(error):
                raise _takes_a_table(self._names) from error
        if isinstance(classes, np.ndarray) and classes.ndim == 1 and _datatype(classes) in DATATYPES:
            several = answer is not None and answer.ndim == 2
            if not hasattr(self._estimator, "predict_proba"):
                shape = (-1, len(classes)) if several else (-1,)
                label = TensorSpec(tabular.LABEL, _datatype(classes), shape)
                return Contract(inputs, (label,), self._names)
            return tabular.classes_contract(
                inputs,
                self._names,
                "FP64",
                len(classes),
                label=_datatype(classes),
                labels=[str(label) for label in classes.tolist()],
                several=several,
            )
        if answer is not None and _datatype(answer) in DATATYPES:
            output = TensorSpec(tabular.PREDICTION, _datatype(answer), (-1, *answer.shape[1:]))
            return Contract(inputs, (output,), self._names)
        stated = complete(file.folder, "this model")
        return Contract(inputs, stated.outputs, self._names)


def _takes_a_table(names: Sequence[str]) -> StartFailure:
    inputs = [{"name": name, "datatype": "FP64", "shape": [-1]} for name in names]
    return StartFailure(
        Stage.LOAD,
        Reason.INVALID_MODEL,
        f"the model takes a table, whose columns' types only you know: write them into {contract_file.CONTRACT_FILE} beside "
        f"it, BYTES for text, such as {json.dumps({'inputs': inputs})}",
    )


def _serve_with(estimator: Any, threads: int) -> None:
    """Keep an estimator to one thread a request: requests are what runs in parallel.

    `n_jobs` of the training (often -1, all CPUs of the node) costs milliseconds a request in threads.
    """
    threadpool_limits(limits=threads)
    with suppress(Exception):  # what only looks like an estimator need not have parameters
        jobs = [name for name in estimator.get_params(deep=True) if name.rpartition("__")[2] == "n_jobs"]
        estimator.set_params(**dict.fromkeys(jobs, 1))


def _zeros(inputs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    return {
        spec.name: np.full(
            [1 if size == -1 else size for size in spec.shape],
            "" if spec.datatype == "BYTES" else 0,
            dtype=spec.dtype,
        )
        for spec in inputs
    }


def _datatype(values: np.ndarray) -> str:
    if values.dtype.kind == "O":
        return "BYTES" if all(isinstance(value, str) for value in values.flat) else "object"
    return datatype_name(values.dtype)
