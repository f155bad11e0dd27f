"""The bodies that FastAPI serves: as large as an inference's may be, and of the same sum."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import Request

from pilotage_runtime.errors import Refused
from pilotage_runtime.services.exchange import Answer
from pilotage_runtime.services.held import Held


@asynccontextmanager
async def document(request: Request, held: Held) -> AsyncGenerator[Any]:
    """Read a JSON body, which is held until the block ends; raise Refused."""
    if encoding := request.headers.get("content-encoding"):
        raise Refused(
            f"content encoding {encoding[:60]} came, none is taken here; /v2/models/MODEL/infer takes gzip",
            415,
        )
    kind = request.headers.get("content-type")
    if kind is not None and "json" not in kind.lower():
        raise Refused(f"content type {kind[:100]} came, application/json is expected", 415)
    async with body(request, held) as raw:
        try:
            parsed = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise Refused(f"the body is not JSON: {error}") from error
        yield parsed


@asynccontextmanager
async def body(request: Request, held: Held) -> AsyncGenerator[bytes]:
    """Read a body, which is held until the block ends; raise Refused."""
    reading = _Reading(held)
    try:
        yield await reading.whole(request.stream())
    finally:
        held.release(reading)


class _Reading:
    """One body on its way."""

    def __init__(self, held: Held) -> None:
        self.size = 0
        self.arriving = False
        self._held = held
        self._refused: Answer | None = None
        self._patience = asyncio.timeout(None)

    async def whole(self, parts: AsyncIterator[bytes]) -> bytes:
        """Gather it; raise Refused where it, or all of them together, grow too large."""
        held, gathered = self._held, list[bytes]()
        held.arrives(self)
        try:
            async with self._patience:
                async for part in parts:
                    gathered.append(part)
                    self.size += len(part)
                    held.size += len(part)
                    if self.size > held.each:
                        raise Refused(
                            f"the body is larger than {held.each} bytes, the most that is taken",
                            413,
                            (b"connection", b"close"),
                        )
                    if held.size > held.most:
                        held.make_room(self)
                        if self._refused is not None:
                            break
        except TimeoutError:
            if self._refused is None:
                raise
        if self._refused is not None:
            raise Refused(self._refused.error or "", self._refused.status, *self._refused.headers)
        held.arrived(self)
        return b"".join(gathered)

    def answer(self, answer: Answer) -> None:
        """Take a refusal; whoever waits for the next part is woken."""
        self._refused = answer
        self._held.release(self)
        if self._patience.when() is None:
            self._patience.reschedule(asyncio.get_running_loop().time())
