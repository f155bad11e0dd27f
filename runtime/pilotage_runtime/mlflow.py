"""What MLflow writes beside a model: `MLmodel` says where the model's own file is, what it takes, and a sample.

    flavors: {sklearn: {pickled_model: model.pkl, …}, …}
    signature: {inputs: '[{"name": "age", "type": "double"}]', outputs: …}      JSON in YAML
    saved_input_example_info: {artifact_path: input_example.json, type: dataframe, …}

Nothing of MLflow is needed to read it. It fills gaps: what the model or contract.json says counts first.
"""

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from pilotage_runtime.failure import Reason, Stage, StartFailure

MLMODEL_FILE = "MLmodel"
_MOST_BYTES = 2**20
# Where each flavour says which file is the model; the flavour python_function wraps one of these.
_PLACES: dict[str, tuple[str, ...]] = {
    "onnx": ("data",),
    "xgboost": ("data", "model_data"),
    "lightgbm": ("data", "model_data"),
    "catboost": ("data", "model_data"),
    "sklearn": ("pickled_model", "model_data"),
    "pytorch": ("model_data",),
    "tensorflow": ("saved_model_dir", "data"),
}


@dataclass(frozen=True, slots=True)
class Signature:
    """What MLflow recorded: the columns of a table, and the rows of an example."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()


def model_path(folder: Path, stage: Stage) -> Path | None:
    """Find the model that `MLmodel` names, below its folder; None where the folder is not MLflow's."""
    document = _read(folder, stage)
    if document is None:
        return None
    stated = document.get("flavors")
    flavors: dict[str, Any] = stated if isinstance(stated, dict) else {}
    for flavor, places in _PLACES.items():
        options = flavors.get(flavor)
        if not isinstance(options, dict):
            continue
        for place in places:
            if isinstance(named := options.get(place), str):
                found = _below(folder, named, stage)
                # Keras and PyTorch have a folder whose file has a fixed name.
                inner = [found / name for name in ("data/model.keras", "model.keras", "model.pth", "model")]
                return next((path for path in inner if path.exists()), found)
    known = ", ".join(_PLACES)
    came = ", ".join(map(str, flavors)) or "none"
    raise StartFailure(
        stage,
        Reason.UNKNOWN_FORMAT,
        f"{MLMODEL_FILE} names no model that is served: its flavors are {came}, served are {known}",
    )


def signature(folder: Path) -> Signature | None:
    """Read the table's columns and an example; None where there is no MLmodel or it says nothing of use."""
    document = _read(folder, Stage.LOAD)
    if document is None:
        return None
    stated = document.get("signature")
    inputs = _json(stated.get("inputs")) if isinstance(stated, dict) else None
    columns = tuple(
        column["name"]
        for column in (inputs if isinstance(inputs, list) else ())
        if isinstance(column, dict) and isinstance(column.get("name"), str) and column.get("type") != "tensor"
    )
    return Signature(columns, _example(folder, document, columns))


def _example(
    folder: Path, document: dict[str, Any], columns: tuple[str, ...]
) -> tuple[tuple[float, ...], ...]:
    """The example's rows, where they are numbers and as wide as the columns."""
    info = document.get("saved_input_example_info")
    name = info.get("artifact_path") if isinstance(info, dict) else None
    path = folder / name if isinstance(name, str) and "/" not in name else None
    if path is None or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return ()
    example = _json(path.read_text(errors="replace"))
    if isinstance(example, dict):
        if columns and example.get("columns") not in (None, list(columns)):
            return ()
        example = example.get("data", example.get("inputs"))
    rows = example if isinstance(example, list) else []
    good = bool(rows) and all(
        isinstance(row, list)
        and len(row) == (len(columns) or len(rows[0]))
        and all(type(number) in (int, float) and isfinite(number) for number in row)
        for row in rows
    )
    return tuple(tuple(float(number) for number in row) for row in rows) if good else ()


def _below(folder: Path, named: str, stage: Stage) -> Path:
    path = folder / named
    try:
        resolved, root, there = path.resolve(), folder.resolve(), path.exists()
    except (OSError, ValueError) as error:
        raise StartFailure(
            stage, Reason.INVALID_MODEL, f"{MLMODEL_FILE} names {named!r}, which is no file's name: {error}"
        ) from error
    # Nor may it be the folder itself, whose MLmodel would be asked again.
    if root not in resolved.parents:
        raise StartFailure(
            stage, Reason.INVALID_MODEL, f"{MLMODEL_FILE} names {named!r}, which is not inside its folder"
        )
    if not there:
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{MLMODEL_FILE} names {named!r}, which is not there")
    return path


def _read(folder: Path, stage: Stage) -> dict[str, Any] | None:
    path = folder / MLMODEL_FILE
    if not path.is_file():
        return None
    try:
        import yaml  # noqa: PLC0415 - only what MLflow wrote needs it
    except ImportError as error:
        raise StartFailure(
            stage,
            Reason.LOAD_FAILED,
            f"{MLMODEL_FILE} needs a library that is missing ({error}): pip install 'pilotage[runtime]'",
        ) from error
    if path.stat().st_size > _MOST_BYTES:
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{MLMODEL_FILE} is larger than {_MOST_BYTES} bytes")
    try:
        document = yaml.safe_load(path.read_text())
    except Exception as error:  # a date or a number that is none raises what Python does
        text = " ".join(str(error).split())[:200]
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{MLMODEL_FILE} is no YAML: {text}") from error
    if not isinstance(document, dict):
        raise StartFailure(stage, Reason.INVALID_MODEL, f"{MLMODEL_FILE} should be a mapping")
    return document


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
