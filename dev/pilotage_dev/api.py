"""The stack's API server as its parts' readiness checks see it."""

from __future__ import annotations

import base64
import functools
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import yaml

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def _client(kubeconfig: str, _changed: int) -> httpx.Client:
    with open(kubeconfig) as file:  # noqa: PTH123 - the cache's key is a string
        config = yaml.safe_load(file)
    cluster = config["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return httpx.Client(
        base_url=cluster["server"],
        verify=ssl.create_default_context(cadata=authority),
        headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
        timeout=5,
        trust_env=False,
    )


def client(kubeconfig: Path) -> httpx.Client:
    """Return the connection of a kubeconfig's user; requests fail after 5 s unless told otherwise."""
    return _client(str(kubeconfig), kubeconfig.stat().st_mtime_ns)


def get(kubeconfig: Path, path: str) -> dict[str, Any] | None:
    """Return the object or list at the path; None where there is none, or nobody answers (yet)."""
    answer = _ask(kubeconfig, path)
    return answer.json() if answer is not None and answer.is_success else None


def healthy(kubeconfig: Path, path: str) -> bool:
    """Tell whether the API server answers the path with success."""
    answer = _ask(kubeconfig, path)
    return answer is not None and answer.is_success


def _ask(kubeconfig: Path, path: str) -> httpx.Response | None:
    try:
        return client(kubeconfig).get(path)
    except (httpx.TransportError, FileNotFoundError):
        return None


def answers(url: str) -> bool:
    """Tell whether a part's own health endpoint says that all is well; its certificate is its own, on this machine."""
    try:
        return httpx.get(url, verify=False, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


def text(url: str) -> str:
    """Return what a part answers at the URL; nothing while it does not."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).text
    except httpx.TransportError:
        return ""
