"""Prediction for people without tensors in mind: rows with the features' names; the same engine, the same errors."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from pilotage_runtime.contract import Contract
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import Refused
from pilotage_runtime.protocol import rows, v2
from pilotage_runtime.repository import Repository, State
from pilotage_runtime.services import counted, reading
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.services.openapi import errors
from pilotage_runtime.services.payload_log import PayloadLog


def add(
    app: FastAPI,
    repository: Repository,
    lifecycle: Lifecycle,
    held: Held,
    payloads: PayloadLog | None = None,
) -> None:
    """Add the paths."""

    async def predict(request: Request, model: str, version: str | None = None) -> Response:
        async def serve(engine: Engine, exchange: Exchange) -> Response:
            async with reading.document(request, held) as body:
                inputs, single = rows.read(body, engine.contract)
                answering = engine.infer(inputs, deadline=exchange.deadline, unseen=exchange.pinned)
                if payloads is not None:
                    answering = payloads.noted(answering, exchange, engine, v2.InferRequest(None, inputs, ()))
                specs, values = await counted.unless_left(request, answering)
            answers = rows.write(specs, values, rows.count(inputs))
            told = {"prediction": answers[0]} if single else {"predictions": answers}
            return counted.json({"model": engine.name, "version": engine.version, **told})

        return await counted.counted(request, repository, (model, version), serve)

    @app.post("/predict", tags=["prediction"], include_in_schema=False)
    async def predict_default(request: Request) -> Response:
        names = repository.names()
        if len(names) != 1:
            listed = ", ".join(f"/models/{name}/predict" for name in names[:8])
            raise Refused(f"this server has several models; choose one: {listed}", 404)
        return await predict(request, names[0])

    @app.post("/models/{model}/predict", tags=["prediction"], include_in_schema=False)
    async def predict_model(request: Request, model: str) -> Response:
        return await predict(request, model)

    @app.post("/models/{model}/versions/{version}/predict", tags=["prediction"], include_in_schema=False)
    async def predict_version(request: Request, model: str, version: str) -> Response:
        return await predict(request, model, version)

    @app.get("/models/{model}/versions", tags=["prediction"])
    async def versions(model: str) -> JSONResponse:
        """List a model's versions, and which answers where none is named."""
        repository.find(model)
        default = repository.default(model)
        return JSONResponse(
            {
                "model": model,
                "default": default.location.version if default else None,
                "versions": [
                    {"version": one.location.version, "ready": one.state is State.READY}
                    for one in repository.versions(model)
                ],
            }
        )

    @app.get("/health", tags=["health"])
    async def health() -> JSONResponse:
        """Tell whether traffic should come, and whether a model is loaded."""
        loaded = repository.ready()
        fine = loaded and lifecycle.ready
        status = "ok" if fine else "draining" if loaded else "no model is ready"
        return JSONResponse({"status": status, "model_loaded": loaded}, 200 if fine else 503)


def operations(repository: Repository) -> dict[str, Any]:
    """Describe the paths for OpenAPI, typed by each model's contract."""
    found: dict[str, Any] = {}
    names = repository.names()
    for model in names:
        default = repository.default(model)
        if default is None or default.engine is None or not rows.columns(default.engine.contract):
            continue
        operation = _operation(model, default.engine.contract)
        found[f"/models/{model}/predict"] = operation
        if len(names) == 1:
            found["/predict"] = operation
        for version in repository.versions(model):
            if version.engine is not None and rows.columns(version.engine.contract):
                path = f"/models/{model}/versions/{version.location.version}/predict"
                found[path] = _operation(model, version.engine.contract)
    return found


def _operation(model: str, contract: Contract) -> dict[str, Any]:
    row = rows.row_schema(contract)
    many = {"type": "array", "minItems": 1, "maxItems": rows.MAX_ROWS, "items": row}
    prediction = {"type": "object", "properties": {spec.name: {} for spec in contract.outputs}}
    answer = {
        "type": "object",
        "required": ["model", "version"],
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "string"},
            "prediction": prediction,
            "predictions": {"type": "array", "items": prediction},
        },
    }
    return {
        "post": {
            "tags": ["prediction"],
            "summary": f"Predict with {model}: one row, or a list of them",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"oneOf": [row, many]}, "example": rows.example(contract)}
                },
            },
            "responses": {
                "200": {"description": "the prediction", "content": {"application/json": {"schema": answer}}},
                **errors(400, 404, 413, 415, 429, 500, 503, 504),
            },
        }
    }
