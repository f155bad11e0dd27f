"""Models on the Hugging Face Hub, or on what speaks its protocol: a repository, a folder or a file of it."""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Read when the library is loaded. Its other way of downloading connects where nobody judges the address, and what
# a team serves is nobody else's business.
os.environ["HF_HUB_DISABLE_XET"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"  # noqa: S105 - no token, but whether to look for one
import httpx2
from huggingface_hub import HfApi, HfFileSystem, close_session, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pilotage_runtime.failure import Reason, Stage, StartFailure, disk_full
from pilotage_runtime.sources import address, connect, credentials
from pilotage_runtime.sources.checksum import Checksum
from pilotage_runtime.sources.parts import RemoteFile
from pilotage_runtime.sources.transfer import CHUNK_BYTES

_URI = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([^?#@]*))?\Z", re.ASCII)
_TOKEN, _ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"
_HUB = "https://huggingface.co"
_TIMEOUT = httpx2.Timeout(30, connect=10)
_MAX_REDIRECTS = 5
_PARTIAL_CONTENT = 206


class HfStore:
    """A repository at the commit that its revision names now: nothing of a commit ever changes."""

    def __init__(self, uri: str, credentials_dir: Path, allow_private: bool) -> None:
        parts = _URI.match(uri)
        if parts is None:
            raise _failure(
                Reason.INVALID_URI,
                f"{uri!r} should be hf://ORGANISATION/REPOSITORY, then @REVISION and /PATH where wanted",
            )
        self._repository, self._revision, self._path = parts[1], parts[2], (parts[3] or "").strip("/")
        given = credentials.read(credentials_dir, (_TOKEN, _ENDPOINT), _TOKEN)
        if credentials_dir.is_dir() and not given:
            raise credentials.missing(f"the Secret of credentialsSecretRef lacks {_TOKEN}")
        self._token = given.get(_TOKEN)
        self._endpoint = given.get(_ENDPOINT, _HUB).rstrip("/")
        set_client_factory(lambda: _client(allow_private))
        close_session()
        self._client = _client(allow_private)
        self._commit = ""
        self._infos: dict[str, dict[str, Any]] = {}

    def files(self) -> list[RemoteFile]:
        """Find the commit, then list its files at the path."""
        with self._explained():
            api = HfApi(endpoint=self._endpoint, token=self._token or False)
            self._commit = api.model_info(self._repository, revision=self._revision).sha or ""
            hub = HfFileSystem(
                endpoint=self._endpoint,
                token=self._token or False,
                skip_instance_cache=True,
                use_listings_cache=False,
            )
            root = f"{self._repository}@{self._commit}"
            path = f"{root}/{self._path}" if self._path else root
            try:
                info = hub.info(path)
                found: Any = {path: info} if info["type"] == "file" else hub.find(path, detail=True)
            except FileNotFoundError:
                raise _failure(Reason.NOT_FOUND, f"{self._repository} holds no {self._path}") from None
        above = len(path.rpartition("/")[0] if path in found else path) + 1
        files = [self._remote(name[above:], name[len(root) + 1 :], found[name]) for name in sorted(found)]
        if not files:
            raise _failure(Reason.NOT_FOUND, f"{self._repository} holds nothing below {self._path or '/'}")
        return files

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Ask for a range; the Hub may answer with all of a small file."""
        if file.size == 0:
            return
        url = f"{self._endpoint}/{self._repository}/resolve/{self._commit}/{quote(file.key)}"
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        with self._explained(), self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code not in (200, _PARTIAL_CONTENT):
                raise self._answered(answer.status_code, url)
            if answer.status_code == _PARTIAL_CONTENT:
                yield from answer.iter_raw(CHUNK_BYTES)
                return
            at = 0
            for chunk in answer.iter_raw(CHUNK_BYTES):
                if wanted := chunk[max(start - at, 0) : None if end is None else max(end - at, 0)]:
                    yield wanted
                at += len(chunk)

    def checksum(self, file: RemoteFile) -> Checksum | None:
        """Take the sha256 of a large file, Git's own hash of a small one."""
        info = self._infos[file.key]
        if large := info.get("lfs"):
            return Checksum("sha256", bytes.fromhex(large["sha256"]))
        return Checksum("git", bytes.fromhex(info["blob_id"])) if info.get("blob_id") else None

    def close(self) -> None:
        """Close every connection, the library's own too."""
        self._client.close()
        close_session()

    def _remote(self, name: str, key: str, info: dict[str, Any]) -> RemoteFile:
        self._infos[key] = info
        # A hash of the content where there is one: it says that a file is the same in another commit.
        version = (info.get("lfs") or {}).get("sha256") or info.get("blob_id") or self._commit
        return RemoteFile(name, key, int(info["size"]), version)

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # what httpx and the library raise
            if own := connect.own_failure(error):
                raise own from error
            if isinstance(error, OSError) and disk_full(error):
                raise
            raise self._store_failure(error) from error

    def _store_failure(self, error: Exception) -> StartFailure:
        name, text = type(error).__name__, " ".join(str(error).split())[:300]
        if isinstance(error, GatedRepoError):
            return self._answered(403, self._repository)
        if isinstance(error, RevisionNotFoundError):
            return _failure(Reason.NOT_FOUND, f"{self._repository} has no revision {self._revision}")
        if isinstance(error, RepositoryNotFoundError) and self._token is None:
            return credentials.missing(
                f"{self._repository} is not there, or is private: name a Secret with {_TOKEN} in credentialsSecretRef"
            )
        if isinstance(error, HfHubHTTPError):
            return self._answered(error.response.status_code, self._repository)
        if isinstance(error, httpx2.TimeoutException):
            return _failure(Reason.TIMED_OUT, f"the hub did not answer in time: {text or name}")
        if isinstance(error, httpx2.RemoteProtocolError):
            return _failure(Reason.TRUNCATED, f"the hub broke off in the middle: {text or name}")
        return _failure(Reason.STORE_UNAVAILABLE, f"the hub cannot be read: {name}: {text}")

    def _answered(self, status: int, what: str) -> StartFailure:
        if status in (401, 403):
            whose = f"this {_TOKEN}" if self._token else f"who has no {_TOKEN}"
            return _failure(Reason.ACCESS_DENIED, f"the hub answered {status} for {what} to {whose}")
        reason = Reason.NOT_FOUND if status == 404 else Reason.STORE_UNAVAILABLE
        return _failure(reason, f"the hub answered {status} for {what}")


class _Judging(httpx2.HTTPTransport):
    """Connects to judged addresses only, for each redirect anew."""

    def __init__(self, allow_private: bool) -> None:
        super().__init__(verify=httpx2.create_ssl_context(), trust_env=False)
        self._allow_private = allow_private

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        pinned = address.resolve(host, request.url.port or 443, allow_private=self._allow_private)[0]
        # The header Host was set from the URL before.
        request.extensions = {**request.extensions, "sni_hostname": host}
        asked, request.url = request.url, request.url.copy_with(host=pinned)
        try:
            return super().handle_request(request)
        finally:
            # A relative redirect and the rule for Authorization go by the name.
            request.url = asked


def _client(allow_private: bool) -> httpx2.Client:
    return httpx2.Client(
        transport=_Judging(allow_private), follow_redirects=True, max_redirects=_MAX_REDIRECTS, timeout=_TIMEOUT,
        trust_env=False,
    )  # fmt: skip


def _failure(reason: Reason, message: str) -> StartFailure:
    return StartFailure(Stage.DOWNLOAD, reason, message)
