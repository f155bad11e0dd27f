"""Inference in the OpenAPI document, written from the model's contract."""

from math import prod
from typing import Any

from pilotage_runtime.contract import Contract, TensorSpec

_JSON_TYPES = {"BOOL": "boolean", "BYTES": "string"}


def infer_operation(model: str, contract: Contract) -> dict[str, Any]:
    """Describe POST /v2/models/M/infer with this model's tensors and an example that works."""
    errors = {
        "400": "the request does not fit the contract; the sentence says which tensor and how",
        "413": "the body is too large",
        "415": "the body is not JSON by its content type",
        "500": "the model failed",
        "503": "busy",
        "504": "the caller's time was up",
    }
    return {
        "post": {
            "tags": ["inference"],
            "summary": f"Infer with {model}",
            "operationId": "infer",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _request(contract), "example": _example(contract)}
                },
            },
            "responses": {
                "200": {
                    "description": "the model's answer",
                    "content": {"application/json": {"schema": _response(contract)}},
                },
                **{code: _error(text) for code, text in errors.items()},
            },
        }
    }


def _request(contract: Contract) -> dict[str, Any]:
    names = [spec.name for spec in contract.outputs]
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "enum": names}},
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": _tensors(contract.inputs),
            "outputs": {"type": "array", "items": output},
        },
    }


def _response(contract: Contract) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "id": {"type": "string"},
            "outputs": _tensors(contract.outputs),
        },
    }


def _tensors(specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"oneOf": [_tensor(spec) for spec in specs]}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    kind = _JSON_TYPES.get(spec.datatype, "number" if spec.datatype.startswith("FP") else "integer")
    return {
        "type": "object",
        "title": spec.name,
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"type": "string", "enum": [spec.name]},
            "datatype": {"type": "string", "enum": [spec.datatype]},
            "shape": {
                "type": "array",
                "items": {"type": "integer"},
                "description": f"{list(spec.shape)}, -1 is any",
            },
            "data": {"type": "array", "items": {"oneOf": [{"type": kind}, {"type": "array", "items": {}}]}},
        },
    }


def _example(contract: Contract) -> dict[str, Any]:
    if contract.sample_request is not None:
        return contract.sample_request
    return {"inputs": [_example_tensor(spec) for spec in contract.inputs]}


def _example_tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [1 if size == -1 else size for size in spec.shape]
    element: Any = {"BOOL": False, "BYTES": ""}.get(spec.datatype, 0)
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": shape,
        "data": [element] * min(prod(shape), 1000),
    }


def _error(description: str) -> dict[str, Any]:
    schema = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
