"""Models that answer piece by piece: each stream has a thread, which runs only as fast as its caller reads."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pilotage_runtime.errors import BusyError, ModelFailedError, TooLateError
from pilotage_runtime.loaders.base import StreamingModel

Piece = Mapping[str, np.ndarray]

MAX_STREAMS = 64
_END = object()


class Streams:
    """The streams of one model that are open now."""

    def __init__(self, name: str, model: StreamingModel) -> None:
        self._name = name
        self._model = model
        self.open = 0

    async def run(
        self, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], deadline: float | None
    ) -> AsyncGenerator[Piece]:
        """Yield pieces as they come; closing this closes the model's generator in its own thread."""
        if self.open >= MAX_STREAMS:
            raise BusyError(self.open)
        self.open += 1
        loop = asyncio.get_running_loop()
        # A thread of its own: generators may hold what belongs to the thread that began them.
        thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        pieces: Iterator[Piece] | None = None
        try:
            async with asyncio.timeout_at(deadline):
                pieces = await loop.run_in_executor(thread, self._begin, inputs, parameters)
            while True:
                async with asyncio.timeout_at(deadline):
                    piece: Any = await loop.run_in_executor(thread, self._step, pieces)
                if piece is _END:
                    return
                yield piece
        except TimeoutError as late:
            raise TooLateError from late
        finally:
            # Behind a step that still runs: nobody waits for it, and the model is closed after it.
            closing = thread.submit(_close, pieces)
            closing.add_done_callback(lambda _: self._ended(loop))
            thread.shutdown(wait=False)

    def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        def count() -> None:
            self.open -= 1

        if not loop.is_closed():
            loop.call_soon_threadsafe(count)

    def _begin(self, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any]) -> Iterator[Piece]:
        try:
            return iter(self._model.stream(inputs, parameters))
        except BaseException as error:
            raise ModelFailedError.raised(self._name, error) from error

    def _step(self, pieces: Iterator[Piece] | None) -> Any:
        assert pieces is not None, "begun before the first step"
        try:
            return next(pieces, _END)
        except BaseException as error:
            raise ModelFailedError.raised(self._name, error) from error


def _close(pieces: Any) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
