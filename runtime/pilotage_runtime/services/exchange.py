"""What every request brings in its head, whichever path it takes through the server."""

import asyncio
import itertools
import os
import re
import time
from collections.abc import Iterable
from typing import NamedTuple

from pilotage_runtime.services.asgi import JSON, Header, error_body

_SANE_ID = re.compile(rb"[A-Za-z0-9._:=+/-]{1,128}\Z")
_DIGITS = re.compile(rb"[0-9]{1,9}\Z")
_ids = itertools.count()
_id_prefix = os.urandom(9).hex()  # workers are spawned: each has its own


class Answer(NamedTuple):
    """A whole answer; the body may come in parts, which are sent one after the other."""

    status: int
    body: bytes | list[bytes | memoryview]
    error: str | None = None
    headers: tuple[Header, ...] = ()
    content_type: bytes = JSON


# Both clocks may be read up to a millisecond early or late (uvloop's has no smaller unit), and a proxy's is not ours.
_CLOCKS_SECONDS = 0.005


def is_late(deadline: float | None) -> bool:
    """Tell whether a deadline, by the loop's clock, has come."""
    return deadline is not None and asyncio.get_running_loop().time() >= deadline - _CLOCKS_SECONDS


def refusal(status: int, message: str, *headers: Header) -> Answer:
    """Answer an error."""
    return Answer(status, error_body(message), message, headers)


class Exchange:
    """What the head of a request says."""

    __slots__ = (
        "allowance", "content_encoding", "content_length", "content_type", "deadline", "json_length", "method", "path",
        "pinned", "request_id", "started", "timeout_us", "traceparent",
    )  # fmt: skip

    def __init__(self, method: str, path: str, headers: Iterable[Header]) -> None:
        self.started = time.perf_counter()
        self.method = method
        self.path = path
        self.content_length: bytes | None = None
        self.content_type: bytes | None = None
        self.content_encoding: bytes | None = None
        self.json_length: bytes | None = None  # of the JSON before binary tensors
        self.deadline: float | None = None
        self.allowance = 0  # milliseconds that the caller waits
        self.timeout_us = 0  # the same, as the body's parameter says it
        self.pinned = False
        self.traceparent: bytes | None = None
        given: bytes | None = None
        for name, value in headers:
            if name == b"content-length":
                self.content_length = value
            elif name == b"content-type":
                self.content_type = value
            elif name == b"x-request-id":
                given = value
            elif name == b"inference-header-content-length":
                self.json_length = value
            elif name == b"content-encoding":
                self.content_encoding = value
            elif name == b"x-envoy-expected-rq-timeout-ms" and _DIGITS.match(value):
                # 0 is Envoy's word for no time-out.
                self.allowance = int(value)
            elif name == b"x-pilotage-pinned":
                self.pinned = True
            elif name == b"traceparent":
                self.traceparent = value
        if self.allowance:
            self.deadline = asyncio.get_running_loop().time() + self.allowance / 1000
        self.request_id = (
            given.decode("ascii")
            if given is not None and _SANE_ID.match(given)
            else f"{_id_prefix}{next(_ids):014x}"
        )

    def until(self, timeout_us: int) -> float | None:
        """Give the sooner of the head's deadline and the body's, by the loop's clock; 0 microseconds say nothing."""
        self.timeout_us = timeout_us
        if not timeout_us:
            return self.deadline
        own = asyncio.get_running_loop().time() + timeout_us / 1e6
        return own if self.deadline is None else min(own, self.deadline)

    @property
    def waits_ms(self) -> float:
        """How many milliseconds the caller waits; only of one that said so."""
        return min(value for value in (self.allowance, self.timeout_us / 1000) if value)
