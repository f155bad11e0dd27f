"""What a person points at: a file, a folder or a URI, and the model name that it suggests."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pilotage_cli.errors import EXIT_USAGE, CommandError

# A scheme of one letter would be a drive.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
# Words in a path that say nothing about what is in it.
_GENERIC = re.compile(r"(models?|latest|v?\d+|\.|\.\.|)\Z", re.IGNORECASE)
_ODD = re.compile(r"[^A-Za-z0-9._-]+")
_FALLBACK = "model"


class Target(NamedTuple):
    """Where the model is: here, or behind a URI."""

    text: str
    path: Path | None  # None: a URI
    name: str


def parse(text: str) -> Target:
    """Tell what `text` points at; a path that is not there is refused before anything starts."""
    path = _expanded(text)
    if not path.exists():
        if _URI.match(text):
            return Target(text, None, _name(unquote(_uri_path(text)).split("/")))
        beside = (
            sorted(found.name for found in path.parent.glob("*.onnx"))[:5] if path.parent.is_dir() else []
        )
        hint = f"; beside it is {', '.join(beside)}" if beside else ""
        raise CommandError(
            f"{text} does not exist{hint}; name a model file, a folder, or a URI such as s3://BUCKET/KEY",
            EXIT_USAGE,
        )
    parts = list(path.parts) if path.is_file() else list(path.resolve().parts)
    return Target(text, path, _name(parts))


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~NOBODY
        return Path(text)


def _uri_path(text: str) -> str:
    try:
        return urlsplit(text).path
    except ValueError as error:
        raise CommandError(
            f"{text} is no URI: {error}; name a model file, a folder, or a URI such as s3://BUCKET/KEY",
            EXIT_USAGE,
        ) from None


def _name(parts: list[str]) -> str:
    """Take the last part that says something: iris/1/model.onnx is iris."""
    for part in reversed(parts):
        # Only at the end of a name is a dot the beginning of a suffix.
        stem = re.sub(r"\.[A-Za-z]{1,12}\Z", "", part)
        name = _ODD.sub("-", stem).strip("._-")[:200]
        if name and not _GENERIC.match(name):
            return name
    return _FALLBACK
