"""One stack a machine: a lock file that names who holds it."""

from __future__ import annotations

import datetime as dt
import fcntl
import getpass
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pilotage_dev import paths
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Generator

FILE = Path("/var/lib/pilotage-dev.lock")


@dataclass(frozen=True)
class Owner:
    """Who brought the stack up, from which clone, and when."""

    pid: int
    user: str
    clone: str
    since: str

    @classmethod
    def me(cls) -> Owner:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), os.environ.get("SUDO_USER") or getpass.getuser(), str(paths.REPOSITORY), now)

    def __str__(self) -> str:
        return f"{self.user} from {self.clone} since {self.since} (pid {self.pid})"


def owner(file: Path = FILE) -> Owner | None:
    """Return who holds the stack, or held it when it was killed."""
    try:
        return Owner(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def held(file: Path = FILE) -> Generator[None]:
    """Hold the lock while the stack comes up or goes down; say who holds it if another does."""
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(
                f"the stack of this machine is going up or down just now, by {owner(file) or 'another'}: "
                "wait for it to finish"
            ) from None
        yield


def claim(file: Path = FILE) -> None:
    """Name the caller as the stack's owner; refuse while another clone owns it."""
    holder = owner(file)
    if holder is not None and holder.clone != str(paths.REPOSITORY):
        raise StackError(
            f"a stack of another clone is up on this machine, of {holder}: "
            f"stop it first with `{holder.clone}/dev/dev down`"
        )
    file.write_text(json.dumps(asdict(Owner.me())) + "\n")


def release(file: Path = FILE) -> None:
    """Name nobody: the stack is down."""
    file.write_text("")
