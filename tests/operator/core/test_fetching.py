"""How far a fetch is: what is read from the end of a log, of which nothing else is believed."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage_operator.core.fetching import LOG_BYTES, LOG_LINES, Fetched, fetched_in
from pilotage_operator.core.pods import Pod, first_fetch
from pilotage_runtime.log import JsonFormatter
from pilotage_runtime.sources.transfer import Transfer

MIB, GIB = 2**20, 2**30
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def line(message: str = "downloading", **fields: object) -> bytes:
    return json.dumps({"level": "info", "message": message, **fields}).encode() + b"\n"


def written(message: str, extra: dict[str, float]) -> bytes:
    """As the runtime writes it."""
    record = logging.makeLogRecord({"name": "pilotage_runtime", "msg": message, "levelname": "INFO", **extra})
    return JsonFormatter().format(record).encode() + b"\n"


def test_the_runtimes_own_line_is_understood_and_fits_the_bound() -> None:
    transfer = Transfer(10 * GIB)
    transfer.expect(4 * GIB)
    transfer.already_there(GIB)
    transfer.add(MIB)
    told = written("downloading", transfer.progress())
    assert fetched_in(told) == Fetched(GIB + MIB, 4 * GIB)
    assert len(told) * LOG_LINES < LOG_BYTES


def test_a_store_that_names_no_size_leaves_the_total_open() -> None:
    transfer = Transfer(10 * GIB)
    transfer.expect(0)
    transfer.add(MIB)
    assert fetched_in(written("downloading", transfer.progress())) == Fetched(MIB)


def test_the_last_line_of_progress_counts_and_lines_of_other_things_do_not() -> None:
    log = line(bytes=1, of=9) + line(bytes=2, of=9) + line("unpacked", bytes=5) + b"half a li"
    assert fetched_in(log) == Fetched(2, 9)
    assert fetched_in(line(bytes=2, of=9) + line("downloaded", bytes=9, of=9)) == Fetched(9, 9)


@pytest.mark.parametrize(
    "log",
    [
        b"", b"\n", b"downloading", b"[1]", b"null", b"\xff\xfe", b"{" * 2000, b"[" * 4000,
        b'{"message": "downloading", "bytes": ' + b"9" * 5000 + b"}",
        line(), line(bytes=None), line(bytes="7", of=9), line(bytes=1.5, of=9), line(bytes=True, of=9),
        line(bytes=-1, of=9), line(bytes=10, of=9), line(bytes=1, of="9"), line(bytes=1, of=2**61),
        line(bytes=2**61), line(bytes=float("nan")), line("fetched", bytes=1, of=9), line(["x"], bytes=1),
    ],
)  # fmt: skip
def test_what_cannot_be_believed_is_nothing(log: bytes) -> None:
    assert fetched_in(log) is None


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_log_breaks_the_reader(log: bytes) -> None:
    fetched_in(log)
    fetched_in(b'{"message": "downloading", "bytes": ' + log)


@pytest.mark.parametrize(
    ("fetched", "words"),
    [
        (Fetched(0, 10), "0.0 of 0.0 MiB"),
        (Fetched(512 * 1024, 3 * MIB), "0.5 of 3.0 MiB"),
        (Fetched(300 * MIB, 4 * GIB), "0.3 of 4.0 GiB"),
        (Fetched(5 * GIB, 5 * GIB), "5.0 of 5.0 GiB"),
        (Fetched(3 * MIB), "3.0 MiB so far"),
        (Fetched(2**60, 2**60), "1073741824.0 of 1073741824.0 GiB"),
    ],
)
def test_sizes_are_told_in_the_unit_of_the_whole(fetched: Fetched, words: str) -> None:
    assert str(fetched) == words


def pod(name: str, *, since: int | None = None, digest: str | None = None) -> Pod:
    began = None if since is None else BEGAN + timedelta(seconds=since)
    return Pod(name, "fraud-1", BEGAN, digest=digest, fetching_since=began)


def test_the_fetch_that_began_first_is_waited_for_until_one_is_done() -> None:
    waiting, late, early = pod("waiting"), pod("late", since=9), pod("early", since=1)
    assert first_fetch([waiting, late, early]) is early
    assert first_fetch([waiting]) is first_fetch([]) is None
    assert first_fetch([late, early, pod("done", digest="sha256:" + "a" * 64)]) is None
