"""Models in Google Cloud Storage: an object, or everything below a prefix."""

import base64
import json
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when the driver is loaded: the rest of it speaks gRPC, which connects where nobody judges the address.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
import aiohttp
import google.auth
import google.auth.exceptions
import requests
from fsspec.asyn import get_loop, sync
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from pilotage_runtime.failure import Reason, Stage, StartFailure, disk_full
from pilotage_runtime.sources import bucket, connect, credentials
from pilotage_runtime.sources.checksum import Checksum
from pilotage_runtime.sources.parts import RemoteFile, VersionChangedError

_KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_EMULATOR = "STORAGE_EMULATOR_HOST"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z")
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address, not a token
_KINDS = ("service_account", "authorized_user")
_METADATA_SECONDS = "1"


class GsStore:
    """A bucket and an object or prefix; with the key file of the mounted Secret, or as whoever the pod is."""

    def __init__(self, uri: str, credentials_dir: Path, allow_private: bool) -> None:
        self._place = bucket.place(uri, "gs", _BUCKET)
        given = credentials.read(credentials_dir, (_KEY_FILE, _EMULATOR), _KEY_FILE)
        if credentials_dir.is_dir() and not given:
            raise credentials.missing(
                f"the Secret of credentialsSecretRef lacks {_KEY_FILE}, the JSON of a key file"
            )
        self._identity: Any = _identity(given)
        self._store = _Once(
            token=self._identity or "anon",
            access="read_only",
            project="",
            endpoint_url=given.get(_EMULATOR),
            session_kwargs={
                "connector": sync(get_loop(), _connector, allow_private),
                "timeout": aiohttp.ClientTimeout(sock_connect=10, sock_read=30),
                "auto_decompress": False,
                "headers": {"Accept-Encoding": "identity"},
            },
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        self._infos: dict[str, dict[str, Any]] = {}

    def files(self) -> list[RemoteFile]:
        """List the object, or every object below the prefix."""
        with self._explained():
            return self._place.files(self._store, self._remote)

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Ask for a range of the object's listed generation."""
        with self._explained():
            try:
                data: Any = self._store.cat_file(file.key, start=start, end=end, generation=file.version)
            except FileNotFoundError as error:
                raise VersionChangedError from error
        yield data

    def checksum(self, file: RemoteFile) -> Checksum | None:
        """Take the checksum of the listing; an object put together from others has no MD5."""
        info = self._infos[file.key]
        for field, algorithm in (("md5Hash", "md5"), ("crc32c", "crc32c")):
            if info.get(field):
                return Checksum(algorithm, base64.b64decode(info[field]))
        return None

    def close(self) -> None:
        """Leave connections to gcsfs, which closes them with its event loop."""

    def _remote(self, name: str, info: dict[str, Any]) -> RemoteFile:
        self._infos[info["name"]] = info
        return RemoteFile(name, info["name"], int(info["size"]), info.get("generation") or None)

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except (StartFailure, VersionChangedError):
            raise
        except Exception as error:  # gcsfs lets through what aiohttp, requests and google-auth raise
            if own := connect.own_failure(error):
                raise own from error
            if isinstance(error, OSError) and disk_full(error):
                raise
            raise self._store_failure(error) from error

    def _store_failure(self, error: Exception) -> StartFailure:
        name, text = type(error).__name__, " ".join(str(error).split())[:300]
        denied = isinstance(error, HttpError) and error.code in (401, 403)
        if denied or text.startswith("Forbidden:"):
            if self._identity is None:
                return credentials.missing(
                    f"the bucket {self._place.bucket} is not public: name a Secret with {_KEY_FILE} in credentialsSecretRef"
                )
            return _failure(
                Reason.ACCESS_DENIED, f"the store refuses this account for {self._place.bucket}: {text}"
            )
        if isinstance(error, google.auth.exceptions.GoogleAuthError):
            return _failure(Reason.ACCESS_DENIED, f"Google gives no token for these credentials: {text}")
        if isinstance(error, (TimeoutError, requests.Timeout)):
            return _failure(Reason.TIMED_OUT, f"the store did not answer in time: {text or name}")
        if isinstance(error, aiohttp.ClientPayloadError):
            return _failure(Reason.TRUNCATED, f"the store broke off in the middle: {text or name}")
        return _failure(Reason.STORE_UNAVAILABLE, f"the store cannot be read: {name}: {text}")


class _Once(GCSFileSystem):
    """Retries are made, counted and logged in one place, which is fetch: the driver makes none of its own.

    An object that lies there in a content coding comes as it lies there: the digest is the file's, and a small part
    must not unpack to a large one. The store gives it so, and parts of it at all, only to who takes that coding.
    """

    _request = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)  # noqa: SLF001

    def _get_headers(self, *given: Any, **named: Any) -> dict[str, str]:
        found: dict[str, str] = super()._get_headers(*given, **named)
        return {**found, "Accept-Encoding": "gzip"} if "Range" in found else found


async def _connector(allow_private: bool) -> aiohttp.TCPConnector:
    """Make a connector, which must happen within the driver's event loop."""
    return aiohttp.TCPConnector(**connect.connector_arguments(allow_private=allow_private))


def _identity(given: dict[str, str]) -> Any:
    """Find who asks: the key file of the Secret, or what the cloud says that the pod is, or nobody."""
    if _KEY_FILE in given:
        return _checked(given[_KEY_FILE])
    if _EMULATOR in given:
        return None
    # Outside of Google's cloud nobody answers at the metadata service's address.
    os.environ.setdefault("GCE_METADATA_TIMEOUT", _METADATA_SECONDS)
    try:
        return google.auth.default(scopes=[_SCOPE])[0]
    except google.auth.exceptions.GoogleAuthError:
        return None


def _checked(text: str) -> dict[str, Any]:
    """Refuse a key file that would make the library ask elsewhere, or run something: a Secret is a tenant's text."""
    try:
        key = json.loads(text)
        kind, token_uri = key.get("type"), key.get("token_uri", _TOKEN_URI)
    except (ValueError, AttributeError):
        raise credentials.missing(f"{_KEY_FILE} in the Secret should be the JSON of a key file") from None
    if kind not in _KINDS or token_uri != _TOKEN_URI:
        raise credentials.missing(
            f"{_KEY_FILE} in the Secret is of type {kind!r} with token_uri {token_uri!r}; taken are "
            f"{' and '.join(_KINDS)} with {_TOKEN_URI}"
        )
    return key


def _failure(reason: Reason, message: str) -> StartFailure:
    return StartFailure(Stage.DOWNLOAD, reason, message)
