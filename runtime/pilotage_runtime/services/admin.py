"""Everything but inference: health, metadata, OpenAPI and /docs, by FastAPI."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pilotage_runtime import __version__
from pilotage_runtime.engine import Engine
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.services.openapi import infer_operation

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build(engine: Engine, platform: str, lifecycle: Lifecycle, on_stop: Callable[[], None]) -> FastAPI:
    """Wire the paths that FastAPI serves."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        on_stop()

    app = FastAPI(
        title=f"Pilotage: {engine.name}",
        description="Open Inference Protocol V2",
        version=__version__,
        lifespan=lifespan,
    )
    _errors(app)
    _health(app, engine.name, lifecycle)
    _metadata(app, engine, platform)
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generated()
        schema["paths"][f"/v2/models/{engine.name}/infer"] = infer_operation(engine.name, engine.contract)
        return schema

    app.openapi = openapi
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def answer(request: Request, error: HTTPException) -> JSONResponse:
        allowed = (error.headers or {}).get("Allow")
        message = {
            404: f"{request.url.path[:200]} is not served here; /docs lists what is",
            405: f"{request.method} is not allowed on {request.url.path[:200]}; allowed: {allowed}",
        }.get(error.status_code, str(error.detail))
        return JSONResponse({"error": message}, error.status_code, error.headers)


def _health(app: FastAPI, name: str, lifecycle: Lifecycle) -> None:
    def readiness(body: dict[str, Any]) -> JSONResponse:
        if lifecycle.ready:
            return JSONResponse(body)
        return JSONResponse({**body, "ready": False, "error": "draining: this server is about to stop"}, 503)

    @app.get("/v2/health/live", tags=["health"])
    async def live() -> JSONResponse:
        """Tell that the process answers."""
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", tags=["health"])
    async def ready() -> JSONResponse:
        """Tell whether traffic should come: loaded, warmed up, one real inference done, not draining."""
        return readiness({"ready": True})

    @app.get(f"/v2/models/{name}/ready", tags=["health"])
    async def model_ready() -> JSONResponse:
        """Tell whether the model is ready."""
        return readiness({"name": name, "ready": True})


def _metadata(app: FastAPI, engine: Engine, platform: str) -> None:
    @app.get("/v2", tags=["metadata"])
    async def server_metadata() -> JSONResponse:
        """Name the server."""
        return JSONResponse({"name": "pilotage", "version": __version__, "extensions": []})

    @app.get(f"/v2/models/{engine.name}", tags=["metadata"])
    async def model_metadata() -> JSONResponse:
        """Tell what the model takes and gives; -1 is any size."""
        contract = engine.contract
        body: dict[str, Any] = {
            "name": engine.name,
            "platform": platform,
            "inputs": [spec.metadata() for spec in contract.inputs],
            "outputs": [spec.metadata() for spec in contract.outputs],
        }
        if contract.feature_names:
            body["parameters"] = {"feature_names": list(contract.feature_names)}
        return JSONResponse(body)
