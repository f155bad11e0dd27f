"""Where aiohttp may connect to, whichever store's driver drives it.

Names are judged when they are resolved, and every address once more when its socket is made: aiohttp asks no
resolver about a URL, or a redirect, that holds an address itself.
"""

import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from pilotage_runtime.failure import StartFailure
from pilotage_runtime.sources import address


def connector_arguments(*, allow_private: bool) -> dict[str, Any]:
    """Give the arguments of a TCPConnector that connects to judged addresses only."""

    def judged_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address.check(sockaddr[0], sockaddr[0], allow_private=allow_private)
        return socket.socket(family, kind, protocol)

    return {"resolver": _JudgingResolver(allow_private), "socket_factory": judged_socket}


def own_failure(error: BaseException | None) -> StartFailure | None:
    """Find our own failure (an address, the size limit) inside what the libraries made of it."""
    while error is not None:
        if isinstance(error, StartFailure):
            return error
        error = error.__cause__ or error.__context__
    return None


class _JudgingResolver(AbstractResolver):
    """Resolves for each connection, redirects to other regions included, and connects to nothing else."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        del family
        return [
            ResolveResult(
                hostname=host,
                host=found,
                port=port,
                family=socket.AF_INET6 if ":" in found else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for found in address.resolve(host, port, allow_private=self._allow_private)
        ]

    async def close(self) -> None:
        """Hold nothing."""
