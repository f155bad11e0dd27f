"""Where logged payloads go: to an address that takes batches of CloudEvents, or to a file."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

BATCH_TYPE = "application/cloudevents-batch+json"
ATTEMPT_SECONDS = 5
_AGAIN = frozenset({408, 425, 429})  # and every 5xx


class UnsentError(Exception):
    """A sink did not take events; whether it may at another time."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


class Sink(Protocol):
    """Takes events."""

    async def send(self, events: Sequence[bytes]) -> None:
        """Send all of them once, in bounded time; raise UnsentError."""
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...


class HttpSink:
    """Posts batches in CloudEvents' batched JSON format."""

    def __init__(self, url: str) -> None:
        import httpx  # noqa: PLC0415 - only where payloads are logged

        self._url = url
        self._failures = httpx.HTTPError
        # Like the sources of models: only to where it was told, through no proxy of the environment.
        self._client = httpx.AsyncClient(
            timeout=ATTEMPT_SECONDS, trust_env=False, verify=httpx.create_ssl_context()
        )

    async def send(self, events: Sequence[bytes]) -> None:
        """Post one batch; only its status is read, for a body may be endless."""
        body = b"[" + b",".join(events) + b"]"
        try:
            async with (
                asyncio.timeout(ATTEMPT_SECONDS),
                self._client.stream(
                    "POST", self._url, content=body, headers={"content-type": BATCH_TYPE}
                ) as answer,
            ):
                status = answer.status_code
        except (self._failures, TimeoutError) as error:
            raise UnsentError(f"{type(error).__name__}: {error}", again=True) from error
        if not 200 <= status < 300:
            raise UnsentError(f"status {status}", again=status >= 500 or status in _AGAIN)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class FileSink:
    """Appends one JSON object a line; several workers may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def send(self, events: Sequence[bytes]) -> None:
        """Append all of them in one write."""
        try:
            await asyncio.to_thread(self._append, b"".join(event + b"\n" for event in events))
        except OSError as error:
            raise UnsentError(f"{self._path}: {error.strerror}", again=False) from error

    async def close(self) -> None:
        """Nothing is held."""

    def _append(self, lines: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            left = memoryview(lines)
            while left:
                left = left[file.write(left) or 0 :]
