r"""A model's digest: of a file its sha256, of a folder the sha256 of its manifest.

A folder's manifest is what this prints, so that anybody can check it:

    find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum
"""

import hashlib
from pathlib import Path


def digest(root: Path) -> str:
    """Digest a model, a file or a folder: one that holds one file at its top is that file."""
    if root.is_file():
        return f"sha256:{_sha256(root)}"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if len(files) == 1 and files[0].parent == root:
        return f"sha256:{_sha256(files[0])}"
    manifest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix().encode(), path) for path in files):
        manifest.update(_sha256(path).encode() + b"  " + name + b"\n")
    return f"sha256:{manifest.hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
