"""Messages that are still to come over gRPC, which holds what has come of them and tells nobody how much."""

import asyncio
from typing import Any

import grpc.aio

# For all of a message: how fast it comes, nobody can see.
MESSAGE_SECONDS = 60
# For a stream's next request, as long as Envoy lets a stream be silent.
STREAM_SECONDS = 300
# A message that comes in one go is never cut off for others.
_SPARED_SECONDS = 1
_LAST_SECONDS = 0.1


class CutOffError(Exception):
    """A message has not come in time, or stood in the way of others for longest."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Awaited:
    """The calls that wait for a message: so many, and each for so long."""

    def __init__(self, most: int) -> None:
        """Beyond the most, who has waited for longest is cut off: a call that is not whole keeps out no other."""
        self._most = most
        # In the order in which they began, with when.
        self._waiting: dict[asyncio.Timeout, float] = {}
        self._look: asyncio.TimerHandle | None = None

    async def message(self, context: grpc.aio.ServicerContext[Any, Any], seconds: float) -> Any:
        """Wait for a call's next message; grpc's EOF, which is false, where there is none. Raise CutOffError."""
        now = asyncio.get_running_loop().time()
        limit = asyncio.timeout_at(now + seconds)
        self._waiting[limit] = now
        try:
            async with limit:
                # Entered, for only then it can be cut off.
                if len(self._waiting) > self._most and self._look is None:
                    self._make_room()
                return await context.read()
        except TimeoutError:
            if limit in self._waiting:
                raise CutOffError(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"no whole message came within {seconds} s"
                ) from None
            raise CutOffError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"busy: more than {self._most} calls wait for their message, and this one for longest",
            ) from None
        finally:
            self._waiting.pop(limit, None)

    def _make_room(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._look = loop.time(), None
        while len(self._waiting) > self._most:
            oldest, since = next(iter(self._waiting.items()))
            if now < since + _SPARED_SECONDS:
                self._look = loop.call_at(since + _SPARED_SECONDS, self._make_room)
                break
            del self._waiting[oldest]
            # Its message may be here, and only this process have been too busy to look.
            oldest.reschedule(now + _LAST_SECONDS)
