"""Whether code in a model's files may run: only where the deployment says so, and says which files."""

from pilotage_runtime import digest
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders.base import LoadOptions


def require(file: ModelFile, options: LoadOptions) -> None:
    """Raise unless the model is trusted and its files, as they are now, have the digest that was stated."""
    stated = {"`trusted: true`": options.trusted, "`digest: sha256:…`": options.digest is not None}
    if missing := [name for name, there in stated.items() if not there]:
        raise StartFailure(
            Stage.LOAD,
            Reason.UNTRUSTED_FORMAT,
            f"{file.path.name} runs code when it is loaded, which takes {' and '.join(stated)}; "
            f"missing: {' and '.join(missing)}",
        )
    found = digest.digest(file.root or file.path)
    if found != options.digest:
        raise StartFailure(
            Stage.LOAD,
            Reason.DIGEST_MISMATCH,
            f"{file.path.name} is not loaded: its content has digest {found}, but {options.digest} was stated",
        )
