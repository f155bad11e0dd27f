"""Inference in the OpenAPI document, written from the model's contract."""

from math import prod
from typing import Any

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.repository import Repository

_ERRORS = {
    400: "the request does not fit; the sentence says what came and what is expected",
    403: "loading and unloading by request is switched off",
    404: "nothing of this name is served",
    408: "the request was not whole in time",
    409: "another load or unload is under way, or this one cannot be done",
    413: "the body is too large",
    415: "the body is not JSON by its content type",
    429: "busy",
    500: "the model failed",
    501: "an extension of the protocol that is not supported",
    503: "not ready",
    504: "the caller's time was up",
}
_JSON_TYPES = {"BOOL": "boolean", "BYTES": "string"}


def operations(repository: Repository) -> dict[str, Any]:
    """Describe inference with every model and every version that is ready."""
    found: dict[str, Any] = {}
    for model in repository.names():
        default = repository.default(model)
        if default is not None and default.engine is not None:
            found |= _of_model(model, f"/v2/models/{model}", default.engine.contract)
        for version in repository.versions(model):
            if version.engine is not None:
                named = version.location.version
                path = f"/v2/models/{model}/versions/{named}"
                found |= _of_model(f"{model}, version {named}", path, version.engine.contract)
    return found


def _of_model(name: str, path: str, contract: Contract) -> dict[str, Any]:
    return {
        f"{path}/infer": _infer(name, contract),
        f"{path}/generate": _generate(name, contract, stream=False),
        f"{path}/generate_stream": _generate(name, contract, stream=True),
    }


def _infer(name: str, contract: Contract) -> dict[str, Any]:
    """Describe infer with this model's tensors and an example that works."""
    return {
        "post": {
            "tags": ["inference"],
            "summary": f"Infer with {name}",
            "operationId": _identifier("infer", name),
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _request(contract), "example": _example(contract)}
                },
            },
            "responses": {
                "200": {
                    "description": "the model's answer",
                    "content": {
                        "application/json": {"schema": _response(contract)},
                        # Where binary outputs were asked for: JSON, then raw tensors.
                        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                    },
                },
                **errors(400, 404, 408, 413, 415, 429, 500, 501, 503, 504),
            },
        }
    }


def _generate(name: str, contract: Contract, *, stream: bool) -> dict[str, Any]:
    """Describe generate: the same inputs by name, as flat JSON."""
    whole = {"application/json": {"schema": _named_outputs(contract)}}
    # Of one event; its data is such an object as JSON, or the error that ends the stream.
    data = {"type": "string", "contentMediaType": "application/json"}
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    events = {"text/event-stream": {"schema": event}}
    end = "generate_stream" if stream else "generate"
    return {
        "post": {
            "tags": ["inference"],
            "summary": f"Generate with {name}, {'piece by piece' if stream else 'answered whole'}",
            "operationId": _identifier(end, name),
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": _named_inputs(contract),
                        "example": {
                            entry["name"]: entry["data"]
                            for entry in (_example_tensor(spec) for spec in contract.inputs)
                        },
                    }
                },
            },
            "responses": {
                "200": {"description": "the model's answer", "content": events if stream else whole},
                **errors(400, 404, 413, 415, 429, 500, 503, 504),
            },
        }
    }


def _identifier(end: str, name: str) -> str:
    return f"{end}_{name.replace(', version ', '_')}"


def errors(*codes: int) -> dict[str, Any]:
    """Describe answers of these codes, in the one shape that errors have."""
    schema = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {
        str(code): {"description": _ERRORS[code], "content": {"application/json": {"schema": schema}}}
        for code in codes
    }


def with_errors(paths: dict[str, Any]) -> None:
    """Add to FastAPI's description what it does not know, and take away its own 422, which is a 400 here."""
    for path, operations in paths.items():
        codes = [400, 504]
        if "{model}" in path:
            codes += [404, 503]
        if path.endswith(("/load", "/unload")):
            codes += [403, 409]
        if path.endswith("/index"):
            codes += [413]
        ready = {"ready": {"type": "boolean"}, "model_loaded": {"type": "boolean"}}
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            responses |= errors(*sorted(codes))
            if path.endswith(("/health", "/ready")):
                schema = {"type": "object", "properties": {**ready, "error": {"type": "string"}}}
                responses["503"] = {
                    "description": _ERRORS[503],
                    "content": {"application/json": {"schema": schema}},
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
            "parameters": {
                "type": "object",
                "properties": {
                    "binary_data_output": {"type": "boolean"},
                    "timeout": {
                        "type": "integer",
                        "minimum": 0,
                        "description": "microseconds that the caller waits",
                    },
                },
                "additionalProperties": {"type": ["string", "number", "boolean"]},
            },
        },
    }


def _response(contract: Contract) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": _tensors(contract.outputs),
        },
    }


def _tensors(specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"oneOf": [_tensor(spec) for spec in specs]}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    kind = _json_type(spec)
    element: dict[str, Any] = {"type": [kind, "null"] if spec.allow_non_finite else kind}
    return {
        "type": "object",
        "title": spec.name,
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"type": "string", "enum": [spec.name]},
            "datatype": {"type": "string", "enum": [spec.datatype]},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0},
                "description": f"{list(spec.shape)}, -1 is any",
            },
            "data": {
                "description": "flat and row-major, or nested as the shape is",
                "type": "array",
                "items": {"oneOf": [element, {"type": "array", "items": {}}]},
            },
        },
    }


def _named_inputs(contract: Contract) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [spec.name for spec in contract.inputs],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "additionalProperties": {"type": ["string", "number", "boolean"]},
            },
            **{spec.name: _one_or_many(spec, spec.allow_non_finite) for spec in contract.inputs},
        },
        # What is no input is a parameter.
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    }


def _named_outputs(contract: Contract) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model_name", "model_version"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            # JSON has no NaN.
            **{spec.name: _one_or_many(spec, spec.dtype.kind not in "biu") for spec in contract.outputs},
        },
    }


def _one_or_many(spec: TensorSpec, nullable: bool) -> dict[str, Any]:
    kind = _json_type(spec)
    one = {"type": [kind, "null"] if nullable else kind}
    return {"oneOf": [one, {"type": "array", "items": {}}]}


def _json_type(spec: TensorSpec) -> str:
    return _JSON_TYPES.get(spec.datatype, "number" if spec.datatype.startswith(("FP", "BF")) else "integer")


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
