"""How this process listens: for inference, and for whoever scrapes it. Imports no model library."""

import socket
from typing import Any

import uvicorn

from pilotage_runtime.services.asgi import ASGIApp

# Longer than Envoy's 60 s, so that Envoy, which knows what it is about to send, closes first.
KEEP_ALIVE_SECONDS = 90
# The longest time-out of a route: what is in flight at the end of the drain may take so long.
FINISH_SECONDS = 300
BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Bind a port; connections are refused until a server with a model accepts them."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def config(app: ASGIApp, http: Any = "httptools") -> uvicorn.Config:
    """Configure uvicorn; what it logs goes through this process's own JSON logs."""
    return uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType] - uvicorn's types spell out every ASGI message
        loop="uvloop",
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FINISH_SECONDS,
        backlog=BACKLOG,
    )
