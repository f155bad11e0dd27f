"""Models in Azure Blob Storage: a blob, or everything below a prefix."""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from adlfs import AzureBlobFileSystem
from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob.aio import BlobServiceClient
from fsspec.asyn import sync

from pilotage_runtime.failure import Reason, Stage, StartFailure, disk_full
from pilotage_runtime.sources import bucket, connect, credentials
from pilotage_runtime.sources.checksum import Checksum
from pilotage_runtime.sources.parts import RemoteFile, VersionChangedError

_STRING = "AZURE_STORAGE_CONNECTION_STRING"
_ACCOUNT, _KEY, _SAS = "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"
_NEEDED = f"{_STRING}, or {_ACCOUNT} with {_KEY} or {_SAS}, or {_ACCOUNT} alone"
_CONTAINER = re.compile(r"[a-z0-9$][a-z0-9-]{1,61}[a-z0-9]\Z")
_ACCOUNT_NAME = re.compile(r"[a-z0-9]{3,24}\Z")
# The identity that Azure's webhook grants to the pod itself.
_POD_IDENTITY = "AZURE_FEDERATED_TOKEN_FILE"


class AzStore:
    """A container and a blob or prefix, of the account that the mounted Secret names."""

    def __init__(self, uri: str, credentials_dir: Path, allow_private: bool) -> None:
        self._place = bucket.place(uri, "az", _CONTAINER, noun="container")
        self._given = credentials.read(credentials_dir, (_STRING, _ACCOUNT, _KEY, _SAS), _NEEDED)
        if _STRING not in self._given and not _ACCOUNT_NAME.match(self._given.get(_ACCOUNT, "")):
            raise credentials.missing(
                f"an az:// URI does not name its account: name a Secret in credentialsSecretRef with {_NEEDED}"
            )
        self._allow_private = allow_private
        self._store = self._connect()
        self._sums: dict[str, bytes] = {}

    def files(self) -> list[RemoteFile]:
        """List the blob, or every blob below the prefix."""
        with self._explained():
            return self._place.files(self._store, self._remote)

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Ask for a range under the condition that the blob is the listed one."""
        if file.size == 0:
            return
        with self._explained():
            data: Any = sync(self._store.loop, self._range, file, start, end)
        yield data

    async def _range(self, file: RemoteFile, start: int, end: int | None) -> bytes:
        condition: dict[str, Any] = {}
        if file.version:
            condition = {"etag": file.version, "match_condition": MatchConditions.IfNotModified}
        async with self._store.service_client.get_blob_client(self._place.bucket, file.key) as blob:
            length = None if end is None else end - start
            # As it lies there, in whatever content coding: the digest is the file's.
            answer = await blob.download_blob(
                offset=start, length=length, max_concurrency=1, decompress=False, **condition
            )
            return await answer.readall()

    def checksum(self, file: RemoteFile) -> Checksum | None:
        """Take the MD5 that the uploader left, if it did."""
        return Checksum("md5", self._sums[file.key]) if file.key in self._sums else None

    def close(self) -> None:
        """Leave connections to adlfs, which closes them with its event loop."""

    def _remote(self, name: str, info: dict[str, Any]) -> RemoteFile:
        key = info["name"].partition("/")[2]
        settings = info.get("content_settings") or {}
        if settings.get("content_md5"):
            self._sums[key] = bytes(settings["content_md5"])
        return RemoteFile(name, key, int(info["size"]), info.get("etag") or None)

    def _connect(self) -> Any:
        try:
            return _Judged(
                self._given.get(_STRING),
                self._given.get(_ACCOUNT, ""),
                self._credential(),
                self._allow_private,
            )
        except ValueError as error:
            # Its text may hold the key.
            raise credentials.missing(f"{_STRING} in the Secret is malformed") from error

    def _credential(self) -> Any:
        """Say who asks: what the Secret says, or what the cloud says that the pod is, or nobody."""
        if named := self._given.get(_KEY) or self._given.get(_SAS, "").removeprefix("?"):
            return named
        if _POD_IDENTITY in os.environ and _STRING not in self._given:
            from azure.identity.aio import WorkloadIdentityCredential  # noqa: PLC0415 - only in pods that have one

            return WorkloadIdentityCredential()
        return None

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except StartFailure:
            raise
        except Exception as error:  # adlfs lets through what azure-core, aiohttp and asyncio raise
            if own := connect.own_failure(error):
                raise own from error
            if isinstance(error, OSError) and disk_full(error):
                raise
            if isinstance(error, (ResourceModifiedError, ResourceNotFoundError)):
                raise VersionChangedError from error
            raise self._store_failure(error) from error

    def _store_failure(self, error: Exception) -> StartFailure:
        name, text = type(error).__name__, " ".join(str(error).split())[:300]
        status = error.status_code if isinstance(error, HttpResponseError) else None
        if isinstance(error, (ClientAuthenticationError, PermissionError)) or status in (401, 403, 409):
            if self._given.keys() == {_ACCOUNT} and _POD_IDENTITY not in os.environ:
                return credentials.missing(
                    f"the container {self._place.bucket} is not public: the Secret needs {_NEEDED}"
                )
            return _failure(
                Reason.ACCESS_DENIED, f"the store refuses these keys for {self._place.bucket}: {text}"
            )
        if isinstance(error, (IncompleteReadError, aiohttp.ClientPayloadError)):
            return _failure(Reason.TRUNCATED, f"the store broke off in the middle: {text or name}")
        timed_out = isinstance(error, (ServiceRequestError, ServiceResponseError)) and "imeout" in text
        if timed_out or isinstance(error, TimeoutError):
            return _failure(Reason.TIMED_OUT, f"the store did not answer in time: {text or name}")
        return _failure(Reason.STORE_UNAVAILABLE, f"the store cannot be read: {name}: {text}")


class _Judged(AzureBlobFileSystem):
    """The driver with connections of ours: it takes none from outside, nor a number of retries."""

    cachable = False

    def __init__(
        self, connection_string: str | None, account: str, credential: Any, allow_private: bool
    ) -> None:
        self._ours = (connection_string, account, credential, allow_private)
        super().__init__(account_name=account, anon=True, use_listings_cache=False)

    def do_connect(self) -> None:
        """Make the client within the driver's event loop."""
        sync(self.loop, self._do_connect)

    async def _do_connect(self) -> None:
        connection_string, account, credential, allow_private = self._ours
        connector = aiohttp.TCPConnector(**connect.connector_arguments(allow_private=allow_private))
        settings: dict[str, Any] = {
            "transport": AioHttpTransport(
                session=aiohttp.ClientSession(connector=connector, auto_decompress=False), session_owner=True
            ),
            "credential": credential,
            # Retries are made, counted and logged in one place, which is fetch.
            "retry_total": 0,
            "connection_timeout": 10,
            "read_timeout": 30,
        }
        if connection_string is not None:
            self.service_client = BlobServiceClient.from_connection_string(connection_string, **settings)
        else:
            self.service_client = BlobServiceClient(f"https://{account}.blob.core.windows.net", **settings)


def _failure(reason: Reason, message: str) -> StartFailure:
    return StartFailure(Stage.DOWNLOAD, reason, message)
