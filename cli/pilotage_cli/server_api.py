"""What a running server tells about itself, asked over HTTP with nothing but the standard library."""

import http.client
import json
import socket
from typing import Any, NamedTuple
from urllib.parse import quote

from pilotage_cli.errors import CommandError

_TIMEOUT_SECONDS = 10.0
REQUEST_ID = "pilotage-cli"
"""Marks this program's own questions in a server's log."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address as a browser takes it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class NotAnswering(Exception):  # noqa: N818 - a state of the other side, asked for again and again while it starts
    """Nobody answers there, or not in HTTP."""


class ServerApi:
    """A server's metadata, one connection a question."""

    def __init__(self, address: Address, timeout: float = _TIMEOUT_SECONDS) -> None:
        self.address = address
        self._timeout = timeout

    def ready(self) -> bool:
        """Whether it serves; False as long as nobody answers."""
        try:
            return self._ask("GET", "/v2/health/ready")[0] == 200
        except NotAnswering:
            return False

    def name(self) -> str:
        """What the server calls itself."""
        return str(self._json("GET", "/v2").get("name", ""))

    def index(self) -> list[dict[str, Any]]:
        """List all versions of all models with their states."""
        return self._json("POST", "/v2/repository/index")

    def metadata(self, model: str) -> dict[str, Any]:
        """Tell what a model takes and gives."""
        return self._json("GET", f"/v2/models/{quote(model, safe='')}")

    def example(self, model: str) -> dict[str, Any] | None:
        """Give the request that the server's own documentation shows for a model."""
        paths = self._json("GET", "/openapi.json").get("paths", {})
        operation = paths.get(f"/v2/models/{model}/infer", {}).get("post", {})
        content = operation.get("requestBody", {}).get("content", {})
        return content.get("application/json", {}).get("example")

    def _json(self, method: str, path: str) -> Any:
        status, body = self._ask(method, path)
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if status != 200 or answer is None:
            said = answer.get("error") if isinstance(answer, dict) else body[:200].decode(errors="replace")
            raise CommandError(f"{self.address.url}{path} answered {status}: {said}")
        return answer

    def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=self._timeout)
        try:
            connection.request(method, path, headers={"Connection": "close", "X-Request-Id": REQUEST_ID})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotAnswering(f"{self.address.url} does not answer: {error}") from error
        finally:
            connection.close()


def free_port(host: str) -> int:
    """Let the system pick a port that nobody uses."""
    with socket.create_server((host, 0), family=family(host)) as probe:
        return probe.getsockname()[1]


def family(host: str) -> socket.AddressFamily:
    """Tell which family an address is of."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
