"""`pilotage serve`: the runtime as a cluster runs it, with what a person at a terminal expects around it."""

import argparse
import errno
import os
import signal
import socket
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from pydantic_settings import BaseSettings

from pilotage_cli import STARTED, local
from pilotage_cli import target as targets
from pilotage_cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, CommandError
from pilotage_cli.flags import Flags, variable
from pilotage_cli.log_view import readable_output
from pilotage_cli.server_api import Address, NotAnswering, ServerApi, family, free_port
from pilotage_runtime import catalog, log
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.fetched import model_root
from pilotage_runtime.settings import FetchSettings, ServeSettings

_DESCRIPTION = """\
Serve a model on this machine: a file, a folder (one model, numbered versions of one, or a folder of many), or a
URI, which is fetched into a cache and verified. Once it is ready, a line to paste and the address of a page to try
the model by hand are printed."""
_EXAMPLES = """\
examples:
  pilotage serve model.onnx
  pilotage serve models/ --port 0                 a folder of many models, on any free port
  pilotage serve s3://models/fraud/7 --workers 2  keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
  pilotage serve model.onnx --host 0.0.0.0        for others to reach; without it only this machine does
  pilotage serve model.onnx --json-logs | jq      logs on standard output, all else on standard error

Each flag has an environment variable, named in brackets; the flag wins.
"""
TITLES: dict[type[BaseSettings], str] = {
    ServeSettings: "serving",
    FetchSettings: "fetching, where TARGET is a URI",
}
# A person waits for no load balancer, and shares the machine with nobody who should see the server.
DEFAULTS = {
    "host": "127.0.0.1",
    "metrics_port": "0",
    "drain_seconds": "0",
    "allow_private_addresses": "True",
}
NAMES = {
    "model_name": "name",
    "http_port": "port",
    "model_format": "format",
    "model_digest": "digest",
    "model_trusted": "trusted",
}
# The command sets these itself, or a pod alone has use for them.
WITHOUT = frozenset({"model_dir", "model_uri", "termination_log", "pinned_digest_file", "model_claim_dir"})

_LOOK_SECONDS = 0.02


def _flags() -> Flags:
    return Flags(
        ServeSettings,
        FetchSettings,
        names=NAMES,
        defaults=DEFAULTS,
        without=WITHOUT,
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.add_argument(
        "target", metavar="TARGET", help="a model file, a folder, or a URI (https://, s3://, …)"
    )
    parser.add_argument(
        "--json-logs",
        action=argparse.BooleanOptionalAction,
        help="log JSON lines, as in a pod; the default where standard output is no terminal",
    )
    parser.add_argument("--refresh", action="store_true", help="fetch a URI anew, whatever the cache holds")
    _flags().add_to(parser, TITLES)


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    target = targets.parse(options.target)
    flags = _flags()
    flags.to_environment(options)
    name = variable(ServeSettings, "model_name")
    if not os.environ.get(name):
        os.environ[name] = target.name
    _take_ports(flags.read(ServeSettings))
    json_logs = options.json_logs if options.json_logs is not None else not sys.stdout.isatty()
    with nullcontext() if json_logs else readable_output():
        # The handler keeps the standard output that it finds.
        log.configure()
        try:
            if target.path is None:
                root = _fetched(target.text, flags, refresh=options.refresh)
            else:
                root = _verified(target.path, flags.read(ServeSettings))
        except StartFailure as failure:
            raise CommandError(
                f"{failure.message} ({failure.stage}: {failure.reason})", failure.exit_code
            ) from None
        os.environ[variable(ServeSettings, "model_dir")] = str(root)
        settings = flags.read(ServeSettings)
        _announce_when_ready(settings)
        return _serve(settings)


def _fetched(uri: str, flags: Flags, *, refresh: bool) -> os.PathLike[str]:
    # A model that is here already is served without.
    from pilotage_cli.banner import terminal  # noqa: PLC0415
    from pilotage_cli.remote import fetched  # noqa: PLC0415

    return fetched(uri, flags, terminal(stderr=True), refresh=refresh)


def _verified(path: Path, settings: ServeSettings) -> Path:
    local.verify(path, catalog.discover(model_root(path), settings.model_name), settings)
    return path


def _take_ports(settings: ServeSettings) -> None:
    """Choose the ports before anything slow happens; refuse one that is taken."""
    for setting in ("http_port", "metrics_port", "grpc_port"):
        port = getattr(settings, setting)
        if port is None:
            continue
        try:
            if port == 0:
                os.environ[variable(ServeSettings, setting)] = str(free_port(settings.host))
                continue
            with socket.socket(family(settings.host), socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((settings.host, port))
                probe.listen()
        except OSError as error:
            raise _cannot_listen(settings.host, setting, port, error) from None


def _cannot_listen(host: str, setting: str, port: int, error: OSError) -> CommandError:
    flag = f"--{NAMES.get(setting, setting.replace('_', '-'))}"
    if error.errno != errno.EADDRINUSE:
        return CommandError(
            f"cannot listen on {host} port {port} ({flag}, --host): {error.strerror}", EXIT_USAGE
        )
    whose = "by another program"
    try:
        if ServerApi(_reachable(host, port), timeout=0.5).name() == "pilotage":
            whose = "by another `pilotage serve`"
    except (NotAnswering, CommandError):
        pass
    return CommandError(
        f"port {port} of {host} is taken {whose}: stop that one, or choose another port with {flag} N "
        f"({flag} 0 takes a free one)",
        EXIT_USAGE,
    )


def _announce_when_ready(settings: ServeSettings) -> None:
    server = ServerApi(_reachable(settings.host, settings.http_port))
    more = {"Metrics": f"{_reachable(settings.host, settings.metrics_port).url}/metrics"}
    if settings.grpc_port is not None:
        host, port = _reachable(settings.host, settings.grpc_port)
        more["gRPC"] = f"{host}:{port}"

    def announce() -> None:
        while not server.ready():
            time.sleep(_LOOK_SECONDS)
        took = time.monotonic() - STARTED
        # Not before: what is imported in a thread meanwhile keeps the model waiting.
        from pilotage_cli import banner  # noqa: PLC0415

        banner.show(server, more, banner.terminal(stderr=True), took)

    threading.Thread(target=announce, name="banner", daemon=True).start()


def _serve(settings: ServeSettings) -> int:
    # No exit by exception: it would pass through the model's own call and look like its failure.
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        if settings.workers == 1:
            from pilotage_runtime import worker  # noqa: PLC0415 - the supervisor imports no model library

            return worker.serve_alone(settings)
        from pilotage_runtime import supervisor  # noqa: PLC0415

        return supervisor.serve(settings)
    except StartFailure as failure:
        raise CommandError(
            f"{failure.message} ({failure.stage}: {failure.reason})", failure.exit_code
        ) from None


def _reachable(host: str, port: int) -> Address:
    """Where this machine reaches what listens on `host`: everywhere includes here."""
    return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared, not bound
