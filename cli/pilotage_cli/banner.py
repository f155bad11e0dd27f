"""What a person reads once the server is ready: its models, a line to paste, and where to look."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilotage_cli import sample
from pilotage_cli.errors import CommandError
from pilotage_cli.server_api import NotAnswering, ServerApi

_MOST_MODELS = 8
_MOST_NAMES = 12
_WIDE = 300


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, to which a pipe that closes early is no failure; rich would exit with 1."""
        raise BrokenPipeError


def show(server: ServerApi, more: Mapping[str, str], console: Console, took: float) -> None:
    """Print; what the server cannot tell is left out, for it serves all the same."""
    try:
        _show(server, more, console, took)
    except (CommandError, NotAnswering) as error:
        console.print(f"pilotage: {error}", style="red", markup=False)
    except BrokenPipeError:
        return  # nobody reads it


def terminal(*, stderr: bool = False) -> Console:
    """Write to a terminal as wide as it is, and elsewhere in lines that nothing breaks."""
    console = _Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else _Console(stderr=stderr, highlight=False, width=_WIDE)


def tensors(metadata: dict[str, Any]) -> Table:
    """Lay out what a model takes and gives."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    features = metadata.get("parameters", {}).get("feature_names", [])
    for kind, part in (("in", "inputs"), ("out", "outputs")):
        for tensor in metadata[part]:
            # Where each feature is an input of its own, its name is there already.
            names = features if kind == "in" and len(metadata["inputs"]) == 1 else []
            table.add_row(
                Text(f"  {kind}", style="dim"),
                Text(tensor["name"], style="bold"),
                Text(tensor["datatype"]),
                Text(str(tensor["shape"])),
                Text(_remarks(names, tensor.get("parameters", {}))),
            )
    return table


def _show(server: ServerApi, more: Mapping[str, str], console: Console, took: float) -> None:
    index = server.index()
    ready = list(dict.fromkeys(entry["name"] for entry in index if entry["state"] == "READY"))
    console.print(Text(f"\nReady in {took:.1f} s", style="bold green"))
    for name in ready[:_MOST_MODELS]:
        metadata = server.metadata(name)
        console.print(heading(metadata))
        console.print(tensors(metadata))
    if len(ready) > _MOST_MODELS:
        console.print(f"… and {len(ready) - _MOST_MODELS} more models: {server.address.url}/", markup=False)
    for entry in index:
        if entry["state"] != "READY":
            line = f"{entry['name']} version {entry['version']} is {entry['state']}: {entry['reason']}"
            console.print(Text(line, style="red"))
    _places(server, more, console, ready[0])


def heading(metadata: dict[str, Any]) -> Text:
    """Name a model, its versions, what runs it, and whether its requests may share a run."""
    versions = metadata.get("versions", [])
    parameters = metadata.get("parameters", {})
    of = f"version {versions[0]}" if len(versions) == 1 else f"versions {', '.join(versions)}"
    batching = parameters.get("batching", "on")
    verdict = "batching on" if batching == "on" else f"batching off: {batching}"
    return Text.assemble(
        ("\n" + metadata["name"], "bold cyan"), f"  {of}, {metadata['platform']}", (f"  {verdict}", "dim")
    )


def _places(server: ServerApi, more: Mapping[str, str], console: Console, model: str) -> None:
    body = sample.request(server, server.metadata(model))
    url = server.address.url
    console.print(Text("\nTry it, in another terminal:", style="bold"))
    # Whole, however wide the terminal: a line broken here would be two when pasted.
    console.print(sample.curl(server, model, body), soft_wrap=True, markup=False, highlight=False)
    console.print()
    for name, address in (
        ("By hand, in a browser", f"{url}/"),
        ("The interface's documentation", f"{url}/docs"),
        *more.items(),
    ):
        # Whole as well: a narrow table would cut an address off.
        console.print(Text.assemble(f"{name:31}", (address, "cyan")), soft_wrap=True)
    console.print(Text("\nCtrl-C stops it.", style="dim"))


def _remarks(features: list[str], parameters: dict[str, Any]) -> str:
    names = features or parameters.get("labels", [])
    shown = ", ".join(names[:_MOST_NAMES]) + (f", … {len(names)} in all" if len(names) > _MOST_NAMES else "")
    others = [f"{key} {value}" for key, value in parameters.items() if key != "labels"]
    return "; ".join([*([shown] if shown else []), *others])
