"""How this process listens: for inference, and for whoever scrapes it. Imports no model library."""

import os
import resource
import socket
from typing import Any

import uvicorn

from pilotage_runtime.services.asgi import ASGIApp
from pilotage_runtime.settings import ServeSettings

# Longer than Envoy's 60 s, so that Envoy, which knows what it is about to send, closes first.
KEEP_ALIVE_SECONDS = 90
# The longest time-out of a route: what is in flight at the end of the drain may take so long.
FINISH_SECONDS = 300
BACKLOG = 2048
# Connections accepted in one turn of the loop: many come together after a proxy's restart, few enough for the other
# workers to have theirs.
ACCEPTS = 16
# More connections than a process of this kind has memory for.
MOST_DESCRIPTORS = 2**17
# For what is no connection: the scrape of metrics, files of models, threads.
RESERVED_DESCRIPTORS = 256


class CannotListenError(Exception):
    """A port cannot be bound: it is taken, or the host is not this machine's."""

    def __init__(self, host: str, port: int, setting: str, why: object) -> None:
        super().__init__(f"cannot listen on {host} port {port}: {why}; see PILOTAGE_HOST and {setting}")


def listen(host: str, port: int, setting: str = "PILOTAGE_HTTP_PORT") -> socket.socket:
    """Bind a port; connections are refused until a server with a model accepts them."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListenError(host, port, setting, error.strerror) from error
    return listener


def listen_for(settings: ServeSettings) -> tuple[socket.socket, socket.socket]:
    """Bind the ports of inference and of metrics; raise where the third, which grpc binds itself, is not to be had."""
    if settings.grpc_port is not None:
        listen(settings.host, settings.grpc_port, "PILOTAGE_GRPC_PORT").close()
    return (
        listen(settings.host, settings.http_port),
        listen(settings.host, settings.metrics_port, "PILOTAGE_METRICS_PORT"),
    )


def several(listener: socket.socket) -> list[socket.socket]:
    """One listener as `ACCEPTS` of them.

    libuv accepts one connection a turn and listener (libuv/libuv#3696): with 500 that ask without pause, a turn
    takes 20 ms and the last to be accepted waits seconds.

    Whether accepting waits is kept with the port, not with a descriptor. `socket.dup` makes it wait: a worker that comes
    up would leave another, which looks for its next connection just then, in the kernel until somebody calls.
    """
    return [listener, *(socket.socket(fileno=os.dup(listener.fileno())) for _ in range(ACCEPTS - 1))]


def connections_allowed() -> int:
    """Raise this process's limit of open files as far as it may, and tell how many may be connections."""
    soft, hard = (
        MOST_DESCRIPTORS if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft < min(hard, MOST_DESCRIPTORS):
        soft = min(hard, MOST_DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return max(soft - RESERVED_DESCRIPTORS, soft // 2)


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
