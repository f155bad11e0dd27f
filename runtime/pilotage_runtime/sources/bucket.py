"""A bucket and a name in it: how a URI of an object store says where a model is, and what lies there."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.sources.parts import RemoteFile


class Place(NamedTuple):
    """An object, or everything below a prefix."""

    bucket: str
    key: str
    noun: str  # what the store calls a bucket

    @property
    def path(self) -> str:
        """As fsspec's drivers write it."""
        return f"{self.bucket}/{self.key}"

    def files(self, store: Any, remote: Callable[[str, dict[str, Any]], RemoteFile]) -> list[RemoteFile]:
        """List the object, or every object below the prefix; `remote` reads its name below it and the driver's entry."""
        try:
            info = store.info(self.path)
        except FileNotFoundError:
            raise self._missing(f"no {self.key}") from None
        if info["type"] == "file":
            return [remote(self.key.rpartition("/")[2], info)]
        found: dict[str, dict[str, Any]] = store.find(self.path, detail=True)
        files = [
            remote(name[len(self.path) + 1 :], found[name])
            for name in sorted(found)
            # A "folder" made by a console is an empty object of that name.
            if found[name]["type"] == "file" and not name.endswith("/")
        ]
        if not files:
            raise self._missing(f"nothing below {self.key}")
        return files

    def _missing(self, what: str) -> StartFailure:
        return StartFailure(Stage.DOWNLOAD, Reason.NOT_FOUND, f"the {self.noun} {self.bucket} holds {what}")


def place(
    uri: str, scheme: str, names: re.Pattern[str], *, noun: str = "bucket", last: str = "NAME"
) -> Place:
    """Read SCHEME://BUCKET/NAME; raise StartFailure unless the bucket's name can be one."""
    parts = urlsplit(uri)
    bucket, key = parts.netloc, parts.path.strip("/")
    if not names.match(bucket) or not key or parts.query or parts.fragment:
        raise StartFailure(
            Stage.DOWNLOAD,
            Reason.INVALID_URI,
            f"{uri!r} should be {scheme}://{noun.upper()}/{last}, a file or a folder of the {noun}",
        )
    return Place(bucket, key, noun)
