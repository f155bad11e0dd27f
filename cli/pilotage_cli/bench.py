"""`pilotage bench`: load a running server with requests that it answers, and print how long they took."""

import argparse
import asyncio
import ipaddress
import json
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from rich.console import Console
from rich.text import Text

from pilotage_cli import load, sample
from pilotage_cli.banner import terminal
from pilotage_cli.errors import EXIT_USAGE, CommandError
from pilotage_cli.histogram import PERCENTILES
from pilotage_cli.load import Outcome, Plan
from pilotage_cli.server_api import Address, NotAnswering, ServerApi

_DESCRIPTION = """\
Load a server with real requests, made from what it tells about its model, and print requests a second, errors and a
histogram of latencies. Without --rate each connection asks again as soon as it is answered: that finds out how much
the server can do. With --rate requests are due at that pace, and each is timed from when it was due, even if none of
the connections was free then: that finds out what callers would see."""
_EXAMPLES = """\
examples:
  pilotage bench
  pilotage bench http://127.0.0.1:8080 --model fraud --connections 32 --seconds 30
  pilotage bench --rate 500 --json
"""
_DEFAULT_URL = "http://127.0.0.1:8080"
_BAR = 40
MOST_SECONDS = 3600.0
MOST_REQUESTS = 10_000_000
MOST_CONNECTIONS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.add_argument(
        "url", nargs="?", default=_DEFAULT_URL, metavar="URL", help=f"the server; default {_DEFAULT_URL}"
    )
    parser.add_argument("--model", metavar="NAME", help="needed where the server has several")
    parser.add_argument(
        "--body", type=Path, metavar="FILE", help="the request's JSON; default: the contract's sample"
    )
    parser.add_argument(
        "--connections", type=_within(int, 1, MOST_CONNECTIONS), default=16, metavar="N",
        help="requests at the same time; default 16",
    )  # fmt: skip
    parser.add_argument(
        "--seconds",
        type=_within(float, 0.1, MOST_SECONDS),
        default=10.0,
        metavar="S",
        help="how long; default 10",
    )
    parser.add_argument(
        "--requests", type=_within(int, 1, MOST_REQUESTS), default=MOST_REQUESTS, metavar="N",
        help=f"stop after so many; default {MOST_REQUESTS}",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=_within(float, 0.1, 1e6), metavar="R", help="requests a second, due at that pace"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--allow-remote", action="store_true",
        help="load a server on another machine; without it only this one: make sure that you may",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Load and print; 1 where any request failed."""
    address = _address(options.url, allow_remote=options.allow_remote)
    server = ServerApi(address)
    try:
        model = _model(server, options.model)
        body = options.body.read_bytes() if options.body else _sample(server, model)
    except NotAnswering as error:
        raise CommandError(f"{error}; start one with `pilotage serve model.onnx`, or name its URL") from None
    except OSError as error:
        raise CommandError(f"--body {options.body}: {error.strerror}", EXIT_USAGE) from None
    plan = Plan(
        address.host,
        address.port,
        _request(address, options.url, model, body),
        options.connections,
        options.seconds,
        options.requests,
        options.rate,
    )
    if not options.json:
        pace = f"at {options.rate:g}/s" if options.rate else "as fast as it answers"
        console = terminal(stderr=True)
        console.print(
            f"Loading {model} at {address.url} {pace} for {options.seconds:g} s, {options.connections} connections …",
            markup=False,
        )
    outcome = _run(plan)
    if options.json:
        print(json.dumps(document(outcome, plan, model), indent=2))
    else:
        _show(outcome, plan, terminal())
    good = sum(count for status, count in outcome.statuses.items() if status.startswith("2"))
    return 0 if good and good == outcome.answered and not outcome.errors and not outcome.unanswered else 1


def document(outcome: Outcome, plan: Plan, model: str) -> dict[str, Any]:
    """Give the result as JSON holds it; durations are milliseconds."""
    latencies = outcome.latencies
    return {
        "model": model,
        "connections": plan.connections,
        "rate": plan.rate,
        "seconds": round(outcome.seconds, 3),
        "sent": outcome.sent,
        "answered": outcome.answered,
        "requests_per_second": round(_rate(outcome), 1),
        "statuses": dict(sorted(outcome.statuses.items())),
        "errors": dict(sorted(outcome.errors.items())),
        "unanswered": outcome.unanswered,
        "latency_ms": {
            "mean": _ms(latencies.sum / latencies.total if latencies.total else 0),
            **{f"p{percent:g}": _ms(latencies.percentile(percent)) for percent in PERCENTILES},
            "max": _ms(latencies.longest),
        },
        "histogram": [
            {"from_ms": _ms(low), "to_ms": _ms(high), "count": count}
            for low, high, count in latencies.grouped()
        ],
    }


def _show(outcome: Outcome, plan: Plan, console: Console) -> None:
    console.print(Text.assemble("\n", (f"{_rate(outcome):,.0f}", "bold"), " requests a second"))
    for status, count in sorted(outcome.statuses.items()):
        style = "green" if status.startswith("2") else "red"
        console.print(Text.assemble("  ", (status, style), f"  {count:,}"))
    for error, count in sorted(outcome.errors.items()):
        console.print(Text(f"  {error}: {count:,}", style="red"))
    if outcome.unanswered:
        console.print(Text(f"  {outcome.unanswered:,} without an answer at the end", style="red"))
    if outcome.first_error:
        console.print(Text(f"  the first error said: {outcome.first_error}", style="red"))
    latencies = outcome.latencies
    if not latencies.total:
        return
    timed = "from when each was due" if plan.rate else "from sending to the whole answer"
    console.print(Text.assemble("\nLatency in ms", (f", {timed}", "dim")))
    rows = list(latencies.grouped())
    most = max(count for _, _, count in rows)
    for low, high, count in rows:
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        share = f"{100 * count / latencies.total:5.1f} %"
        console.print(Text.assemble(f"  {_ms(low):>8g} - {_ms(high):<8g} {share}  ", (bar, "cyan")))
    marks = [(f"p{percent:g}", latencies.percentile(percent)) for percent in PERCENTILES]
    marks.append(("max", latencies.longest))
    console.print("\n  " + "   ".join(f"{name} {_ms(seconds):g}" for name, seconds in marks))


def _run(plan: Plan) -> Outcome:
    if find_spec("uvloop"):  # with it one core sends two to three times as much
        import uvloop  # noqa: PLC0415

        return uvloop.run(load.run(plan))
    return asyncio.run(load.run(plan))


def _address(url: str, *, allow_remote: bool) -> Address:
    """Resolve a server's URL once; refuse another machine unless that was said."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise CommandError(f"{url}: {error}", EXIT_USAGE) from None
    if parts.scheme != "http" or not host or parts.path.strip("/"):
        raise CommandError(f"{url} came, http://HOST:PORT is expected", EXIT_USAGE)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CommandError(f"{host} does not resolve: {error}", EXIT_USAGE) from None
    address = str(found[0][4][0])
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback and not allow_remote:
        raise CommandError(
            f"{host} ({address}) is not this machine: loading a server that others use harms them; "
            "if you may, say --allow-remote",
            EXIT_USAGE,
        )
    return Address(address, port)


def _model(server: ServerApi, wanted: str | None) -> str:
    ready = list(dict.fromkeys(entry["name"] for entry in server.index() if entry["state"] == "READY"))
    if wanted is not None:
        if wanted not in ready:
            raise CommandError(
                f"--model {wanted} is not ready there; ready are {', '.join(ready) or 'none'}", EXIT_USAGE
            )
        return wanted
    if len(ready) != 1:
        raise CommandError(f"choose one with --model; ready are {', '.join(ready) or 'none'}", EXIT_USAGE)
    return ready[0]


def _sample(server: ServerApi, model: str) -> bytes:
    return json.dumps(sample.request(server, server.metadata(model))).encode()


def _request(address: Address, url: str, model: str, body: bytes) -> bytes:
    named = urlsplit(url if "//" in url else f"http://{url}").netloc or address.host
    head = (
        f"POST /v2/models/{quote(model, safe='')}/infer HTTP/1.1\r\nhost: {named}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _rate(outcome: Outcome) -> float:
    return outcome.answered / outcome.seconds if outcome.seconds else 0.0


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1000:.3g}")


def _within(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} came, {low:g} to {high:g} is allowed")
        return value

    return parsed
