"""Models in S3 and what speaks its protocol: an object, or everything below a prefix."""

import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import botocore.exceptions
import s3fs
from aiohttp.abc import AbstractResolver, ResolveResult
from fsspec.callbacks import Callback

from pilotage_runtime.failure import Reason, Stage, StartFailure, disk_full
from pilotage_runtime.sources import address
from pilotage_runtime.sources.transfer import Transfer

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
# Roles that a cloud grants to the pod itself.
_POD_IDENTITY = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


class S3Source:
    """A bucket and a key or prefix, with the keys of the mounted Secret."""

    def __init__(self, uri: str, credentials_dir: Path, allow_private: bool) -> None:
        parts = urlsplit(uri)
        self._bucket, self._key = parts.netloc, parts.path.strip("/")
        if not _BUCKET.match(self._bucket) or not self._key or parts.query or parts.fragment:
            raise _failure(
                Reason.INVALID_URI, f"{uri!r} should be s3://BUCKET/KEY, a file or a folder of the bucket"
            )
        self._credentials = _read_credentials(credentials_dir)
        self._allow_private = allow_private

    def download(self, into: Path, transfer: Transfer) -> None:
        """Fetch the object, or every object below the prefix."""
        try:
            self._download(into, transfer)
        except Exception as error:  # s3fs lets through what botocore, aiohttp and asyncio raise
            if own := _start_failure(error):
                raise own from error
            if isinstance(error, OSError) and disk_full(error):
                raise
            raise self._store_failure(error) from error

    def _download(self, into: Path, transfer: Transfer) -> None:
        store = self._connect()
        path = f"{self._bucket}/{self._key}"
        try:
            info = store.info(path)
        except FileNotFoundError:
            raise _failure(Reason.NOT_FOUND, f"the bucket {self._bucket} holds no {self._key}") from None
        if info["type"] == "file":
            files = {self._key.rpartition("/")[2]: info}
        else:
            found = store.find(path, detail=True)
            # A "folder" made by a console is an empty object of that name.
            files = {name[len(path) + 1 :]: found[name] for name in sorted(found) if not name.endswith("/")}
        if not files:
            raise _failure(Reason.NOT_FOUND, f"the bucket {self._bucket} holds nothing below {self._key}")
        transfer.expect(sum(int(entry["size"]) for entry in files.values()))
        for name, entry in files.items():
            self._get(store, entry, transfer.target(into, name), transfer)

    def _get(self, store: Any, info: dict[str, Any], target: Path, transfer: Transfer) -> None:
        store.get_file(info["name"], str(target), callback=_Progress(transfer))
        came = target.stat().st_size
        if came != int(info["size"]):
            raise _failure(Reason.TRUNCATED, f"{info['name']} is {info['size']} bytes, of which {came} came")

    def _connect(self) -> Any:
        endpoint = self._credentials.get("AWS_ENDPOINT_URL")
        if endpoint:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise _failure(
                    Reason.INVALID_URI, f"AWS_ENDPOINT_URL should be http(s)://HOST, but is {endpoint!r}"
                )
            # aiohttp does not ask the resolver about an address; so it is judged here, as a name's first answer is.
            address.resolve(parts.hostname, parts.port or 443, allow_private=self._allow_private)
        # Retries are made, counted and logged in one place, which is fetch: neither s3fs nor botocore makes its own.
        key, secret = (self._credentials.get(name) for name in _KEYS)
        store = s3fs.S3FileSystem(
            anon=key is None and not any(name in os.environ for name in _POD_IDENTITY),
            key=key,
            secret=secret,
            client_kwargs={
                "endpoint_url": endpoint,
                "region_name": self._credentials.get("AWS_REGION", "us-east-1"),
            },
            config_kwargs={
                "connect_timeout": 10,
                "read_timeout": 30,
                "retries": {"max_attempts": 1},
                "connector_args": {"resolver": _JudgingResolver(self._allow_private)},
            },
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        store.retries = 1
        return store

    def _store_failure(self, error: Exception) -> StartFailure:
        name, text = type(error).__name__, " ".join(str(error).split())[:300]
        if isinstance(error, PermissionError):
            if not self._credentials:
                return _failure(
                    Reason.CREDENTIALS_MISSING,
                    f"the bucket {self._bucket} is not public: name a Secret with {' and '.join(_KEYS)} in "
                    "credentialsSecretRef",
                )
            return _failure(Reason.ACCESS_DENIED, f"the store refuses these keys for {self._bucket}: {text}")
        if isinstance(error, botocore.exceptions.NoCredentialsError):
            return _failure(Reason.CREDENTIALS_MISSING, f"the Secret needs {' and '.join(_KEYS)}")
        timeouts = (
            TimeoutError,
            botocore.exceptions.ReadTimeoutError,
            botocore.exceptions.ConnectTimeoutError,
        )
        if isinstance(error, timeouts):
            return _failure(Reason.TIMED_OUT, f"the store did not answer in time: {text or name}")
        if isinstance(error, (aiohttp.ClientPayloadError, botocore.exceptions.IncompleteReadError)):
            return _failure(Reason.TRUNCATED, f"the store broke off in the middle: {text or name}")
        return _failure(Reason.STORE_UNAVAILABLE, f"the store cannot be read: {name}: {text}")


class _Progress(Callback):
    """Lets the size limit stop a download while it runs."""

    def __init__(self, transfer: Transfer) -> None:
        super().__init__()
        self._transfer = transfer

    def relative_update(self, inc: int = 1) -> None:
        self._transfer.add(inc)


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


def _read_credentials(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    names = (*_KEYS, "AWS_ENDPOINT_URL", "AWS_REGION")
    found = {name: (folder / name).read_text().strip() for name in names if (folder / name).is_file()}
    if not any(folder.iterdir()):
        raise _failure(
            Reason.CREDENTIALS_MISSING,
            "the Secret that spec.model.credentialsSecretRef names is not there, or is empty; it needs"
            f" {' and '.join(_KEYS)}",
        )
    missing = [name for name in _KEYS if not found.get(name)]
    if missing:
        raise _failure(
            Reason.CREDENTIALS_MISSING,
            f"the Secret of credentialsSecretRef lacks {' and '.join(missing)}; it has {sorted(found) or 'no such key'}",
        )
    return found


def _start_failure(error: BaseException | None) -> StartFailure | None:
    """Find our own failure (an address, the size limit) inside what the libraries made of it."""
    while error is not None:
        if isinstance(error, StartFailure):
            return error
        error = error.__cause__ or error.__context__
    return None


def _failure(reason: Reason, message: str) -> StartFailure:
    return StartFailure(Stage.DOWNLOAD, reason, message)
