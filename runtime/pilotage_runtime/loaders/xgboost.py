"""XGBoost's own formats, UBJSON and JSON: data that is parsed, not code that runs."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xgboost as xgb

from pilotage_runtime.contract import Contract
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import tabular, xgboost_document
from pilotage_runtime.loaders.base import LoadOptions, Tensors

_PROBABILITIES = frozenset({"binary:logistic", "multi:softprob"})


class XGBoostModel:
    """A booster. It answers as XGBClassifier and XGBRegressor do: classes are numbered from 0.

    Where training stopped early, the trees behind the best iteration are left out.
    """

    platform = "xgboost_xgboost"

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        if options.device == "cuda" and not xgb.build_info().get("USE_CUDA"):
            raise StartFailure(
                Stage.LOAD,
                Reason.LOAD_FAILED,
                "device cuda was asked for, but this xgboost is built for the CPU: use an image with the package "
                "xgboost in place of xgboost-cpu, or device cpu",
            )
        content = tabular.contents(file)
        try:
            xgboost_document.vet(content)
            self._booster = xgb.Booster()
            self._booster.load_model(bytearray(content))
            self._booster.set_param({"nthread": options.threads, "device": options.device})
            # The model's own, not the parameters of its training.
            learner = json.loads(self._booster.save_config())["learner"]
            self._columns = int(self._booster.num_features())
            self._linear = learner["gradient_booster"]["name"] == "gblinear"
            self._iterations = (0, 0) if self._linear else _iterations(self._booster)
        except (xgb.core.XGBoostError, ValueError, KeyError) as error:
            raise tabular.refused(file, "xgboost", error) from error
        self._objective = str(learner["objective"]["name"])
        self._threads = options.threads
        parameters = learner["learner_model_param"]
        self._classes = max(2, int(parameters["num_class"]))
        self._width = max(1, int(parameters.get("num_target", 1)))

    def contract(self) -> Contract:
        """Read the features from the booster, the outputs from its objective."""
        inputs = (tabular.matrix(self._columns, "FP32", missing=True),)
        names = tuple(self._booster.feature_names or ())
        if self._objective in _PROBABILITIES:
            several = self._width > 1
            count = self._width if several else self._classes
            return tabular.classes_contract(inputs, names, "FP32", count, several=several)
        return tabular.numbers_contract(inputs, names, "FP32", self._width)

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> list[Any]:
        """Predict in place: no DMatrix is built, but for linear boosters, which take nothing else."""
        rows = inputs[tabular.INPUT]
        # Names are checked where the request is; here the columns are already in order.
        answer: np.ndarray = (
            self._booster.predict(xgb.DMatrix(rows, nthread=self._threads), validate_features=False)
            if self._linear
            else self._booster.inplace_predict(
                rows, iteration_range=self._iterations, validate_features=False
            )
        )
        if self._objective not in _PROBABILITIES:
            return [answer for _ in outputs]
        if answer.ndim == 1:
            # As XGBClassifier does, for which exactly one half is the first class.
            both = tabular.both_classes(answer)
            return tabular.chosen(outputs, both)
        return tabular.chosen(outputs, answer, several=self._width > 1)

    def close(self) -> None:
        """Free the booster."""
        del self._booster


def _iterations(booster: xgb.Booster) -> tuple[int, int]:
    """Give the iterations that answer, from the first to before the last; (0, 0) is all of them."""
    best = booster.attr("best_iteration")
    if best is None:
        return 0, 0
    if not 0 <= int(best) < booster.num_boosted_rounds():
        raise ValueError(
            f"best_iteration is {best[:20]}, but there are {booster.num_boosted_rounds()} iterations"
        )
    return 0, int(best) + 1
