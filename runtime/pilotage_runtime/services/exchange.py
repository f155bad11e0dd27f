"""One request on its way through the server."""

import asyncio
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

import orjson

from pilotage_runtime.errors import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"
_SANE_ID = re.compile(rb"[A-Za-z0-9._:=+/-]{1,128}\Z")
_DIGITS = re.compile(rb"[0-9]{1,9}\Z")
_ids = itertools.count()
_id_prefix = os.urandom(9).hex()  # workers are spawned: each has its own


class ClientGoneError(Exception):
    """The caller left before its request was whole: there is nobody to answer."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    error: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


def error_body(message: str) -> bytes:
    """Write an error in the one shape that every path uses."""
    return orjson.dumps({"error": message})


def refusal(status: int, message: str, *headers: tuple[bytes, bytes]) -> Answer:
    """Answer an error."""
    return Answer(status, error_body(message), message, headers)


class Exchange:
    """What the outermost layer knows of a request."""

    __slots__ = (
        "allowance", "body_complete", "content_length", "content_type", "deadline", "method", "path", "pinned",
        "receive", "request_id", "started",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.started = time.perf_counter()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.receive = receive
        self.body_complete = False
        self.content_length: bytes | None = None
        self.content_type: bytes | None = None
        self.deadline: float | None = None
        self.allowance = 0
        self.pinned = False
        given: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                self.content_length = value
            elif name == b"content-type":
                self.content_type = value
            elif name == b"x-request-id":
                given = value
            elif name == b"x-envoy-expected-rq-timeout-ms" and _DIGITS.match(value):
                # 0 is Envoy's word for no time-out.
                self.allowance = int(value)
            elif name == b"x-pilotage-pinned":
                self.pinned = True
        if self.allowance:
            self.deadline = asyncio.get_running_loop().time() + self.allowance / 1000
        self.request_id = (
            given.decode("ascii")
            if given is not None and _SANE_ID.match(given)
            else f"{_id_prefix}{next(_ids):014x}"
        )

    async def body(self, limit: int) -> bytes:
        """Read the body; refuse with 413 as soon as it is known to be larger than the limit."""
        if self.content_length is not None and int(self.content_length) > limit:
            raise Refused(
                f"the body has {self.content_length.decode()} bytes; at most {limit} are taken", 413
            )
        message = await self.receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        body: bytes = message["body"]
        if not message["more_body"] and len(body) <= limit:
            self.body_complete = True
            return body
        parts, size = [body], len(body)
        while message["more_body"] and size <= limit:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            parts.append(message["body"])
            size += len(message["body"])
        if size > limit:
            raise Refused(f"the body is larger than {limit} bytes, the most that is taken", 413)
        self.body_complete = True
        return b"".join(parts)
