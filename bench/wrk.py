"""Load by wrk (Debian: wrk), which has a core of its own."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from bench.runtime import LOAD_CORE

_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SCRIPT = """
local asks = {%s}
local at = 0
local headers = {["Content-Type"] = "application/json"}
local written = {}
request = function()
  if #written == 0 then
    for number, ask in ipairs(asks) do written[number] = wrk.format("POST", ask[1], headers, ask[2]) end
  end
  at = at %% #written + 1
  return written[at]
end
"""


class Ask(NamedTuple):
    """One request: where it goes, and its JSON."""

    path: str
    body: str


class Load(NamedTuple):
    """What one spell of load came to."""

    rate: float  # requests a second
    p50_ms: float
    p99_ms: float


def required() -> None:
    """End the program where wrk is not installed."""
    if not shutil.which("wrk"):
        sys.exit("this needs wrk (Debian: apt install wrk)")


def load(port: int, asks: Sequence[Ask], *, connections: int, seconds: float) -> Load:
    """Ask in turns for so many seconds; raise RuntimeError unless every request was answered well."""
    written = ", ".join(f"{{[==[{ask.path}]==], [==[{ask.body}]==]}}" for ask in asks)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT % written)
        script.flush()
        output = subprocess.check_output(
            [
                "taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--latency",
                "--timeout", "60s", "-s", script.name, f"http://127.0.0.1:{port}",
            ],
            text=True,
        )  # fmt: skip
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"not every request was answered well: {output}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    return Load(float(rate[1]), _percentile(output, 50), _percentile(output, 99))


def _percentile(output: str, percent: int) -> float:
    found = re.search(rf"\s{percent}%\s+([\d.]+)(us|ms|s|m)", output)
    assert found, output
    return float(found[1]) * _MILLISECONDS[found[2]]
