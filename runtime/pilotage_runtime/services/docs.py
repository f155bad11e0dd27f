"""GET /docs: the OpenAPI document as a page, by Swagger UI from a package that is installed, and nobody else's servers.

The package is one of files: it is found, and never imported.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse

from pilotage_runtime.services.page import hashed, headers

_PACKAGE = "fastapi_offline"
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_SCRIPT = (
    "SwaggerUIBundle({url: '/openapi.json', dom_id: '#swagger-ui', layout: 'BaseLayout', deepLinking: true, "
    "presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset]})"
)
_PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pilotage</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>{_SCRIPT}</script>
</html>
"""


def add_docs(app: FastAPI) -> None:
    """Serve the page, and what it loads."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Show the page."""
        return HTMLResponse(_PAGE, headers=headers(f"'self' {hashed(_SCRIPT)}", "'self'", "'self' data:"))

    for name, kind in _FILES.items():

        async def file(*, _name: str = name, _kind: str = kind) -> FileResponse:
            path = _folder() / _name
            return FileResponse(path, media_type=_kind, headers={"x-content-type-options": "nosniff"})

        app.add_api_route(f"/docs/{name}", file, include_in_schema=False, response_model=None)


@cache
def _folder() -> Path:
    spec = find_spec(_PACKAGE)
    assert spec is not None, "a dependency of this distribution"
    assert spec.origin is not None, "a package has a file"
    return Path(spec.origin).parent / "static"
