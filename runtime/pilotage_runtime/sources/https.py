"""Models by https: one file a URI."""

import re
from pathlib import Path
from urllib.parse import unquote

import httpx

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources import address
from pilotage_runtime.sources.transfer import CHUNK_BYTES, Transfer

MAX_REDIRECTS = 5
_TIMEOUT = httpx.Timeout(30, connect=10)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z")


class HttpsSource:
    """A model behind an https URL; each redirect is judged like the first address."""

    def __init__(self, uri: str, allow_private: bool) -> None:
        self._uri = uri
        self._allow_private = allow_private

    def download(self, into: Path, transfer: Transfer) -> None:
        """Stream the file to disk."""
        url = _parsed(self._uri)
        name = unquote(url.path.rpartition("/")[2])
        target = transfer.target(into, name if _PLAIN_NAME.match(name) else "model.onnx")
        try:
            # No proxy from the environment: it would resolve names where nobody judges the address.
            with httpx.Client(timeout=_TIMEOUT, trust_env=False, verify=httpx.create_ssl_context()) as client:
                for _ in range(MAX_REDIRECTS + 1):
                    redirect = self._get(client, url, target, transfer)
                    if redirect is None:
                        return
                    url = redirect
        except httpx.TimeoutException as error:
            raise _failure(Reason.TIMED_OUT, f"{url.host} did not answer in time") from error
        except httpx.RemoteProtocolError as error:
            raise _failure(
                Reason.TRUNCATED, f"{url.host} broke off after {transfer.bytes} bytes: {error}"
            ) from error
        except httpx.HTTPError as error:
            raise _failure(Reason.STORE_UNAVAILABLE, f"{url.host} cannot be reached: {error}") from error
        raise _failure(Reason.INVALID_URI, f"more than {MAX_REDIRECTS} redirects")

    def _get(
        self, client: httpx.Client, url: httpx.URL, target: Path, transfer: Transfer
    ) -> httpx.URL | None:
        pinned = address.resolve(url.host, url.port or 443, allow_private=self._allow_private)[0]
        request = client.build_request(
            "GET",
            url.copy_with(host=pinned),
            # Without a content coding: the digest is the file's, and a small answer must not unpack to a large one.
            headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.host},
        )
        response = client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                return _parsed(str(url.join(response.headers["location"])))
            _check_status(response, url)
            length = response.headers.get("content-length")
            if length is not None:
                transfer.expect(int(length))
            with target.open("wb") as file:
                for chunk in response.iter_raw(CHUNK_BYTES):
                    transfer.add(len(chunk))
                    file.write(chunk)
        finally:
            response.close()
        return None


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
    if status == 200:
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
