"""The runtime's JSON log lines as a person reads them on a terminal.

The lines come through a pipe in the place of standard output, so workers' lines and those that the access log
writes by itself come the same way, and the runtime need not know.
"""

import json
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pilotage_cli.server_api import REQUEST_ID

# What the banner tells already.
_TOLD = frozenset({"serving", "model ready", "worker serves"})
_ASIDE = frozenset({"time", "level", "logger", "message", "stage", "reason", "exception"})
# Of a beat of the access log (a fifth of a second) with more lines than a person reads, the last is shown.
_MOST_LINES = 10
_CHUNK_BYTES = 1 << 20
_COLOURS = {"2": "32", "4": "33", "5": "31"}
_LEVELS = {"warning": "33", "error": "31"}
_DIM = "2"


@contextmanager
def readable_output() -> Generator[None]:
    """Show what is written to standard output in between in words instead of JSON."""
    sys.stdout.flush()
    terminal, (end, begin) = os.dup(1), os.pipe()
    os.dup2(begin, 1)
    os.close(begin)
    reader = threading.Thread(target=_show, args=(end, terminal), name="log view", daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(terminal, 1)  # the pipe's last writer is gone, so the reader ends
        reader.join(1)


def _show(source: int, terminal: int) -> None:
    left = b""
    while chunk := os.read(source, _CHUNK_BYTES):
        *lines, left = (left + chunk).split(b"\n")
        _write(terminal, _readable(lines))
    if left:
        _write(terminal, _readable([left]))


def _write(descriptor: int, text: str) -> None:
    data = text.encode(errors="replace")
    while data:
        data = data[os.write(descriptor, data) :]


def _readable(lines: list[bytes]) -> str:
    if len(lines) > _MOST_LINES:
        # Under load the terminal would take longer than the server.
        mark = b'"logger":"access"'
        access = [line for line in lines if mark in line[:120]]
        kept = [line for line in lines if mark not in line[:120]]
        lines = [*kept, *access[-1:]]
        count = len(access) - 1
    else:
        count = 0
    shown = [text for line in lines if (text := readable(line))]
    if count > 0:
        shown.append(f"         and {count} requests more")
    return "".join(f"{text}\n" for text in shown)


def readable(line: bytes) -> str:
    """Put one log line into words; what is no JSON is shown as it came, and what is told elsewhere not at all."""
    try:
        record = json.loads(line)
    except ValueError:
        return _plain(line.decode(errors="replace"))
    if not isinstance(record, dict):
        return _plain(line.decode(errors="replace"))
    at = str(record.get("time", ""))[11:19]
    if record.get("logger") == "access":
        if record.get("request_id") == REQUEST_ID:  # what the banner asked
            return ""
        return f"{_styled(_DIM, at)} {_access(record)}"
    message = str(record.get("message", ""))
    if message in _TOLD:
        return ""
    return f"{_styled(_DIM, at)} {_told(record, message)}"


def _access(record: dict[str, Any]) -> str:
    status = str(record["status"])
    error = f"  {_plain(str(record['error']))}" if "error" in record else ""
    colour = _COLOURS.get(status[:1], "0")
    path = _plain(str(record["path"]))
    return f"{_styled(colour, status)} {record['method']} {path}  {record['milliseconds']:.2f} ms{error}"


def _told(record: dict[str, Any], message: str) -> str:
    level = str(record.get("level", "info"))
    word = f"{_styled(_LEVELS[level], level)} " if level in _LEVELS else ""
    more = [f"{key}={value}" for key, value in record.items() if key not in _ASIDE]
    if "reason" in record:
        more.insert(0, f"({record.get('stage', 'Download')}: {record['reason']})")
    lines = [f"{word}{_plain(message)}" + (f"  {_styled(_DIM, _plain(' '.join(more)))}" if more else "")]
    if "exception" in record:
        lines += [_plain(line) for line in str(record["exception"]).splitlines()]
    return "\n".join(lines)


def _styled(code: str, text: str) -> str:
    return text if os.environ.get("NO_COLOR") else f"\x1b[{code}m{text}\x1b[0m"


def _plain(text: str) -> str:
    """Let no byte of a path, an error or a model steer the terminal."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
