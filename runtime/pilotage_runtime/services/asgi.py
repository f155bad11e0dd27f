"""The types of the ASGI interface, and the one shape that errors have everywhere."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON = b"application/json"


def error_body(message: str) -> bytes:
    """Write an error in the one shape that every path uses."""
    # A text from elsewhere may hold halves of characters, which JSON cannot.
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})
