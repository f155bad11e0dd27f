"""Models by https: one file a URI."""

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from urllib.parse import unquote

import httpx

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources import address
from pilotage_runtime.sources.checksum import Checksum
from pilotage_runtime.sources.parts import PART_BYTES, RemoteFile, VersionChangedError
from pilotage_runtime.sources.transfer import CHUNK_BYTES

MAX_REDIRECTS = 5
_TIMEOUT = httpx.Timeout(30, connect=10)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)\Z")
_UNSATISFIABLE = 416
_PARTIAL_CONTENT = 206


class HttpsStore:
    """A model behind an https URL; each redirect is judged like the first address.

    The first request asks for the first part: its answer tells the size and whether there are parts at all,
    and for a small model it is the only one.
    """

    def __init__(self, uri: str, allow_private: bool) -> None:
        self._url = _parsed(uri)
        self._allow_private = allow_private
        # No proxy from the environment: it would resolve names where nobody judges the address.
        self._client = httpx.Client(timeout=_TIMEOUT, trust_env=False, verify=httpx.create_ssl_context())
        self._first: httpx.Response | None = None
        self._lock = threading.Lock()

    def files(self) -> list[RemoteFile]:
        """Ask for the first part, and keep the answer for whoever reads it."""
        name = unquote(self._url.path.rpartition("/")[2])
        name = name if _PLAIN_NAME.match(name) else "model.onnx"
        with self._explained():
            answer = self._ask({"Range": f"bytes=0-{PART_BYTES - 1}"})
        if answer.status_code == _UNSATISFIABLE:
            answer.close()
            return [RemoteFile(name, name, 0, None)]
        self._first = answer
        if answer.status_code != _PARTIAL_CONTENT:
            length = answer.headers.get("content-length")
            return [RemoteFile(name, name, None if length is None else int(length), None)]
        start, _, size = _content_range(answer)
        if start != 0:
            raise _failure(
                Reason.STORE_UNAVAILABLE, f"{self._url.host} answered another range than was asked for"
            )
        etag = answer.headers.get("etag", "")
        # A weak one is the same for contents that only mean the same.
        return [RemoteFile(name, name, size, etag if etag.startswith('"') else None)]

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Give the first answer's bytes, or ask for a range of the same content."""
        with self._explained():
            answer = self._take_first() if start == 0 else None
            if answer is None:
                answer = self._ask(
                    {"Range": f"bytes={start}-{(end or 0) - 1}", "If-Range": file.version or ""}
                )
                try:
                    _check_part(answer, file, start, end)
                except BaseException:
                    answer.close()
                    raise
            elif answer.status_code == _PARTIAL_CONTENT and end is None and (file.size or 0) > PART_BYTES:
                # The store gives parts, but does not name their version: so all of it, in one piece.
                answer.close()
                answer = self._ask({})
            try:
                yield from answer.iter_raw(CHUNK_BYTES)
            finally:
                answer.close()

    def checksum(self, file: RemoteFile) -> Checksum | None:
        """Know none: there is no header that servers agree on."""
        del file

    def close(self) -> None:
        """Close every connection, that of an answer that nobody read too."""
        if answer := self._take_first():
            answer.close()
        self._client.close()

    def _take_first(self) -> httpx.Response | None:
        with self._lock:
            answer, self._first = self._first, None
            return answer

    def _ask(self, headers: dict[str, str]) -> httpx.Response:
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._get(url, headers)
            if not answer.has_redirect_location:
                try:
                    _check_status(answer, url)
                except BaseException:
                    answer.close()
                    raise
                return answer
            answer.close()
            url = _parsed(str(url.join(answer.headers["location"])))
        raise _failure(Reason.INVALID_URI, f"more than {MAX_REDIRECTS} redirects")

    def _get(self, url: httpx.URL, headers: dict[str, str]) -> httpx.Response:
        pinned = address.resolve(url.host, url.port or 443, allow_private=self._allow_private)[0]
        request = self._client.build_request(
            "GET",
            url.copy_with(host=pinned),
            # Without a content coding: the digest is the file's, and a small answer must not unpack to a large one.
            headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", **headers},
            extensions={"sni_hostname": url.host},
        )
        return self._client.send(request, stream=True)

    @contextmanager
    def _explained(self) -> Generator[None]:
        host = self._url.host
        try:
            yield
        except httpx.TimeoutException as error:
            raise _failure(Reason.TIMED_OUT, f"{host} did not answer in time") from error
        except httpx.RemoteProtocolError as error:
            raise _failure(Reason.TRUNCATED, f"{host} broke off: {error}") from error
        except httpx.HTTPError as error:
            raise _failure(Reason.STORE_UNAVAILABLE, f"{host} cannot be reached: {error}") from error


def _check_part(answer: httpx.Response, file: RemoteFile, start: int, end: int | None) -> None:
    """Refuse what is not the asked part of the listed version; a whole answer says that the version is another."""
    if answer.status_code != _PARTIAL_CONTENT:
        raise VersionChangedError
    found = _content_range(answer)
    if answer.headers.get("etag") != file.version or found != (start, (end or 0) - 1, file.size):
        raise VersionChangedError


def _content_range(answer: httpx.Response) -> tuple[int, int, int]:
    told = answer.headers.get("content-range", "")
    parts = _CONTENT_RANGE.match(told)
    if parts is None or parts[1] is None:
        raise _failure(Reason.STORE_UNAVAILABLE, f"the store answered a part with Content-Range {told!r}")
    return int(parts[1]), int(parts[2]), int(parts[3])


def _parsed(uri: str) -> httpx.URL:
    try:
        url = httpx.URL(uri)
    except httpx.InvalidURL as error:
        raise _failure(Reason.INVALID_URI, f"the model's URL is malformed: {error}") from error
    if url.scheme != "https" or not url.host:
        raise _failure(
            Reason.INVALID_URI, f"{url.scheme or 'no scheme'}://{url.host} came, an https URL is expected"
        )
    if url.userinfo:
        raise _failure(Reason.INVALID_URI, "a URL with a password in it would show it in status and logs")
    return url


def _check_status(response: httpx.Response, url: httpx.URL) -> None:
    status = response.status_code
    if status in (200, _PARTIAL_CONTENT, _UNSATISFIABLE):
        return
    if status in (404, 410):
        reason = Reason.NOT_FOUND
    elif status in (401, 403):
        reason = Reason.ACCESS_DENIED
    elif status in (408, 425, 429) or status >= 500:
        reason = Reason.STORE_UNAVAILABLE
    else:
        reason = Reason.INVALID_URI
    raise _failure(reason, f"{url.host} answered {status} for {url.path}")


def _failure(reason: Reason, message: str) -> StartFailure:
    return StartFailure(Stage.DOWNLOAD, reason, message)
