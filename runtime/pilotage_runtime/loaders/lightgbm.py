"""LightGBM's own text format: data that is parsed, not code that runs."""

import re
from collections.abc import Sequence
from typing import Any

import lightgbm as lgb
import numpy as np

from pilotage_runtime.contract import Contract
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import lightgbm_text, tabular
from pilotage_runtime.loaders.base import LoadOptions, Tensors

_UNNAMED = re.compile(r"Column_\d+")
_PROBABILITIES = frozenset({"binary", "multiclass", "multiclassova"})


class LightGBMModel:
    """A booster. It answers as LGBMClassifier and LGBMRegressor do: classes are numbered from 0."""

    platform = "lightgbm_lightgbm"

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        try:
            text = tabular.contents(file).decode()
            lightgbm_text.vet(text)
            self._booster = lgb.Booster(model_str=text)
        except (lgb.basic.LightGBMError, UnicodeDecodeError, ValueError, KeyError) as error:
            raise tabular.refused(file, "lightgbm", error) from error
        head = text.partition("\nTree=")[0]
        objective = re.search(r"^objective=(\S+)", head, re.MULTILINE)
        self._objective = objective[1] if objective else "none"
        self._threads = options.threads

    def contract(self) -> Contract:
        """Read the features from the booster, the outputs from its objective."""
        inputs = (tabular.matrix(self._booster.num_feature(), "FP64", missing=True),)
        names = self._booster.feature_name()
        named = () if all(_UNNAMED.fullmatch(name) for name in names) else names
        width = self._booster.num_model_per_iteration()
        if self._objective in _PROBABILITIES:
            return tabular.classes_contract(inputs, named, "FP64", max(2, width))
        return tabular.numbers_contract(inputs, named, "FP64", width)

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Predict with the threads that this worker may use."""
        answer = self._booster.predict(inputs[tabular.INPUT], num_threads=self._threads)
        assert isinstance(answer, np.ndarray), "of a matrix the answer is one"
        if self._objective not in _PROBABILITIES:
            return [answer for _ in outputs]
        return tabular.chosen(outputs, tabular.both_classes(answer) if answer.ndim == 1 else answer)

    def close(self) -> None:
        """Free the booster."""
        del self._booster
