"""A model's contract: its inputs and outputs as read from the model, refined by `contract.json` beside it.

    {"inputs":  [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}],
     "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3],
                  "parameters": {"labels": ["setosa", "versicolor", "virginica"]}}],
     "features": [{"name": "sepal length", "minimum": 0, "maximum": 20, "unit": "cm"}, …],
     "sample": {"request": {"inputs": [...]}, "response": {"outputs": [...]}}}

Every part is optional where the model speaks for itself; `complete` is for models that do not. What MLflow
wrote beside the model counts where contract.json is silent. `parameters.allow_non_finite` permits NaN and
infinities in that tensor (JSON carries them as null). Values outside a feature's range are refused
(`ranges.check`). The sample is inferred before the model is ready; with a response it must match.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pilotage_runtime import contract_file, mlflow, ranges
from pilotage_runtime.contract_file import CONTRACT_FILE, ContractFile, FeatureEntry, Tensor, invalid
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.features import Feature
from pilotage_runtime.tensors import DATATYPES

__all__ = ["CONTRACT_FILE", "Contract", "TensorSpec", "complete", "refine"]

# What converters and loaders call the tensor of predicted classes.
LABEL_NAMES = frozenset({"label", "labels", "output_label", "class", "classes", "predicted_label"})
# What converters call the tensor of class probabilities.
PROBABILITY_NAMES = frozenset({"probabilities", "output_probability", "probability", "probs"})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: -1 in the shape is a dimension that the request chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    symbols: tuple[str | None, ...] = ()  # the model's names of its variable dimensions
    labels: tuple[str, ...] = ()
    allow_non_finite: bool = False

    @property
    def dtype(self) -> np.dtype:
        """The numpy type of this tensor."""
        return DATATYPES[self.datatype].dtype

    def metadata(self) -> dict[str, Any]:
        """The tensor as model metadata shows it."""
        entry: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        parameters: dict[str, Any] = {}
        if self.labels:
            parameters["labels"] = list(self.labels)
        if self.allow_non_finite:
            parameters["allow_non_finite"] = True
        if parameters:
            entry["parameters"] = parameters
        return entry


@dataclass(frozen=True, slots=True)
class Contract:
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feature_names: tuple[str, ...] = ()
    sample_request: dict[str, Any] | None = None
    sample_response: dict[str, Any] | None = None
    features: tuple[Feature, ...] = ()
    input_by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)
    output_by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)
    bounded_columns: tuple[ranges.Columns, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_by_name", {spec.name: spec for spec in self.inputs})
        object.__setattr__(self, "output_by_name", {spec.name: spec for spec in self.outputs})
        object.__setattr__(self, "bounded_columns", ranges.columns_of(self.inputs, self.features))
        if self.features:
            object.__setattr__(self, "feature_names", tuple(feature.name for feature in self.features))

    @property
    def probability(self) -> TensorSpec | None:
        """The output that holds one probability a class, where a row is of one class and there is such an output."""
        if any(spec.name in LABEL_NAMES and spec.shape[1:] not in ((), (1,)) for spec in self.outputs):
            return None
        for spec in self.outputs:
            named = spec.name in PROBABILITY_NAMES or bool(spec.labels)
            if named and spec.datatype.startswith("FP") and len(spec.shape) == 2:
                return spec
        return None

    @property
    def label(self) -> TensorSpec | None:
        """The output that holds each row's class, where there is one."""
        for spec in self.outputs:
            named = spec.name in LABEL_NAMES or bool(spec.labels)
            discrete = spec.datatype in ("BYTES", "BOOL") or "INT" in spec.datatype
            if named and discrete and spec.shape[1:] in ((), (1,)):
                return spec
        return None

    def parameters(self) -> dict[str, Any]:
        """What model metadata shows beside the tensors."""
        shown: dict[str, Any] = {}
        if self.feature_names:
            shown["feature_names"] = list(self.feature_names)
        if self.features:
            shown["features"] = [feature.metadata() for feature in self.features]
        return shown


def refine(contract: Contract, folder: Path) -> Contract:
    """Lay `contract.json` over what the model itself says; they may not contradict each other."""
    contract = _with_mlflow(contract, folder)
    stated = contract_file.read(folder)
    if stated is None:
        return contract
    inputs = _overlay(contract.inputs, stated.inputs, "inputs")
    features = _features(stated, contract.features)
    if features:
        inputs = _fitting(inputs, features)
    return replace(
        contract,
        inputs=inputs,
        outputs=_overlay(contract.outputs, stated.outputs, "outputs"),
        feature_names=_feature_names(stated, inputs) or contract.feature_names,
        features=features,
        sample_request=stated.sample.request if stated.sample else contract.sample_request,
        sample_response=_expected(stated) if stated.sample else contract.sample_response,
    )


def complete(folder: Path, what: str, inputs: Sequence[str] = ()) -> Contract:
    """Take the whole contract from `contract.json`: `what` says nothing, but perhaps its inputs' names."""
    stated = contract_file.read(folder)
    if stated is None or not stated.inputs or not stated.outputs:
        missing = "is missing" if stated is None else "lacks inputs or outputs"
        template = {
            "inputs": [{"name": name, "datatype": "FP32", "shape": [-1, 4]} for name in inputs or ("input",)],
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 1]}],
        }
        raise StartFailure(
            Stage.LOAD,
            Reason.INVALID_MODEL,
            f"{CONTRACT_FILE} {missing}: {what} does not say which tensors it takes and gives, so write them beside "
            f"it, such as {json.dumps(template)}",
        )
    given = [tensor.name for tensor in stated.inputs]
    if inputs and sorted(given) != sorted(inputs):
        raise invalid(f"inputs: {', '.join(given)} are stated, but {what} takes {', '.join(inputs)}")
    return Contract(
        tuple(_whole(tensor, "inputs") for tensor in stated.inputs),
        tuple(_whole(tensor, "outputs") for tensor in stated.outputs),
    )


def _whole(tensor: Tensor, part: str) -> TensorSpec:
    if tensor.datatype is None or tensor.shape is None:
        raise invalid(
            f"{part}.{tensor.name}: datatype and shape are needed, since the model does not say them"
        )
    return TensorSpec(
        tensor.name,
        tensor.datatype,
        tuple(tensor.shape),
        labels=tuple(tensor.parameters.labels),
        allow_non_finite=tensor.parameters.allow_non_finite,
    )


def _overlay(specs: tuple[TensorSpec, ...], stated: list[Tensor], part: str) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in specs}
    for tensor in stated:
        spec = by_name.get(tensor.name)
        if spec is None:
            raise invalid(f"{part}: '{tensor.name}' is no tensor of the model, which has {sorted(by_name)}")
        if tensor.datatype not in (None, spec.datatype):
            raise invalid(
                f"{part}.{spec.name}: datatype {tensor.datatype}, but the model's is {spec.datatype}"
            )
        shape = spec.shape if tensor.shape is None else tuple(tensor.shape)
        if len(shape) != len(spec.shape) or any(
            known not in (-1, dimension) for dimension, known in zip(shape, spec.shape, strict=True)
        ):
            raise invalid(
                f"{part}.{spec.name}: shape {list(shape)} contradicts the model's {list(spec.shape)}"
            )
        by_name[spec.name] = replace(
            spec,
            shape=shape,
            labels=tuple(tensor.parameters.labels) or spec.labels,
            allow_non_finite=tensor.parameters.allow_non_finite or spec.allow_non_finite,
        )
    return tuple(by_name.values())


def _features(stated: ContractFile, known: tuple[Feature, ...]) -> tuple[Feature, ...]:
    if not stated.features:
        return () if stated.feature_names else known
    names = [entry.name for entry in stated.features]
    if stated.feature_names and stated.feature_names != names:
        raise invalid("feature_names and the names in features differ: leave feature_names out")
    _unique(names, "features")
    return tuple(_feature(entry) for entry in stated.features)


def _feature_names(stated: ContractFile, inputs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    names = stated.feature_names
    _unique(names, "feature_names")
    if names and len(inputs) == 1 and len(inputs[0].shape) == 2:
        name, width = inputs[0].name, inputs[0].shape[1]
        if width not in (-1, len(names)):
            raise invalid(f"feature_names: {len(names)} are stated, but input '{name}' has {width} columns")
    return tuple(names)


def _unique(names: list[str], part: str) -> None:
    if len(set(names)) < len(names):
        raise invalid(f"{part}: '{next(name for name in names if names.count(name) > 1)}' is there twice")


def _expected(stated: ContractFile) -> dict[str, Any] | None:
    response = stated.sample.response if stated.sample else None
    return response.model_dump() if response else None


def _feature(entry: FeatureEntry) -> Feature:
    if entry.minimum is not None and entry.maximum is not None and entry.minimum > entry.maximum:
        raise invalid(f"features.{entry.name}: minimum {entry.minimum:g} is above maximum {entry.maximum:g}")
    return Feature(
        entry.name, entry.minimum, entry.maximum, tuple(entry.categories), entry.unit, entry.description
    )


def _fitting(inputs: tuple[TensorSpec, ...], features: tuple[Feature, ...]) -> tuple[TensorSpec, ...]:
    """Give each feature its column or its input; a width that the model left open is their number."""
    if len(inputs) == 1:
        spec = inputs[0]
        width = spec.shape[-1] if len(spec.shape) > 1 else 1
        if width not in (-1, len(features)):
            raise invalid(
                f"features: {len(features)} are stated, but input '{spec.name}' has {width} columns"
            )
        for feature in features:
            _comparable(spec, feature)
        return (replace(spec, shape=(*spec.shape[:-1], len(features))),) if width == -1 else inputs
    by_name = {spec.name: spec for spec in inputs}
    for feature in features:
        if feature.name not in by_name:
            raise invalid(f"features: '{feature.name}' is none of the inputs {', '.join(by_name)}")
        _comparable(by_name[feature.name], feature)
    return inputs


def _comparable(spec: TensorSpec, feature: Feature) -> None:
    is_text = spec.datatype == "BYTES"
    if is_text and (feature.minimum is not None or feature.maximum is not None):
        raise invalid(
            f"features.{feature.name}: input '{spec.name}' is BYTES, for which only categories count"
        )
    if any(isinstance(category, str) != is_text for category in feature.categories):
        raise invalid(
            f"features.{feature.name}: its categories are not of input '{spec.name}', {spec.datatype}"
        )


def _with_mlflow(contract: Contract, folder: Path) -> Contract:
    """Add the columns' names and an example to a model of one matrix, if they fit it."""
    signature = mlflow.signature(folder)
    if signature is None or len(contract.inputs) != 1 or len(contract.inputs[0].shape) != 2:
        return contract
    spec = contract.inputs[0]
    if signature.columns and len(signature.columns) == spec.shape[-1] and not contract.feature_names:
        contract = replace(contract, feature_names=signature.columns)
    # A model of a fixed number of rows takes that many of the example's.
    rows = signature.rows if spec.shape[0] == -1 else signature.rows[: spec.shape[0]]
    fits = bool(rows) and spec.shape[0] in (-1, len(rows)) and len(rows[0]) == spec.shape[1]
    if fits and spec.datatype.startswith("FP"):
        data = [number for row in rows for number in row]
        shape = [len(rows), len(rows[0])]
        tensor = {"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": data}
        contract = replace(contract, sample_request={"inputs": [tensor]})
    return contract
