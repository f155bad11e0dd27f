"""What a folder holds: one model, versions of one, or a repository of many.

model.onnx                     one model, version 1, named by the settings
FOLDER/model.onnx              the same, with what lies beside it (contract.json, external data)
FOLDER/3/model.onnx            versions of one model: nothing at the top but folders with numbers for names
FOLDER/fraud/3/model.onnx      a repository: nothing at the top but folders, each a model
FOLDER/fraud/model.onnx        the same, of a model with one version
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from pilotage_runtime.failure import Reason, Stage, StartFailure

_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
NAMES = "letters, digits, '.', '_' and '-', at most 253"
# Beside models, not models.
_ASIDE = frozenset({"lost+found", "__pycache__"})

logger = logging.getLogger(__name__)


class Location(NamedTuple):
    """Where one version of a model lies."""

    model: str
    version: str
    root: Path


def discover(root: Path, name: str) -> list[Location]:
    """List what `root` holds, by name and version, the latest version last; `name` is the one model's.

    Of many folders, those whose names can be no model's are left out.
    """
    if not root.is_dir():
        return [Location(name, "1", root)]
    entries = [
        path for path in sorted(root.iterdir()) if not path.name.startswith(".") and path.name not in _ASIDE
    ]
    if not entries or any(not path.is_dir() for path in entries):
        return [Location(name, "1", root)]
    if versions := _versions(root, name):
        return versions
    named = [path for path in entries if is_name(path.name)]
    for path in entries:
        if named and path not in named:
            logger.warning("%s; it is left out", _unnamed(path.name))
    return [location for path in named or entries for location in find(root, path.name)]


def is_name(model: str) -> bool:
    """Whether a model can have this name."""
    return _NAME.match(model) is not None


def find(root: Path, model: str) -> list[Location]:
    """List the versions of one model of a repository; none where it has no such model."""
    if not is_name(model):
        raise StartFailure(Stage.LOAD, Reason.UNKNOWN_FORMAT, _unnamed(model))
    folder = root / model
    if not folder.is_dir():
        return []
    return _versions(folder, model) or [Location(model, "1", folder)]


def _unnamed(folder: str) -> str:
    return f"the folder {folder[:60]!r} cannot be a model's name: {NAMES}"


def _versions(folder: Path, model: str) -> list[Location]:
    found = [path for path in folder.iterdir() if path.is_dir() and _VERSION.match(path.name)]
    others = [
        path
        for path in folder.iterdir()
        if path not in found and path.is_dir() and not path.name.startswith(".")
    ]
    if others:
        return []
    return [Location(model, path.name, path) for path in sorted(found, key=lambda path: int(path.name))]
