"""`contract.json` as it may be written beside a model; docs/reference/contract.md is rendered from this."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilotage_runtime.failure import Reason, Stage, StartFailure

CONTRACT_FILE = "contract.json"
_MOST_BYTES = 16 * 2**20

DatatypeName = Literal[
    "BOOL", "BYTES", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "BF16", "FP32", "FP64",
]  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Parameters(_Part):
    """What the protocol's own members of a tensor have no place for."""

    labels: list[str] = Field(
        default=[], description="names of the columns, in order: the classes of a classifier"
    )
    allow_non_finite: bool = Field(
        default=False, description="permit NaN and infinities, which JSON carries as null"
    )


class Tensor(_Part):
    """One tensor, as the protocol's model metadata has it."""

    name: str = Field(description="the tensor's name in the model")
    datatype: DatatypeName | None = Field(
        default=None, description="the protocol's datatype; needed where the model does not say it itself"
    )
    shape: list[Annotated[int, Field(ge=-1)]] | None = Field(
        default=None, description="-1 is any size; it may narrow the model's own shape, not contradict it"
    )
    parameters: Parameters = Field(default=Parameters(), description="labels and the like")


class FeatureEntry(_Part):
    """One feature: a column of the one input or, where there are several inputs, the input of that name."""

    name: str = Field(description="the feature's name")
    minimum: float | None = Field(default=None, description="a smaller value is refused with 400")
    maximum: float | None = Field(default=None, description="a larger value is refused with 400")
    categories: list[str | bool | int | float] = Field(
        default=[],
        max_length=10_000,
        description="the values that are allowed; any other is refused with 400",
    )
    unit: str | None = Field(default=None, description="the unit, for people")
    description: str | None = Field(default=None, description="what it is, for people")


class ExpectedOutput(BaseModel):
    """One output as it must come out; what else the protocol writes of it is left aside."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str = Field(description="the output's name")
    data: list[Any] = Field(description="its elements, nested or flat")


class ExpectedResponse(BaseModel):
    """The body of a response; beside its outputs nothing is compared."""

    model_config = ConfigDict(extra="allow", strict=True)

    outputs: list[ExpectedOutput] = Field(
        min_length=1, description="the outputs that must come out, within 0.1 %"
    )


class Sample(_Part):
    """A request that is inferred before the model is ready."""

    request: dict[str, Any] = Field(description="the body of an inference request")
    response: ExpectedResponse | None = Field(
        default=None, description="the body of the answer that must come"
    )


class ContractFile(_Part):
    """The whole file; every part is optional."""

    inputs: list[Tensor] = Field(default=[], description="the inputs, as in the protocol's model metadata")
    outputs: list[Tensor] = Field(default=[], description="the outputs, as in the protocol's model metadata")
    features: list[FeatureEntry] = Field(
        default=[], description="names, ranges and categories of the features, in the order of the columns"
    )
    feature_names: list[str] = Field(default=[], description="the names alone, where nothing else is stated")
    sample: Sample | None = Field(
        default=None, description="a request, and the answer that is expected to it"
    )


def read(folder: Path) -> ContractFile | None:
    """Read the file beside a model; None where there is none."""
    path = folder / CONTRACT_FILE
    if not path.is_file():
        return None
    if path.stat().st_size > _MOST_BYTES:
        raise invalid(f"the file is larger than {_MOST_BYTES} bytes")
    try:
        return ContractFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise invalid(f"{where}: {first['msg']}") from error


def invalid(message: str) -> StartFailure:
    """Make the failure that a wrong contract is."""
    return StartFailure(Stage.LOAD, Reason.INVALID_MODEL, f"{CONTRACT_FILE}: {message}")
