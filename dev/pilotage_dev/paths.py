"""Where things lie: the clone, the caches that outlive it, the state of the one stack of this machine."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
STATE = Path("/var/lib/pilotage-dev")


def cache() -> Path:
    """Return the folder for what is expensive to make and the same for every clone."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pilotage"
