"""A model's contract: its inputs and outputs as read from the model, refined by `contract.json` beside it.

    {"inputs":  [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}],
     "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3],
                  "parameters": {"labels": ["setosa", "versicolor", "virginica"]}}],
     "feature_names": ["sepal length", "sepal width", "petal length", "petal width"],
     "sample": {"request": {"inputs": [...]}, "response": {"outputs": [...]}}}

Every part is optional. `parameters.allow_non_finite` permits NaN and infinities in that tensor (JSON
carries them as null). The sample is inferred before the model is ready; with a response it must match.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.tensors import DATATYPES

CONTRACT_FILE = "contract.json"
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
    input_by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)
    output_by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_by_name", {spec.name: spec for spec in self.inputs})
        object.__setattr__(self, "output_by_name", {spec.name: spec for spec in self.outputs})

    @property
    def probability(self) -> TensorSpec | None:
        """The output that holds one probability a class, where there is one."""
        for spec in self.outputs:
            named = spec.name in PROBABILITY_NAMES or bool(spec.labels)
            if named and spec.datatype.startswith("FP") and len(spec.shape) == 2:
                return spec
        return None


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    labels: list[str] = []
    allow_non_finite: bool = False


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    datatype: str | None = None
    shape: list[Annotated[int, Field(ge=-1)]] | None = None
    parameters: _Parameters = _Parameters()


class _Sample(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    request: dict[str, Any]
    response: dict[str, Any] | None = None


class _ContractFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []
    feature_names: list[str] = []
    sample: _Sample | None = None


def refine(contract: Contract, folder: Path) -> Contract:
    """Lay `contract.json` over what the model itself says; they may not contradict each other."""
    path = folder / CONTRACT_FILE
    if not path.is_file():
        return contract
    try:
        stated = _ContractFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise _invalid(f"{where}: {first['msg']}") from error
    return replace(
        contract,
        inputs=_overlay(contract.inputs, stated.inputs, "inputs"),
        outputs=_overlay(contract.outputs, stated.outputs, "outputs"),
        feature_names=tuple(stated.feature_names),
        sample_request=stated.sample.request if stated.sample else None,
        sample_response=stated.sample.response if stated.sample else None,
    )


def _overlay(specs: tuple[TensorSpec, ...], stated: list[_Tensor], part: str) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in specs}
    for tensor in stated:
        spec = by_name.get(tensor.name)
        if spec is None:
            raise _invalid(f"{part}: '{tensor.name}' is no tensor of the model, which has {sorted(by_name)}")
        if tensor.datatype not in (None, spec.datatype):
            raise _invalid(
                f"{part}.{spec.name}: datatype {tensor.datatype}, but the model's is {spec.datatype}"
            )
        shape = spec.shape if tensor.shape is None else tuple(tensor.shape)
        if len(shape) != len(spec.shape) or any(
            known not in (-1, dimension) for dimension, known in zip(shape, spec.shape, strict=True)
        ):
            raise _invalid(
                f"{part}.{spec.name}: shape {list(shape)} contradicts the model's {list(spec.shape)}"
            )
        by_name[spec.name] = replace(
            spec,
            shape=shape,
            labels=tuple(tensor.parameters.labels) or spec.labels,
            allow_non_finite=tensor.parameters.allow_non_finite,
        )
    return tuple(by_name.values())


def _invalid(message: str) -> StartFailure:
    return StartFailure(Stage.LOAD, Reason.INVALID_MODEL, f"{CONTRACT_FILE}: {message}")
