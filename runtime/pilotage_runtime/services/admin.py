"""Everything but inference: health, metadata, the repository, OpenAPI and /docs, by FastAPI."""

from copy import deepcopy
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from pilotage_runtime import __version__
from pilotage_runtime.catalog import NAMES, is_name
from pilotage_runtime.errors import Refused
from pilotage_runtime.repository import Repository, State
from pilotage_runtime.services import generate, predict, reading
from pilotage_runtime.services.docs import add_docs
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.infer import INTERNAL, InferHandler
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.services.openapi import operations, with_errors
from pilotage_runtime.services.page import add_page
from pilotage_runtime.services.payload_log import PayloadLog

EXTENSIONS = ("binary_tensor_data", "model_repository", "generate")


class IndexRequest(BaseModel):
    """Which versions an index should list."""

    ready: bool = False


INDEX_BODY: dict[str, Any] = {
    "requestBody": {"content": {"application/json": {"schema": IndexRequest.model_json_schema()}}}
}


class Control(Protocol):
    """Who loads and unloads, on all workers; both raise Refused where they cannot.

    A caller may give up: the change goes on to its end, or is undone as a whole.
    """

    async def load(self, model: str) -> None:
        """Serve what the repository's folder holds of a model now."""
        ...

    async def unload(self, model: str) -> None:
        """Stop serving a model."""
        ...


def allowed(control: Control | None, model: str) -> Control:
    """Give who loads and unloads, or refuse: where that is switched off, and what can be no model's name."""
    if control is None:
        raise Refused("loading and unloading by request is switched off (PILOTAGE_REPOSITORY_CONTROL)", 403)
    # Here, for between worker and supervisor a line can be too long.
    if not is_name(model):
        raise Refused(f"{model[:60]!r} cannot be a model's name: {NAMES}")
    return control


def build(
    repository: Repository,
    lifecycle: Lifecycle,
    held: Held,
    control: Control | None = None,
    payloads: PayloadLog | None = None,
) -> FastAPI:
    """Wire the paths that FastAPI serves."""
    app = FastAPI(
        title="Pilotage",
        description="Open Inference Protocol V2",
        version=__version__,
        # FastAPI's own pages load a script from somebody else's server, which a closed cluster does not reach.
        docs_url=None,
        redoc_url=None,
    )
    _errors(app)
    _health(app, repository, lifecycle)
    _metadata(app, repository)
    _repository(app, repository, control, held)
    predict.add(app, repository, lifecycle, held, payloads)
    generate.add(app, repository, held, payloads)
    add_page(app)
    add_docs(app)
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        schema = deepcopy(generated())  # FastAPI keeps the one that it made
        with_errors(schema["paths"])
        schema["paths"] |= predict.operations(repository) | operations(repository)
        return schema

    app.openapi = openapi
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def answer(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        status = error.status_code
        path = request.url.path
        if status == 404 and InferHandler.serves(path) and request.method != "POST":
            status, headers["Allow"] = 405, "POST"
        message = {
            404: f"{path[:200]} is not served here; /docs lists what is",
            405: f"{request.method} is not allowed on {path[:200]}; allowed: {headers.get('Allow')}",
        }.get(status, str(error.detail))
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Refused) -> JSONResponse:
        headers = {name.decode(): value.decode() for name, value in error.headers}
        return JSONResponse({"error": error.message}, error.status, headers)

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> JSONResponse:
        del error  # Edge has it in the log, for it is raised again
        return JSONResponse({"error": INTERNAL}, 500)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(_: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 400)


def _health(app: FastAPI, repository: Repository, lifecycle: Lifecycle) -> None:
    def readiness(body: dict[str, Any]) -> JSONResponse:
        if not lifecycle.ready:
            return JSONResponse(
                {**body, "ready": False, "error": "draining: this server is about to stop"}, 503
            )
        return JSONResponse(body)

    @app.get("/v2/health/live", tags=["health"])
    async def live() -> JSONResponse:
        """Tell that the process answers."""
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", tags=["health"])
    async def ready() -> JSONResponse:
        """Tell whether traffic should come: loaded, warmed up, one real inference done, not draining."""
        if not repository.ready():
            return JSONResponse({"ready": False, "error": "no model is ready"}, 503)
        return readiness({"ready": True})

    @app.get("/v2/models/{model}/ready", tags=["health"])
    async def model_ready(model: str) -> JSONResponse:
        """Tell whether a model has a version that is ready."""
        repository.engine(model)
        return readiness({"name": model, "ready": True})

    @app.get("/v2/models/{model}/versions/{version}/ready", tags=["health"])
    async def version_ready(model: str, version: str) -> JSONResponse:
        """Tell whether a version is ready."""
        repository.engine(model, version)
        return readiness({"name": model, "version": version, "ready": True})


def _metadata(app: FastAPI, repository: Repository) -> None:
    def metadata(model: str, version: str | None = None) -> JSONResponse:
        engine = repository.engine(model, version)
        contract = engine.contract
        ready = [one.location.version for one in repository.versions(model) if one.state is State.READY]
        body: dict[str, Any] = {
            "name": model,
            "versions": ready,
            "platform": engine.platform,
            "inputs": [spec.metadata() for spec in contract.inputs],
            "outputs": [spec.metadata() for spec in contract.outputs],
        }
        body["parameters"] = {
            "version": engine.version,
            "batching": engine.unbatched or "on",
            **contract.parameters(),
        }
        return JSONResponse(body)

    @app.get("/v2", tags=["metadata"])
    async def server_metadata() -> JSONResponse:
        """Name the server and the extensions of the protocol that it speaks."""
        return JSONResponse({"name": "pilotage", "version": __version__, "extensions": list(EXTENSIONS)})

    @app.get("/v2/models/{model}", tags=["metadata"])
    async def model_metadata(model: str) -> JSONResponse:
        """Tell what a model takes and gives; -1 is any size."""
        return metadata(model)

    @app.get("/v2/models/{model}/versions/{version}", tags=["metadata"])
    async def version_metadata(model: str, version: str) -> JSONResponse:
        """Tell what a version takes and gives."""
        return metadata(model, version)


def _repository(app: FastAPI, repository: Repository, control: Control | None, held: Held) -> None:
    @app.post("/v2/repository/index", tags=["repository"], openapi_extra=INDEX_BODY)
    async def index(request: Request) -> JSONResponse:
        """List all versions of all models, those that are not ready with the reason."""
        # FastAPI would read a body of any size.
        async with reading.body(request, held) as raw:
            only = IndexRequest.model_validate_json(raw) if raw else IndexRequest()
        return JSONResponse(
            [
                {"name": model, "version": one.location.version, "state": one.state, "reason": one.reason}
                for model in repository.names()
                for one in repository.versions(model)
                if not only.ready or one.state is State.READY
            ]
        )

    @app.post("/v2/repository/models/{model}/load", tags=["repository"])
    async def load(model: str) -> JSONResponse:
        """Load the versions of a model that the repository's folder holds now, on all workers or on none."""
        await allowed(control, model).load(model)
        return JSONResponse({})

    @app.post("/v2/repository/models/{model}/unload", tags=["repository"])
    async def unload(model: str) -> JSONResponse:
        """Stop serving a model; requests under way are answered."""
        await allowed(control, model).unload(model)
        return JSONResponse({})
