"""`pilotage bench` against a real server, and its clock against servers that misbehave on purpose."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from pilotage_cli import bench, load
from pilotage_cli.histogram import Histogram
from pilotage_cli.load import Outcome, Plan
from tests.cli.conftest import Terminal

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


def test_a_server_is_loaded_with_requests_that_it_answers(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris")
    done = terminal.run("bench", running.url, "--seconds", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["statuses"]) == ["200"]
    assert result["statuses"]["200"] == result["answered"] == result["sent"] > 100
    assert sum(row["count"] for row in result["histogram"]) == result["answered"]
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"] <= result["latency_ms"]["max"]
    # The server counted the same.
    metrics = next(line for line in running.text.splitlines() if line.startswith("Metrics")).split()[-1]
    counted = terminal.run("bench", running.url, "--requests", "7", "--seconds", "20")
    assert "200  7" in counted.stdout
    assert "p99.9" in counted.stdout
    import httpx  # noqa: PLC0415

    line = next(
        line
        for line in httpx.get(metrics, trust_env=False).text.splitlines()
        if line.startswith("inference_requests_total{") and 'code="200"' in line
    )
    assert float(line.split()[-1]) == result["answered"] + 7


def test_at_a_rate_so_many_are_sent(terminal: Terminal, models: Path) -> None:
    running = terminal.serve(models / "iris")
    result = json.loads(
        terminal.run("bench", running.url, "--rate", "100", "--seconds", "2", "--json").stdout
    )
    assert result["sent"] == result["statuses"]["200"] == 200


def test_answers_that_are_errors_are_told_and_end_in_1(
    terminal: Terminal, models: Path, tmp_path: Path
) -> None:
    running = terminal.serve(models / "iris")
    body = tmp_path / "body.json"
    body.write_text('{"inputs": []}')
    done = terminal.run("bench", running.url, "--body", body, "--requests", "5", "--seconds", "20")
    assert done.returncode == 1
    assert "400  5" in done.stdout
    assert "the first error said: " in done.stdout


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(sent=2, statuses=Counter({"200": 2})), 0),
        (Outcome(sent=2, statuses=Counter({"200": 1, "500": 1})), 1),
        (Outcome(sent=2, statuses=Counter({"200": 1}), errors=Counter({"connection lost": 1})), 1),
        (Outcome(sent=2, statuses=Counter({"200": 1}), unanswered=1), 1),
        (Outcome(), 1),
    ],
)
def test_it_ends_in_0_where_every_request_had_a_good_answer(
    outcome: Outcome, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "_model", lambda server, wanted: "m")
    monkeypatch.setattr(bench, "_run", lambda plan: outcome)
    body = tmp_path / "body.json"
    body.write_text("{}")
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    assert bench.run(parser.parse_args(["--body", str(body), "--json"])) == code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["http://192.0.2.1:8080"], "is not this machine: loading a server that others use harms them"),
        (["http://127.0.0.1:1"], "does not answer"),
        (["https://127.0.0.1"], "http://HOST:PORT is expected"),
        (["--seconds", "90000"], "90000 came, 0.1 to 3600 is allowed"),
        (["--connections", "many"], "'many' is no number"),
    ],
)
def test_what_is_not_loaded_is_told_why(terminal: Terminal, arguments: list[str], sentence: str) -> None:
    refused = terminal.run("bench", *arguments)
    assert refused.returncode in (1, 2)
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_model_is_chosen_where_there_are_several(terminal: Terminal, models: Path, tmp_path: Path) -> None:
    import shutil  # noqa: PLC0415

    for name in ("iris", "fraud"):
        shutil.copytree(models / name / "1", tmp_path / "many" / name / "1")
    running = terminal.serve(tmp_path / "many")
    assert "choose one with --model; ready are fraud, iris" in terminal.run("bench", running.url).stderr
    assert "ready are fraud, iris" in terminal.run("bench", running.url, "--model", "x").stderr
    done = terminal.run("bench", running.url, "--model", "iris", "--requests", "3", "--seconds", "20")
    assert "200  3" in done.stdout


class Script:
    """A server that answers as told: after so many seconds, in pieces, or not at all."""

    def __init__(
        self, *, stall: tuple[float, float] = (0, 0), pieces: bool = False, drop_after: int = -1
    ) -> None:
        self._stall, self._pieces, self._drop_after = stall, pieces, drop_after
        self._requests = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time() if not self._requests else self._begun
        self._begun = begun
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self._requests += 1
                if self._requests == self._drop_after:
                    writer.close()
                    return
                since = loop.time() - begun
                if self._stall[0] <= since < self._stall[1]:
                    await asyncio.sleep(self._stall[1] - since)
                for piece in (b"HTTP/1.1 200 OK\r\ncont", b"ent-length: 2\r\n\r\n{", b"}"):
                    writer.write(piece)
                    if self._pieces:
                        await writer.drain()
                        await asyncio.sleep(0.001)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def _against(script: Script, **plan: object) -> Outcome:
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    defaults = {"connections": 2, "seconds": 2.0, "most": 10_000}
    async with asyncio.timeout(30):
        outcome = await load.run(Plan("127.0.0.1", port, REQUEST, **{**defaults, **plan}))
    server.close()
    return outcome


async def test_a_stall_counts_for_all_whom_it_delays() -> None:
    """A second's stall at 100 a second delays about 100 requests, though two connections saw two late answers."""
    outcome = await _against(Script(stall=(0.5, 1.5)), rate=100.0)
    assert outcome.sent == outcome.answered == 200
    assert outcome.latencies.percentile(75) > 0.2
    late = sum(count for low, _, count in outcome.latencies.grouped() if low >= 0.1)
    assert 60 <= late <= 110
    closed = await _against(Script(stall=(0.5, 1.5)))
    assert sum(count for low, _, count in closed.latencies.grouped() if low >= 0.1) <= 4


async def test_an_answer_in_pieces_is_one_answer() -> None:
    outcome = await _against(Script(pieces=True), most=20)
    assert dict(outcome.statuses) == {"200": 20}
    assert outcome.latencies.total == 20


async def test_a_lost_connection_is_an_error_and_opened_again() -> None:
    outcome = await _against(Script(drop_after=5), most=20)
    assert outcome.errors == {"connection lost before the answer": 1}
    assert outcome.answered == 19


async def test_what_is_never_answered_is_counted_as_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GRACE_SECONDS", 0.2)
    outcome = await _against(Script(stall=(0, 60)), rate=10.0, seconds=1.0)
    assert outcome.answered == 0
    assert outcome.unanswered == outcome.latencies.total == 10
    assert outcome.latencies.longest > 1.0


def test_a_percentile_is_within_one_per_cent() -> None:
    histogram = Histogram()
    for at in range(1, 10_001):
        histogram.add(at / 1000)
    for percent in (50.0, 90.0, 99.0, 99.9):
        assert histogram.percentile(percent) == pytest.approx(percent / 10, rel=0.011)
    assert histogram.longest == 10.0
    assert sum(count for _, _, count in histogram.grouped()) == 10_000


@pytest.mark.parametrize("seconds", [0.0, 1e-7, 0.001, 0.0103, 99.0, 1e6])
def test_one_duration_is_its_own_histogram(seconds: float) -> None:
    histogram = Histogram()
    histogram.add(seconds)
    assert sum(count for _, _, count in histogram.grouped()) == 1
    assert histogram.percentile(99) == seconds
