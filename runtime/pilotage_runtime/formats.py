"""Which file of a model is to be loaded, and by which loader: told by content and never by name alone."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pilotage_runtime import content, mlflow, sealed
from pilotage_runtime.content import FORMATS, RUN_CODE, BrokenContentError, Content, Unserved
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.loaders import onnx_file

CLASS_FILE = "model.py"
SAVED_MODEL_FILE = "saved_model.pb"
_CODE: dict[str, str] = {
    "Pickle": "a Python pickle, which runs code when it is loaded",
    "Joblib": "a joblib dump (a Python pickle), which runs code when it is loaded",
    "Python": "a Python class, which is code",
}
_MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The file to load and its format."""

    path: Path
    format: str
    content: bytes | None = None
    """What to load in place of the file's own bytes: a model that is encrypted where it lies."""
    root: Path | None = None
    """The model as it was fetched, a file or a folder, where that is not `path`."""

    @property
    def folder(self) -> Path:
        """Where contract.json and MLmodel lie."""
        if self.root is None:
            return self.path.parent
        return self.root.parent if self.root.is_file() else self.root


def choose(root: Path, stage: Stage, stated: str | None = None) -> Path:
    """Find the one model file in `root` (a file, or a folder), sealed or not; what else lies there is left alone."""
    return root if root.is_file() else _candidate(root, stage, stated)


def detect(
    root: Path,
    stage: Stage,
    stated: str | None = None,
    *,
    trusted: bool = False,
    opened: Callable[[Path], bytes | None] = lambda _: None,
) -> ModelFile:
    """Tell what the model file in `root` is; refuse what is not served, and say why.

    `opened` gives the bytes of a file that is encrypted, and None of one that is not.
    """
    path = choose(root, stage, stated)
    held = opened(path)
    is_class = path.name == CLASS_FILE and (path != root or stated == "Python")
    found = "Python" if is_class else _format(path, held, stage, stated)
    if stated is not None and stated != found and (stated, found) != ("Joblib", "Pickle"):
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{path.name} should be {stated}, but is {found}")
    if found in RUN_CODE and not trusted:
        raise StartFailure(
            stage,
            Reason.UNTRUSTED_FORMAT,
            f"{path.name} is {_CODE[found]}; convert the model to ONNX, or state `trusted: true` and its digest",
        )
    if found == "ONNX":
        _vet_onnx(root, path, held, stage)
    if found == "TensorFlow" and (held is not None or path.name != SAVED_MODEL_FILE):
        raise StartFailure(
            stage,
            Reason.INVALID_MODEL,
            f"{path.name} is a TensorFlow SavedModel, which is a folder: {SAVED_MODEL_FILE} with variables/ beside it",
        )
    return ModelFile(path, stated or found, held, root)


def _format(path: Path, held: bytes | None, stage: Stage, stated: str | None) -> str:
    try:
        inside = Content(path, held)
        found = content.recognise(inside)
    except BrokenContentError as error:
        wanted = f" should be {stated}, but is" if stated else ":"
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{path.name}{wanted} {error}") from error
    if isinstance(found, Unserved):
        raise StartFailure(stage, Reason.UNKNOWN_FORMAT, f"{path.name} is {found.what}; {found.mend}")
    if found is None:
        begins = f"begins with {inside.head[:16]!r}"
        if stated:
            raise StartFailure(
                stage, Reason.INVALID_MODEL, f"{path.name} should be {stated}, but it {begins}"
            )
        raise StartFailure(
            stage,
            Reason.UNKNOWN_FORMAT,
            f"{path.name} {begins}, which is no format that is served; served are {', '.join(FORMATS)}",
        )
    return found


def _candidate(folder: Path, stage: Stage, stated: str | None) -> Path:
    if not folder.is_dir():
        raise StartFailure(
            stage, Reason.UNKNOWN_FORMAT, f"{folder} does not exist: there is no model to serve"
        )
    if (named := mlflow.model_path(folder, stage)) is not None:
        return _candidate(named, stage, stated) if named.is_dir() else named
    if stated == "Python" or (stated is None and (folder / CLASS_FILE).is_file()):
        return _class_file(folder, stage, stated)
    if (folder / SAVED_MODEL_FILE).is_file():
        return folder / SAVED_MODEL_FILE
    named_onnx = [path for path in sorted(folder.glob("*.onnx")) if path.is_file()]
    if len(named_onnx) == 1 and stated in (None, "ONNX"):
        return named_onnx[0]
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    files = [folder / name for name in names[:_MOST_FILES] if (folder / name).is_file()]
    models = named_onnx or [path for path in files if _is_model(path, stated)]
    if len(models) != 1:
        # What is known to be no model, or wrongly made, is refused by its own sentence.
        models = models or [path for path in files if path.suffix not in {".json", ".sig"}]
    if len(models) == 1:
        return models[0]
    found = ", ".join(path.name for path in models or files) or "nothing"
    raise StartFailure(
        stage, Reason.UNKNOWN_FORMAT, f"the folder should hold one model file at its top, but holds {found}"
    )


def _class_file(folder: Path, stage: Stage, stated: str | None) -> Path:
    if not (folder / CLASS_FILE).is_file():
        raise StartFailure(
            stage, Reason.INVALID_MODEL, f"a Python model is a folder with {CLASS_FILE}, which is not there"
        )
    others = sorted(path.name for path in folder.glob("*.onnx"))
    if others and stated is None:
        raise StartFailure(
            stage,
            Reason.UNKNOWN_FORMAT,
            f"the folder holds {CLASS_FILE} and {', '.join(others)}: state the format, Python or ONNX",
        )
    return folder / CLASS_FILE


def _is_model(path: Path, stated: str | None) -> bool:
    try:
        inside = Content(path)
        if sealed.is_sealed(inside.head):  # of which format, only its key tells
            return True
        found = content.recognise(inside)
    except (BrokenContentError, OSError):
        return False
    return found in FORMATS and (stated is None or found == stated)


def _vet_onnx(root: Path, path: Path, held: bytes | None, stage: Stage) -> None:
    """Refuse a broken file, and external data that is not one of the model's own files."""
    try:
        locations = onnx_file.external_locations(path) if held is None else onnx_file.locations_in(held)
    except onnx_file.MalformedOnnxError as error:
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{path.name}: {error}") from error
    if locations and held is not None:
        raise StartFailure(
            stage,
            Reason.INVALID_MODEL,
            f"{path.name} is encrypted, but takes weights from {', '.join(sorted(locations))} beside it; "
            "save the model with its weights inside, in one file",
        )
    folder = path.parent.resolve() if root.is_file() else root.resolve()
    for location in sorted(locations):
        target = (path.parent / location).resolve()
        if not target.is_relative_to(folder):
            raise StartFailure(
                stage,
                Reason.INVALID_MODEL,
                f"{path.name} takes weights from {location!r}, outside its own folder; keep them beside the model",
            )
        if not target.is_file():
            raise StartFailure(
                stage,
                Reason.INVALID_MODEL,
                f"{path.name} takes weights from {location!r}, which is not there",
            )
