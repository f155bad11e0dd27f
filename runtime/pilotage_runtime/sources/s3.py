"""Models in S3 and what speaks its protocol: an object, or everything below a prefix."""

import base64
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import botocore.exceptions
import s3fs
from fsspec.asyn import sync

from pilotage_runtime.failure import Reason, Stage, StartFailure, disk_full
from pilotage_runtime.sources import address, bucket, connect, credentials
from pilotage_runtime.sources.checksum import Checksum
from pilotage_runtime.sources.parts import RemoteFile, VersionChangedError

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_NEEDED = " and ".join(_KEYS)
_NAMES = (*_KEYS, "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
# Roles that a cloud grants to the pod itself.
_POD_IDENTITY = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_CHECKSUMS = (("ChecksumSHA256", "sha256"), ("ChecksumSHA1", "sha1"), ("ChecksumCRC32", "crc32"))


class S3Store:
    """A bucket and a key or prefix, with the keys of the mounted Secret."""

    def __init__(self, uri: str, credentials_dir: Path, allow_private: bool) -> None:
        self._place = bucket.place(uri, "s3", _BUCKET, last="KEY")
        self._credentials = credentials.read(credentials_dir, _NAMES, _NEEDED)
        lacking = [name for name in _KEYS if credentials_dir.is_dir() and name not in self._credentials]
        if lacking:
            raise credentials.missing(
                f"the Secret of credentialsSecretRef lacks {' and '.join(lacking)}; it has "
                f"{sorted(self._credentials) or 'no such key'}"
            )
        self._allow_private = allow_private
        self._store = self._connect()

    def files(self) -> list[RemoteFile]:
        """List the object, or every object below the prefix."""
        with self._explained():
            return self._place.files(self._store, _remote)

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Ask for a range under the condition that the object is the listed one."""
        wanted: dict[str, Any] = {"Bucket": self._place.bucket, "Key": file.key}
        if file.size != 0:
            wanted["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if file.version:
            wanted["IfMatch"] = file.version
        with self._explained():
            body = self._store.call_s3("get_object", **wanted)["Body"]
            try:
                data: Any = sync(self._store.loop, body.read)
            finally:
                body.close()
        yield data

    def checksum(self, file: RemoteFile) -> Checksum | None:
        """Take a checksum that the uploader's SDK left, unless it is one of the parts of an upload."""
        wanted = {"IfMatch": file.version} if file.version else {}
        with self._explained():
            head = self._store.call_s3(
                "head_object", Bucket=self._place.bucket, Key=file.key, ChecksumMode="ENABLED", **wanted
            )
        for field, algorithm in _CHECKSUMS:
            if head.get(field) and head.get("ChecksumType") != "COMPOSITE" and "-" not in head[field]:
                return Checksum(algorithm, base64.b64decode(head[field]))
        return None

    def close(self) -> None:
        """Leave connections to s3fs, which closes them with its event loop."""

    def _connect(self) -> Any:
        endpoint = self._credentials.get("AWS_ENDPOINT_URL")
        if endpoint:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise _failure(
                    Reason.INVALID_URI, f"AWS_ENDPOINT_URL should be http(s)://HOST, but is {endpoint!r}"
                )
            # Said before anything is tried: a refused address is no store that is down.
            address.resolve(parts.hostname, parts.port or 443, allow_private=self._allow_private)
        # Retries are made, counted and logged in one place, which is fetch: neither s3fs nor botocore makes its own.
        key, secret = (self._credentials.get(name) for name in _KEYS)
        store = s3fs.S3FileSystem(
            anon=key is None and not any(name in os.environ for name in _POD_IDENTITY),
            key=key,
            secret=secret,
            token=self._credentials.get("AWS_SESSION_TOKEN"),
            client_kwargs={
                "endpoint_url": endpoint,
                "region_name": self._credentials.get("AWS_REGION")
                or os.environ.get("AWS_REGION")
                or "us-east-1",
            },
            config_kwargs={
                "connect_timeout": 10,
                "read_timeout": 30,
                "retries": {"max_attempts": 1},
                # Whole files are compared here; some stores send a whole file's checksum with each of its parts.
                "response_checksum_validation": "when_required",
                "connector_args": connect.connector_arguments(allow_private=self._allow_private),
            },
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        store.retries = 1
        return store

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except StartFailure:
            raise
        except Exception as error:  # s3fs lets through what botocore, aiohttp and asyncio raise
            if own := connect.own_failure(error):
                raise own from error
            if isinstance(error, OSError) and disk_full(error):
                raise
            # Whatever is asked for was listed: what is not there has been deleted since.
            if isinstance(error, FileNotFoundError) or _is_another_version(error):
                raise VersionChangedError from error
            raise self._store_failure(error) from error

    def _store_failure(self, error: Exception) -> StartFailure:
        name, text = type(error).__name__, " ".join(str(error).split())[:300]
        if isinstance(error, PermissionError):
            if not self._credentials:
                return credentials.missing(
                    f"the bucket {self._place.bucket} is not public: name a Secret with {_NEEDED} in credentialsSecretRef"
                )
            return _failure(
                Reason.ACCESS_DENIED, f"the store refuses these keys for {self._place.bucket}: {text}"
            )
        if isinstance(error, botocore.exceptions.NoCredentialsError):
            return credentials.missing(f"the Secret needs {_NEEDED}")
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


def _remote(name: str, info: dict[str, Any]) -> RemoteFile:
    key = info["name"].partition("/")[2]
    return RemoteFile(name, key, int(info["size"]), info.get("ETag") or None)


def _is_another_version(error: BaseException) -> bool:
    cause = error.__cause__
    answer = cause.response if isinstance(cause, botocore.exceptions.ClientError) else {}
    return answer.get("Error", {}).get("Code") in ("PreconditionFailed", "412")


def _failure(reason: Reason, message: str) -> StartFailure:
    return StartFailure(Stage.DOWNLOAD, reason, message)
