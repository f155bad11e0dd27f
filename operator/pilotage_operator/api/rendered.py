"""Files that are rendered from code and checked in: the command that prints, renews or checks them."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
"""The repository: where rendered files lie."""


def command(arguments: Sequence[str] | None, *, run: str, what: str, files: Mapping[Path, str]) -> int:
    """Print, write or check `files`, path → text; `run` is how a person calls this, `what` its purpose."""
    parser = argparse.ArgumentParser(prog=run, description=f"Render {what}.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="renew the files that are checked in")
    mode.add_argument("--check", action="store_true", help="fail if a file differs from the code")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return 0
    if chosen.check:
        stale = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
        for path in stale:
            print(f"{path} differs from the code: run `{run} --write`")
        return 1 if stale else 0
    sys.stdout.write("\n".join(dict.fromkeys(files.values())))
    return 0
