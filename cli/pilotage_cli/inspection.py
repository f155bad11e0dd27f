"""`pilotage inspect`: what a model takes and gives, found by loading it as the runtime would."""

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from pilotage_cli import banner, local, serve
from pilotage_cli import target as targets
from pilotage_cli.errors import EXIT_USAGE, CommandError
from pilotage_cli.flags import Flags, variable
from pilotage_cli.remote import fetched, size
from pilotage_runtime import app, catalog
from pilotage_runtime.catalog import Location
from pilotage_runtime.contract import Contract
from pilotage_runtime.digest import digest
from pilotage_runtime.engine import Engine
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.fetched import model_root
from pilotage_runtime.settings import FetchSettings, ServeSettings
from pilotage_runtime.telemetry import Sheet

_DESCRIPTION = """\
Print what a model takes and gives, its format, size and digest, and whether its requests may share a run. The model
is loaded and run as for serving, so a model that is printed here can be served; nothing listens."""
_EXAMPLES = """\
examples:
  pilotage inspect model.onnx
  pilotage inspect models/                          every model and version in a folder
  pilotage inspect --json iris --output iris/contract.json
  pilotage inspect --json models/ --model fraud/7   one of many
"""


class _Found(NamedTuple):
    """One loaded version, with what its files say."""

    location: Location
    format: str
    bytes: int
    digest: str
    engine: Engine


def _flags() -> Flags:
    return Flags(
        ServeSettings,
        FetchSettings,
        names=serve.NAMES,
        defaults=serve.DEFAULTS,
        without=serve.WITHOUT
        | {
            "host",
            "http_port",
            "metrics_port",
            "drain_seconds",
            "workers",
            "max_body_bytes",
            "max_queue_size",
            "payload_log_url",
            "payload_log_file",
            "payload_log_sample",
            "payload_log_redact",
        },
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.add_argument(
        "target", metavar="TARGET", help="a model file, a folder, or a URI (https://, s3://, …)"
    )
    parser.add_argument("--json", action="store_true", help="print the contract as contract.json holds it")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where --json goes; a shell's > would empty a contract.json before it is read",
    )
    parser.add_argument("--model", metavar="NAME[/VERSION]", help="only this one of a folder that holds many")
    parser.add_argument("--refresh", action="store_true", help="fetch a URI anew, whatever the cache holds")
    _flags().add_to(parser, serve.TITLES)


def run(options: argparse.Namespace) -> int:
    """Load and print; the exit status is the runtime's own where a model cannot be served."""
    target = targets.parse(options.target)
    flags = _flags()
    flags.to_environment(options)
    # What matters comes back as a failure or is printed below.
    logging.getLogger("pilotage_runtime").setLevel(logging.ERROR)
    try:
        path = target.path
        if path is None:
            path = fetched(target.text, flags, banner.terminal(stderr=True), refresh=options.refresh)
        settings = flags.read(ServeSettings)
        name = settings.model_name if os.environ.get(variable(ServeSettings, "model_name")) else target.name
        locations = _chosen(catalog.discover(model_root(path), name), options.model)
        if target.path is not None:
            local.verify(path, locations, settings)
        if options.json:
            return _print_json(locations, settings, options.output)
        return _print_all(locations, settings)
    except StartFailure as failure:
        raise _refused(failure) from None


def document(contract: Contract) -> dict[str, Any]:
    """Write a contract as `contract.json` holds it."""
    written: dict[str, Any] = {
        "inputs": [spec.metadata() for spec in contract.inputs],
        "outputs": [spec.metadata() for spec in contract.outputs],
    }
    if contract.features:  # with their ranges, which are enforced, and their names
        written["features"] = [feature.metadata() for feature in contract.features]
    elif contract.feature_names:
        written["feature_names"] = list(contract.feature_names)
    if contract.sample_request is not None:
        written["sample"] = {"request": contract.sample_request}
        if contract.sample_response is not None:
            written["sample"]["response"] = contract.sample_response
    return written


def _chosen(locations: list[Location], wanted: str | None) -> list[Location]:
    if wanted is None:
        return locations
    model, _, version = wanted.partition("/")
    found = [one for one in locations if one.model == model and version in ("", one.version)]
    if not found:
        there = ", ".join(f"{one.model}/{one.version}" for one in locations[:8])
        raise CommandError(f"--model {wanted}: there is no such model; there is {there}", EXIT_USAGE)
    return found


def _print_json(locations: list[Location], settings: ServeSettings, output: Path | None) -> int:
    if len(locations) != 1:
        there = ", ".join(f"{one.model}/{one.version}" for one in locations[:8])
        raise CommandError(
            f"--json prints one contract, but there are {len(locations)} models: choose one with --model, of {there}",
            EXIT_USAGE,
        )
    found = _load(locations[0], settings)
    text = json.dumps(document(found.engine.contract), indent=2, ensure_ascii=False)
    found.engine.close()
    if output is None:
        print(text)
        return 0
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--output {output}: {error.strerror}", EXIT_USAGE) from None
    return 0


def _print_all(locations: list[Location], settings: ServeSettings) -> int:
    console = banner.terminal()
    status = 0
    for location in locations:
        try:
            found = _load(location, settings)
        except StartFailure as failure:
            if len(locations) == 1:
                raise
            status = failure.exit_code
            told = f"\n{location.model}  version {location.version}: {_refused(failure)}"
            console.print(Text(told, style="red"))
            continue
        _print(found, console)
        found.engine.close()
    return status


def _print(found: _Found, console: Console) -> None:
    engine = found.engine
    parameters: dict[str, Any] = {"batching": engine.unbatched or "on"}
    if engine.contract.feature_names:
        parameters["feature_names"] = list(engine.contract.feature_names)
    metadata = {
        **document(engine.contract),
        "name": engine.name,
        "versions": [engine.version],
        "platform": engine.platform,
        "parameters": parameters,
    }
    console.print(banner.heading(metadata))
    console.print(banner.tensors(metadata))
    sample = (
        "its own, from contract.json" if engine.contract.sample_request else "none: a row of zeros was run"
    )
    for name, value in (
        ("format", found.format),
        ("size", size(found.bytes)),
        ("digest", found.digest),
        ("sample", sample),
    ):
        console.print(Text.assemble((f"  {name:8}", "dim"), value), soft_wrap=True)


def _load(location: Location, settings: ServeSettings) -> _Found:
    file = app.detect(location, settings)
    engine = app.load(location, settings, Sheet().slot(1), found=file)
    return _Found(location, file.format, _size(location.root), digest(location.root), engine)


def _size(root: Path) -> int:
    files = [root] if root.is_file() else root.rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


def _refused(failure: StartFailure) -> CommandError:
    return CommandError(f"{failure.message} ({failure.stage}: {failure.reason})", failure.exit_code)
