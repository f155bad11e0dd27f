"""Renders the page of the command line from its parsers; `--write` renews it, `--check` compares it."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from pilotage_cli.__main__ import COMMANDS, parser
from pilotage_operator.api import rendered

HERE = Path(__file__).parent
_HEAD = """\
<!-- Rendered by `make docs` from the command line's own parsers. -->
# Reference: the command line

`pip install 'pilotage[runtime]'` brings `pilotage`; kubectl finds the same program as `kubectl pilotage`. What
`pilotage COMMAND --help` prints is on this page. A flag wins over its environment variable, which is named in
brackets. [How to serve on a laptop](../how-to/serve-on-a-laptop.md) shows them in use.

| exit status | when |
|---|---|
| 0 | it was done; for `serve`, Ctrl-C after it was ready |
| 1 | the model cannot be served, a request of `bench` failed, or an extra is not installed |
| 2 | the command was given something that it does not take |
| 75 | the model's store cannot be reached or refuses: trying again may help |
| 130 | Ctrl-C before it was done or ready |
"""


def page() -> str:
    """Render all commands."""
    return "\n".join([_HEAD, *(line for name in COMMANDS for line in _command(name))]) + "\n"


def _command(name: str) -> Iterator[str]:
    described = parser(name)
    yield f"## `pilotage {name}`\n"
    yield f"{(described.description or '').strip()}\n"
    examples = (described.epilog or "").strip()
    yield f"```text\n{examples}\n```\n"
    for group in described._action_groups:  # noqa: SLF001 - argparse offers no other way to ask
        rows = [_row(action) for action in group._group_actions if action.dest != "help"]  # noqa: SLF001
        if rows:
            yield f"| {group.title} | meaning |\n|---|---|"
            yield from rows
            yield ""


def _row(action: argparse.Action) -> str:
    shown = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar}`"
    if action.option_strings and action.nargs != 0:
        shown = ", ".join(f"`{option} {action.metavar}`" for option in action.option_strings)
    meaning = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return f"| {shown.replace('|', chr(92) + '|')} | {meaning} |"


if __name__ == "__main__":
    raise SystemExit(
        rendered.command(
            None, run="python docs/reference/cli.py", what="the command line", files={HERE / "cli.md": page()}
        )
    )
