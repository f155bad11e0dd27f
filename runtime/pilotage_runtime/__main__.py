"""`pilotage-runtime`: fetch a model, serve a model."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from pilotage_runtime import __version__, log
from pilotage_runtime.failure import Reason, Stage, StartFailure, report
from pilotage_runtime.settings import FetchSettings, ServeSettings

_EXAMPLE = """\
On a laptop, with no cluster:

  PILOTAGE_MODEL_DIR=model.onnx PILOTAGE_MODEL_NAME=iris pilotage-runtime serve
  curl localhost:8080/v2/models/iris
  open http://localhost:8080/docs

In a pod, `fetch` is the init container and `serve` the container; both read the environment below.
"""

_TERMINATED = 128 + signal.SIGTERM

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give its exit status."""
    parser = argparse.ArgumentParser(
        prog="pilotage-runtime",
        description="Serves a model over the Open Inference Protocol V2.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="fetch | serve")
    table: dict[str, Callable[[], int]] = {"fetch": _fetch, "serve": _serve}
    for name, text, settings in (
        ("fetch", "download the model, verify it, put it where serve reads it; exits 75 where a retry may help",
         FetchSettings),
        ("serve", "load the model, warm it up and serve it until SIGTERM", ServeSettings),
    ):  # fmt: skip
        commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_environment(settings),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    chosen = parser.parse_args(arguments)
    log.configure()
    try:
        return table[chosen.command]()
    except ValidationError as error:
        failure = _unusable(chosen.command, error)
        logger.error("%s", failure.message)  # noqa: TRY400 - a traceback adds nothing
        report(failure, Path(os.environ.get("PILOTAGE_TERMINATION_LOG", "/dev/termination-log")))
        return failure.exit_code


def _unusable(command: str, error: ValidationError) -> StartFailure:
    problems = [
        f"PILOTAGE_{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
        + ("" if problem["type"] == "missing" else f", got {problem['input']!r}")
        for problem in error.errors()
    ]
    stage, reason = (
        (Stage.DOWNLOAD, Reason.INVALID_URI) if command == "fetch" else (Stage.LOAD, Reason.LOAD_FAILED)
    )
    return StartFailure(stage, reason, "; ".join(problems))


def _fetch() -> int:
    from pilotage_runtime import fetch  # noqa: PLC0415 - serving needs none of what fetching imports

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    return fetch.main(FetchSettings())  # pyright: ignore[reportCallIssue] - filled from the environment


def _serve() -> int:
    settings = ServeSettings()
    # As process 1 of a container a signal without a handler is ignored, a slow load would outlast the grace period.
    # No exit by exception: it would pass through the model's own call and look like its failure.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
    if settings.workers == 1:
        from pilotage_runtime import worker  # noqa: PLC0415 - the supervisor imports no model library

        return worker.serve_alone(settings)
    from pilotage_runtime import supervisor  # noqa: PLC0415

    return supervisor.serve(settings)


def _environment(settings: type[BaseSettings]) -> str:
    lines = ["environment:"]
    for name, field in settings.model_fields.items():
        default = "required" if field.is_required() else f"default {field.default}"
        shown = "" if field.default is None else f" ({default})"
        lines.append(f"  PILOTAGE_{name.upper()}\n      {field.description}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
