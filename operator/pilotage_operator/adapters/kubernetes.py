"""The API server, spoken to in plain dictionaries."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import orjson
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from pilotage_operator.adapters.resources import CHILDREN, EVENT, MODEL_DEPLOYMENT, POD, Resource
from pilotage_operator.core import names

_TIMEOUT_SECONDS = 10.0
_LOG_TIMEOUT_SECONDS = 2.0
"""A log comes from the pod's node, which may be away: no decision waits for it."""
_USER_AGENT = "pilotage-operator"
_APPLY = "application/apply-patch+yaml"


class ClusterError(Exception):
    """The API server refused, or could not be reached."""

    def __init__(self, code: int, message: str, said: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.said = said or message
        """The API server's own words, without what was asked of it."""

    @property
    def conflict(self) -> bool:
        """Somebody else wrote first, or the name is taken."""
        return self.code == 409

    @property
    def refused(self) -> bool:
        """What was sent is not accepted: invalid, against a policy, or above a quota. It is the user's to mend."""
        return self.code in {400, 403, 422}


class Cluster:
    """A connection to the API server."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> Self:
        """Connect as the pod's service account, or as KUBECONFIG says outside a cluster."""
        configuration = client.Configuration()
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any] | None:
        return await self._request("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None, *, labels: str = ""
    ) -> list[dict[str, Any]]:
        """List the objects of a kind; an API that the cluster does not serve has none."""
        query = {"labelSelector": labels} if labels else {}
        found = await self._request("GET", resource.path(namespace), query)
        # Items of a list carry neither their kind nor their version.
        told = {"apiVersion": resource.api_version, "kind": resource.kind}
        return [] if found is None else [{**told, **item} for item in found["items"]]

    async def end_of_log(
        self, namespace: str, pod: str, container: str, *, lines: int, most_bytes: int
    ) -> bytes:
        """Read the last lines that a container wrote; nothing where the pod is gone."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(most_bytes)}
        path = f"{POD.path(namespace, pod)}/log"
        found = await self._sent("GET", path, query, seconds=_LOG_TIMEOUT_SECONDS)
        return b"" if found is None else found[:most_bytes]

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows this kind."""
        found = await self._request("GET", resource.root)
        return found is not None and any(r["name"] == resource.plural for r in found.get("resources", []))

    async def apply(
        self, manifest: dict[str, Any], namespace: str, *, force: bool, manager: str = names.FIELD_MANAGER
    ) -> dict[str, Any]:
        """Apply a child on the server's side, as the field manager of this operator."""
        resource = CHILDREN[manifest["kind"]]
        query = {"fieldManager": manager, "force": str(force).lower()}
        path = resource.path(namespace, manifest["metadata"]["name"])
        return await self._written("PATCH", path, query, manifest, _APPLY)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        await self._request(
            "DELETE", CHILDREN[kind].path(namespace, name), body={"propagationPolicy": "Background"}
        )

    async def write_status(
        self, namespace: str, name: str, status: dict[str, Any], resource_version: str
    ) -> dict[str, Any]:
        """Replace the status; refused with a conflict if the object changed since it was read."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": namespace, "resourceVersion": resource_version},
            "status": status,
        }
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        path = f"{MODEL_DEPLOYMENT.path(namespace, name)}/status"
        return await self._written("PATCH", path, query, body, _APPLY)

    async def create(self, resource: Resource, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._written("POST", resource.path(namespace), query, manifest, "application/json")

    async def replace(self, resource: Resource, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Put an object in the place of the version that it names; a conflict if that is not the latest."""
        path = resource.path(namespace, manifest["metadata"]["name"])
        return await self._written("PUT", path, {}, manifest, "application/json")

    async def record(self, namespace: str, event: dict[str, Any]) -> None:
        """Write an Event; one that is there already was told before."""
        try:
            await self.create(EVENT, namespace, event)
        except ClusterError as error:
            if not error.conflict:
                raise

    async def _written(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any], content_type: str
    ) -> dict[str, Any]:
        written = await self._request(method, path, query, body, content_type)
        if written is None:
            raise ClusterError(404, f"{method} {path}: not found")
        return written

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any] | None:
        content = await self._sent(method, path, query, body, content_type)
        return None if content is None else orjson.loads(content)

    async def _sent(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        *,
        seconds: float = _TIMEOUT_SECONDS,
    ) -> bytes | None:
        """Send a request; what was answered, or None where nothing is there."""
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": _USER_AGENT}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._api.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            response = await self._api.call_api(method, url, headers, body=body, _request_timeout=seconds)
            content: bytes = await response.read()
        except (aiohttp.ClientError, TimeoutError, ApiException) as error:
            raise ClusterError(0, f"{method} {path}: {error!r}") from error
        if response.status == 404:
            return None
        if response.status >= 400:
            said = _reason(content)
            raise ClusterError(response.status, f"{method} {path}: {said}", said)
        return content


def _reason(content: bytes) -> str:
    """The API server's own sentence."""
    try:
        told = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content[:500].decode(errors="replace")
    return told.get("message", "") if isinstance(told, dict) else str(told)
