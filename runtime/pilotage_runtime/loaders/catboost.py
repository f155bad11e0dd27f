"""CatBoost's own binary format, cbm: data that is parsed, not code that runs."""

from collections.abc import Sequence
from typing import Any

import catboost as cb
import numpy as np

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import tabular
from pilotage_runtime.loaders.base import LoadOptions, Tensors
from pilotage_runtime.tensors import DATATYPES, datatype_name

_KINDS = {"Poisson": "Exponent", "Tweedie": "Exponent", "RMSEWithUncertainty": "RMSEWithUncertainty"}
"""What CatBoostRegressor answers with by the loss it was trained on; for any other, the raw value."""
_SEVERAL = ("MultiLogloss", "MultiCrossEntropy")
"""The losses of a row that may be of many classes."""


class CatBoostModel:
    """A CatBoost model. With categorical features each feature is an input of its own, BYTES or FP32."""

    platform = "catboost_cbm"

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        self._model: Any = cb.CatBoost()
        try:
            self._model.load_model(blob=tabular.contents(file))
        except (cb.CatBoostError, TypeError, ValueError) as error:
            raise tabular.refused(file, "catboost", error) from error
        if self._model.get_text_feature_indices() or self._model.get_embedding_feature_indices():
            raise StartFailure(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                f"{file.path.name} takes texts or embeddings, which are not served; numbers and categories are",
            )
        self._names: list[str] = list(self._model.feature_names_)
        self._categories = frozenset(self._model.get_cat_feature_indices())
        classes = np.asarray(self._model.classes_)
        self._classes: list[Any] = classes.tolist()
        self._label = "BYTES" if classes.dtype.kind in "OU" else datatype_name(classes.dtype)
        loss = _loss(self._model)
        self._several = loss.startswith(_SEVERAL)
        self._kind = next((kind for start, kind in _KINDS.items() if loss.startswith(start)), "RawFormulaVal")
        self._threads = options.threads

    def contract(self) -> Contract:
        """Read features and classes from the model."""
        inputs = (
            tuple(
                TensorSpec(name, "BYTES", (-1,))
                if at in self._categories
                else TensorSpec(name, "FP32", (-1,), allow_non_finite=True)
                for at, name in enumerate(self._names)
            )
            if self._categories
            else (tabular.matrix(len(self._names), "FP32", missing=True),)
        )
        named = [] if self._names == [str(at) for at in range(len(self._names))] else self._names
        if self._classes:
            return tabular.classes_contract(
                inputs,
                named,
                "FP64",
                len(self._classes),
                label=self._label,
                labels=[str(label) for label in self._classes],
                several=self._several,
            )
        answer = self._predict(_zeros(inputs), self._kind)
        return tabular.numbers_contract(inputs, named, "FP64", answer.shape[1] if answer.ndim > 1 else 1)

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Predict classes, probabilities or numbers."""
        if not self._classes:
            return [self._predict(inputs, self._kind) for _ in outputs]
        return [
            self._labels(inputs) if name == tabular.LABEL else self._predict(inputs, "Probability")
            for name in outputs
        ]

    def close(self) -> None:
        """Free the model."""
        del self._model

    def _labels(self, inputs: Tensors) -> np.ndarray:
        labels = self._predict(inputs, "Class")
        return (labels if self._several else labels.reshape(-1)).astype(DATATYPES[self._label].dtype)

    def _predict(self, inputs: Tensors, kind: str) -> np.ndarray:
        rows = _rows(inputs, self._names) if self._categories else inputs[tabular.INPUT]
        return np.asarray(self._model.predict(rows, prediction_type=kind, thread_count=self._threads))


def _loss(model: Any) -> str:
    """Name the loss a model was trained on; nothing where it does not say, as a sum of models."""
    try:
        return str(model.get_all_params().get("loss_function", ""))
    except cb.CatBoostError:
        return ""


def _rows(inputs: Tensors, names: Sequence[str]) -> np.ndarray:
    rows = np.empty((len(inputs[names[0]]), len(names)), dtype=object)
    for at, name in enumerate(names):
        rows[:, at] = inputs[name]
    return rows


def _zeros(inputs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    return {
        spec.name: np.full([1, *spec.shape[1:]], "" if spec.datatype == "BYTES" else 0, dtype=spec.dtype)
        for spec in inputs
    }
