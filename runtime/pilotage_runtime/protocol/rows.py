"""Rows for people without tensors in mind: one JSON object, or a list of them, with a value for each feature.

Which names a row has comes from the contract: the features of a model with one input, else its inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.protocol import v2

MAX_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Column:
    """One name of a row, and where its value goes."""

    name: str
    tensor: TensorSpec
    shape: tuple[int, ...]  # of one row's value; empty for a single one


def columns(contract: Contract) -> list[Column]:
    """List a row's names; empty where the inputs are not made of rows."""
    if any(not spec.shape or spec.shape[0] != -1 for spec in contract.inputs):
        return []
    names = contract.feature_names
    if len(contract.inputs) == 1 and names:
        spec = contract.inputs[0]
        if len(spec.shape) == 2 and spec.shape[1] in (-1, len(names)):
            return [Column(name, spec, ()) for name in names]
    return [Column(spec.name, spec, _of_one_row(spec)) for spec in contract.inputs]


def read(document: Any, contract: Contract) -> tuple[dict[str, np.ndarray], bool]:
    """Read rows into tensors, and tell whether it was a single one; raise Refused with a sentence."""
    expected = columns(contract)
    if not expected:
        raise Refused("this model's inputs are not made of rows; send tensors to …/infer", 400)
    single = type(document) is dict
    rows: list[Any] = [document] if single else document
    if type(rows) is not list or not rows:
        raise Refused("the body should be an object with a value for each feature, or a list of such objects")
    if len(rows) > MAX_ROWS:
        raise Refused(f"{len(rows)} rows came; at most {MAX_ROWS} are taken", 413)
    names = [column.name for column in expected]
    known = set(names)
    for at, row in enumerate(rows):
        if type(row) is not dict:
            raise Refused(f"row {at} should be an object with {_few(names)}")
        if row.keys() != known:
            missing = [name for name in names if name not in row]
            unknown = [str(name)[:60] for name in row if name not in known]
            parts = [f"'{name}' is missing" for name in missing] + [
                f"'{name}' is unknown" for name in unknown
            ]
            raise Refused(f"row {at}: {'; '.join(parts[:8])}; a row has {_few(names)}")
    by_tensor: dict[str, list[Column]] = {}
    for column in expected:
        by_tensor.setdefault(column.tensor.name, []).append(column)
    inputs = list[dict[str, Any]]()
    for name, parts in by_tensor.items():
        spec = parts[0].tensor
        if parts[0].shape:
            data, inner = _arrays([row[parts[0].name] for row in rows], parts[0])
        else:
            data = [_value(row[column.name], column, at) for at, row in enumerate(rows) for column in parts]
            inner = [len(parts)] if len(spec.shape) == 2 else []
        inputs.append({"name": name, "datatype": spec.datatype, "shape": [len(rows), *inner], "data": data})
    return v2.read({"inputs": inputs}, contract).inputs, single


def write(specs: Sequence[TensorSpec], values: Sequence[np.ndarray], rows: int) -> list[dict[str, Any]]:
    """Give one object a row: outputs by name, one with labels as an object of its own."""
    answers: list[dict[str, Any]] = [{} for _ in range(rows)]
    for spec, value in zip(specs, values, strict=True):
        if value.shape[:1] != (rows,):
            raise Refused(f"output '{spec.name}' is not made of rows; send tensors to …/infer")
        for answer, row in zip(answers, value, strict=True):
            plain = row.tolist() if isinstance(row, np.ndarray | np.generic) else row
            if isinstance(plain, bytes):
                plain = plain.decode("utf-8", "replace")
            if spec.labels and isinstance(plain, list) and len(plain) == len(spec.labels):
                plain = dict(zip(spec.labels, plain, strict=True))
            elif isinstance(plain, list) and len(plain) == 1:
                plain = plain[0]
            answer[spec.name] = plain
    return answers


def row_schema(contract: Contract) -> dict[str, Any]:
    """Describe one row for OpenAPI: names, types, ranges and categories."""
    stated = {feature.name: feature for feature in contract.features}
    properties: dict[str, Any] = {}
    for column in columns(contract):
        property_: dict[str, Any] = {"type": _json_type(column.tensor)}
        if column.shape:
            property_ = {"type": "array", "items": {}, "description": f"shape {list(column.shape)}"}
        feature = stated.get(column.name)
        if feature is not None:
            if feature.minimum is not None:
                property_["minimum"] = feature.minimum
            if feature.maximum is not None:
                property_["maximum"] = feature.maximum
            if feature.categories:
                property_["enum"] = list(feature.categories)
            words = [word for word in (feature.description, feature.unit and f"in {feature.unit}") if word]
            if words:
                property_["description"] = ", ".join(words)
        properties[column.name] = property_
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def example(contract: Contract) -> dict[str, Any]:
    """Give a row that the model takes: the sample's first, or zeros."""
    expected = columns(contract)
    sample = v2.read(contract.sample_request, contract).inputs if contract.sample_request else {}
    row: dict[str, Any] = {}
    places: dict[str, int] = {}
    for column in expected:
        array = sample.get(column.tensor.name)
        if array is None:
            zero: Any = {"BYTES": "", "BOOL": False}.get(column.tensor.datatype, 0)
            sizes = [1 if size == -1 else size for size in column.shape]
            row[column.name] = np.full(sizes, zero, dtype=object).tolist() if sizes else zero
        elif column.shape:
            row[column.name] = array[0].tolist()
        else:
            at = places.get(column.tensor.name, 0)
            places[column.tensor.name] = at + 1
            row[column.name] = (
                array[0].ravel()[at].tolist() if array.dtype != object else array[0].ravel()[at]
            )
    return row


def _of_one_row(spec: TensorSpec) -> tuple[int, ...]:
    # A column of width one is a single value to people.
    return () if spec.shape[1:] in ((), (1,)) else spec.shape[1:]


def _value(value: Any, column: Column, at: int) -> Any:
    kind = _json_type(column.tensor)
    fits = {
        "string": type(value) is str,
        "boolean": type(value) is bool,
        "integer": type(value) is int,
        "number": type(value) in (int, float) or (value is None and column.tensor.allow_non_finite),
    }[kind]
    if not fits:
        came, article = _came(value), "an" if kind == "integer" else "a"
        raise Refused(f"row {at}: '{column.name}' should be {article} {kind}, but {came} came")
    return value


def _came(value: Any) -> str:
    """Name a value that does not fit; what is nested is not repeated, however deep it is."""
    match value:
        case None:
            return "nothing"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case _:
            return f"{type(value).__name__} {str(value)[:60]!r}"


def _arrays(values: list[Any], column: Column) -> tuple[list[Any], list[int]]:
    """Read each row's array into its elements, and find the one shape that all rows have.

    Their elements together may fill a shape that no row has, so that a row would get a part of the next one's.
    """
    elements, found = list[Any](), list[int]()
    for at, value in enumerate(values):
        came, flat = _unnested(value, f"row {at}: '{column.name}'")
        shape = _resolved(column.shape, came)
        if shape is None:
            raise Refused(
                f"row {at}: '{column.name}' has shape {came}, {list(column.shape)} is expected"
                f"{' (-1 is any size)' if -1 in column.shape else ''}"
            )
        if at == 0:
            found = shape
        elif shape != found:
            raise Refused(
                f"row {at}: '{column.name}' has shape {shape}, but row 0 has {found}; rows of one request have one "
                "shape: pad them, or send each alone"
            )
        elements += flat
    return elements, found


def _unnested(value: Any, what: str) -> tuple[list[int], list[Any]]:
    """Give the shape of nested lists and their elements in order; a value that is no list has no dimension."""
    shape, level = list[int](), [value]
    while any(type(item) is list for item in level):
        if not all(type(item) is list and len(item) == len(level[0]) for item in level):
            raise Refused(f"{what} is an uneven array")
        shape.append(len(level[0]))
        level = [element for item in level for element in item]
    return shape[: v2.MOST_DIMENSIONS], level


def _resolved(stated: tuple[int, ...], came: list[int]) -> list[int] | None:
    """Give the sizes of a row's array, which came nested or flat, as the protocol's tensors do; None: it does not fit."""
    if len(came) == len(stated) and all(
        known in (-1, size) for known, size in zip(stated, came, strict=True)
    ):
        return came
    if len(came) != 1 or stated.count(-1) > 1:
        return None
    known = prod(size for size in stated if size != -1)
    left = came[0] // max(1, known)  # for the dimension that the contract leaves open
    sizes = [left if size == -1 else size for size in stated]
    return sizes if prod(sizes) == came[0] else None


def _json_type(spec: TensorSpec) -> str:
    if spec.datatype in ("BYTES", "BOOL"):
        return {"BYTES": "string", "BOOL": "boolean"}[spec.datatype]
    return "number" if "FP" in spec.datatype or spec.datatype == "BF16" else "integer"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


def count(inputs: dict[str, np.ndarray]) -> int:
    """Count the rows of what `read` gave."""
    return next(iter(inputs.values())).shape[0]
