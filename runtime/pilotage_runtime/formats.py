"""Which format a model's files have, told by content and never by name alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.loaders import onnx_file

_HEAD_BYTES = 512
_CODE_AT_LOAD: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    (
        "a Python pickle",
        lambda head: head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"),
    ),
    (
        "a zlib-compressed joblib dump",
        lambda head: head[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"),
    ),
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The file to load and its format."""

    path: Path
    format: str


def detect(root: Path, stage: Stage, stated: str | None = None) -> ModelFile:
    """Find the one model file in `root` (a file, or a folder); refuse what is not served, and say why."""
    path = root if root.is_file() else _candidate(root, stage)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for kind, is_kind in _CODE_AT_LOAD:
        if is_kind(head):
            raise StartFailure(
                stage,
                Reason.UNTRUSTED_FORMAT,
                f"{path.name} is {kind}, which runs code when it is loaded; convert the model to ONNX",
            )
    if not onnx_file.looks_like_onnx(head):
        if stated or not head:
            content = "an empty file" if not head else f"a file that begins with {head[:16]!r}"
            raise StartFailure(stage, Reason.INVALID_MODEL, f"{path.name} should be ONNX, but is {content}")
        raise StartFailure(
            stage,
            Reason.UNKNOWN_FORMAT,
            f"{path.name} begins with {head[:16]!r}, which is no ONNX; ONNX is served",
        )
    _vet(root, path, stage)
    return ModelFile(path, "ONNX")


def _candidate(folder: Path, stage: Stage) -> Path:
    if not folder.is_dir():
        raise StartFailure(
            stage, Reason.UNKNOWN_FORMAT, f"{folder} does not exist: there is no model to serve"
        )
    named = [path for path in sorted(folder.glob("*.onnx")) if path.is_file()]
    if len(named) == 1:
        return named[0]
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".json"]
    if not named and len(files) == 1:
        return files[0]
    found = ", ".join(path.name for path in named or files or sorted(folder.iterdir())) or "nothing"
    raise StartFailure(
        stage, Reason.UNKNOWN_FORMAT, f"the folder should hold one .onnx file at its top, but holds {found}"
    )


def _vet(root: Path, path: Path, stage: Stage) -> None:
    """Refuse a broken file, and external data that is not one of the model's own files."""
    try:
        locations = onnx_file.external_locations(path)
    except onnx_file.MalformedOnnxError as error:
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{path.name}: {error}") from error
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
