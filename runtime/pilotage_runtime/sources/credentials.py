"""The keys of the mounted Secret: one file each, named as the stores' own SDKs name them."""

from collections.abc import Sequence
from pathlib import Path

from pilotage_runtime.failure import Reason, Stage, StartFailure


def read(folder: Path, names: Sequence[str], needed: str) -> dict[str, str]:
    """Read the keys that the store knows; a Secret was named, but is not there, where the folder is empty."""
    if not folder.is_dir():
        return {}
    if not any(folder.iterdir()):
        raise missing(
            f"the Secret that spec.model.credentialsSecretRef names is not there, or is empty; it needs {needed}"
        )
    found = {name: _text(folder / name) for name in names if (folder / name).is_file()}
    return {name: value for name, value in found.items() if value}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except UnicodeDecodeError as error:
        raise missing(f"{path.name} in the Secret is no text: write it as the store gave it") from error


def missing(message: str) -> StartFailure:
    """Say which credentials a person has to give."""
    return StartFailure(Stage.DOWNLOAD, Reason.CREDENTIALS_MISSING, message)
