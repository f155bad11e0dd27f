"""How `fetch` hands a model to `serve`: a folder that appears whole, and a marker that vouches for it.

MODEL_DIR/model/…          the files
MODEL_DIR/.fetched.json    written last: uri, digest, bytes
"""

from pathlib import Path

from pydantic import BaseModel, ValidationError

CONTENT = "model"
MARKER = ".fetched.json"


class Marker(BaseModel):
    """What was fetched."""

    uri: str
    digest: str
    bytes: int
    unpacked: str | None = None
    """Digest of the files that came out of an archive; `digest` is that of the archive itself."""


def read_marker(model_dir: Path) -> Marker | None:
    """Read the marker; None where the fetch has not ended well."""
    try:
        return Marker.model_validate_json((model_dir / MARKER).read_bytes())
    except (OSError, ValidationError):
        return None


def model_root(model_dir: Path) -> Path:
    """Find what to serve: what was fetched here, or else the path itself."""
    return model_dir / CONTENT if read_marker(model_dir) is not None else model_dir
