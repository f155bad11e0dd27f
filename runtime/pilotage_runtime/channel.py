"""JSON lines between the supervisor and a worker; each side may ask, and answers what it is asked."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

# Of a line, which only a broken end writes longer: all versions that one server counts, with paths as long as can be.
LIMIT_BYTES = 2**25
# A library's error may quote the model's file as a whole, and is for a person to read.
_ERROR_CHARACTERS = 10_000
_GONE = {"error": "the process at the other end has gone"}

logger = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._gone = False

    async def handle(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the other end; its answer, or `error` where it has gone."""
        if self._gone or self._writer.is_closing():
            return dict(_GONE)
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send({"ask": number, **message})
        try:
            return await future
        finally:
            del self._waiting[number]

    async def run(self) -> None:
        """Answer and listen until the other end has gone."""
        try:
            while line := await self._reader.readline():
                message = orjson.loads(line)
                if "answer" in message:
                    future = self._waiting.get(message.pop("answer"))
                    if future is not None and not future.done():
                        future.set_result(message)
                else:
                    task = asyncio.create_task(self._answer(message.pop("ask"), message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except (ConnectionError, ValueError, asyncio.IncompleteReadError):
            logger.exception("the channel broke")
        finally:
            self._gone = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_result(dict(_GONE))

    async def _answer(self, number: int, message: Mapping[str, Any]) -> None:
        try:
            answer = await self._handler(message)
        except Exception as error:
            logger.exception("a step failed unexpectedly")
            answer = {"error": f"{type(error).__name__}: {error}"}
        if self._writer.is_closing():  # who asked has died meanwhile
            return
        if "error" in answer:
            answer = {**answer, "error": _fitting(answer["error"])}
        self._send({"answer": number, **answer})

    def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(orjson.dumps(message) + b"\n")


def _fitting(sentence: str) -> str:
    """Cut an error so that its line is taken, and without halves of characters, which JSON cannot carry."""
    cut = f"{sentence[:_ERROR_CHARACTERS]}…" if len(sentence) > _ERROR_CHARACTERS else sentence
    return cut.encode("utf-8", "replace").decode()
