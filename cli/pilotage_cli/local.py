"""A model that lies on this machine: nothing has fetched it, so what is stated of its content is compared here."""

import os
from collections.abc import Sequence
from pathlib import Path

from pilotage_cli.errors import EXIT_USAGE, CommandError
from pilotage_cli.flags import variable
from pilotage_runtime.catalog import Location
from pilotage_runtime.digest import digest
from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.settings import FetchSettings, ServeSettings


def verify(path: Path, locations: Sequence[Location], settings: ServeSettings) -> None:
    """Raise unless the model has the digest that is stated; refuse to say nothing of its signature."""
    for name in FetchSettings.model_fields:
        if name.startswith("signature_") and os.environ.get(variable(FetchSettings, name)):
            # To check it takes the signature's file out of the folder for a while, which is not ours to change.
            folder = (path.parent if path.is_file() else path).resolve()
            raise CommandError(
                f"--{name.replace('_', '-')} ({variable(FetchSettings, name)}): a signature is checked of what is "
                f"fetched: name the folder as {folder.as_uri()}, which is copied into the cache",
                EXIT_USAGE,
            )
    stated = settings.model_digest
    if stated is None:
        return
    if len(locations) == 1:
        found = digest(locations[0].root)
        if found != stated:
            raise StartFailure(
                Stage.VERIFY,
                Reason.DIGEST_MISMATCH,
                f"{path} has digest {found}, but --digest is {stated}",
            )
    elif not settings.trusted:  # else it says of which of them the code may run
        there = ", ".join(f"{one.model}/{one.version}" for one in locations[:8])
        raise CommandError(
            f"--digest is that of one model, but there are {len(locations)}: {there}; name the folder of one",
            EXIT_USAGE,
        )
