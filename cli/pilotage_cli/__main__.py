"""`pilotage`: a table of commands, each a module that is imported when it is asked for.

So `pilotage --help` imports nothing but the standard library, and a command needs only its own extra.
"""

import argparse
import importlib
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast

from pilotage_cli.errors import EXIT_INTERRUPTED, CommandError

_DESCRIPTION = "Serve, look at and load model servers from a terminal."
_EXAMPLES = """\
examples:
  pilotage serve model.onnx              serve a model on this machine
  pilotage inspect model.onnx            what it takes and gives, without serving it
  pilotage bench --seconds 5             load the server that runs here

`pilotage COMMAND --help` tells the rest.
"""


class Command(NamedTuple):
    """Where a command is, what it is for, and which extra of the package it needs."""

    module: str
    help: str
    extra: str | None = None


class _Module(Protocol):
    """What each command's module has."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments, description and examples."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Do it, and give the exit status."""
        ...


COMMANDS = {
    "serve": Command(
        "pilotage_cli.serve", "serve a model, versions of one or many models on this machine", "runtime"
    ),
    "inspect": Command("pilotage_cli.inspection", "print what a model takes and gives", "runtime"),
    "bench": Command("pilotage_cli.bench", "load a running server and print its latencies"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except CommandError as error:
        print(f"pilotage: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("pilotage: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `pilotage inspect … | head` closes the pipe early; nothing is left to say, the last flush included.
        sys.stdout = None
        return 0


def parser(name: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of one command, or the one that lists them all."""
    if name is None:
        listing = argparse.ArgumentParser(
            prog="pilotage",
            description=_DESCRIPTION,
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        listing.add_argument("--version", action="store_true", help="print the version")
        commands = listing.add_subparsers(dest="command", metavar="COMMAND")
        for known, command in COMMANDS.items():
            commands.add_parser(known, help=command.help, add_help=False)
        return listing
    made = argparse.ArgumentParser(
        prog=f"pilotage {name}", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _imported(name).configure(made)
    return made


def _run(given: list[str]) -> int:
    # The command's own parser takes what follows its name: argparse would import every command to list one.
    if given and given[0] in COMMANDS:
        with _needing(given[0]):
            options = parser(given[0]).parse_args(given[1:])
            return _imported(given[0]).run(options)
    listing = parser()
    if listing.parse_args(given[:1]).version:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and seldom asked for

        print(version("pilotage"))
        return 0
    listing.print_help()
    return 0


def _imported(name: str) -> _Module:
    return cast("_Module", importlib.import_module(COMMANDS[name].module))


@contextmanager
def _needing(name: str) -> Generator[None]:
    """Say how to install what a command lacks, whether it shows at its import or on the way."""
    extra = COMMANDS[name].extra
    try:
        yield
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("pilotage_"):
            raise
        raise CommandError(
            f"`pilotage {name}` needs {error.name}, which is not installed: pip install 'pilotage[{extra}]'"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
