"""The access log under load: sampled lines say so, and failures are not lost among successes."""

import json
import logging
import os
import select
import subprocess
import sys
import time

import pytest

from pilotage_runtime.log import SAMPLED, AccessLog, JsonFormatter, LineHandler
from tests.runtime.conftest import environment


def written(log: AccessLog, reader: int) -> list[dict]:
    log.flush()
    return [json.loads(line) for line in os.read(reader, 10**7).splitlines()]


@pytest.fixture
def pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


def test_a_few_lines_are_all_written(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1], lines_per_second=5)
    for number in range(5):
        log.write(f"r{number}", "POST", "/p", 200, 0.001)
    lines = written(log, pipe[0])
    assert [line["request_id"] for line in lines] == ["r0", "r1", "r2", "r3", "r4"]
    assert not any("sampled" in line for line in lines)


def test_beyond_them_one_line_stands_for_many_and_failures_are_counted_apart(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    log = AccessLog(pipe[1], lines_per_second=5)
    for number in range(5 + 3 * SAMPLED):
        log.write(f"r{number}", "POST", "/p", 200, 0.001)
    log.write("bad", "POST", "/p", 500, 0.001, error="model failed")
    lines = written(log, pipe[0])
    assert [line.get("sampled", 1) for line in lines] == [1] * 5 + [SAMPLED] * 3 + [1]
    assert sum(line.get("sampled", 1) for line in lines) == 5 + 3 * SAMPLED + 1
    assert lines[-1]["error"] == "model failed"
    now[0] += 1
    log.write("next", "POST", "/p", 200, 0.001)
    assert "sampled" not in written(log, pipe[0])[0]


def test_no_request_waits_for_a_log_that_nobody_reads_and_what_was_lost_is_told(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    log = AccessLog(writer, lines_per_second=10**6)
    lines = 3000
    for number in range(lines):
        log.write(f"r{number}", "POST", "/p", 200, 0.001)
    log.flush()
    kept = [json.loads(line) for line in os.read(reader, 10**7).splitlines()]
    assert [line["request_id"] for line in kept] == [f"r{number}" for number in range(len(kept))]
    assert 0 < len(kept) < lines
    log.write("after", "POST", "/p", 200, 0.001)
    told, after = written(log, reader)
    assert (told["lines"], after["request_id"]) == (lines - len(kept), "after")


def test_the_worst_line_fits_in_one_write(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1], lines_per_second=1)
    traced = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    for _ in range(1 + SAMPLED):
        log.write("i" * 128, "OPTIONS", "\x01" * 4000, 400, 1e6, error="\x02" * 4000, traceparent=traced)
    log.flush()
    lines = os.read(pipe[0], 10**7).splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) < select.PIPE_BUF
    assert json.loads(lines[1])["sampled"] == SAMPLED


def test_where_values_are_redacted_a_refusal_quotes_none(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1], quotes_refusals=False)
    log.write("r", "POST", "/p", 400, 0.001, error="feature 'age': 200 came, 0 to 120 is expected")
    log.write("r", "POST", "/p", 504, 0.001, error="no answer within the 30 ms that the caller waits")
    assert [line["error"][:7] for line in written(log, pipe[0])] == ["refused", "no answ"]


def test_when_its_reader_has_gone_serving_goes_on(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    log = AccessLog(pipe[1])
    for number in range(500):
        log.write(f"r{number}", "POST", "/p", 200, 0.001)
    log.flush()


def test_a_line_has_what_was_passed_beside_the_message_and_the_whole_failure() -> None:
    logger = logging.getLogger("pilotage_runtime.test")
    failure = ValueError("told to fail")
    record = logger.makeRecord(
        logger.name, logging.ERROR, __file__, 1, "worker %d died", (3,),
        (ValueError, failure, None), extra={"worker": 3, "path": os},
    )  # fmt: skip
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"]) == ("error", logger.name, "worker 3 died")
    assert (line["worker"], line["path"]) == (3, str(os))
    assert line["exception"] == "ValueError: told to fail\n"


def test_a_process_whose_log_nobody_reads_goes_on_to_its_end() -> None:
    script = """
import logging
from pilotage_runtime import log

log.configure()
for _ in range(3000):
    logging.getLogger("n").error("worker died")
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def handler_of(descriptor: int) -> tuple[LineHandler, logging.LogRecord]:
    handler = LineHandler(descriptor)
    handler.setFormatter(JsonFormatter())
    return handler, logging.makeLogRecord({"name": "n", "levelname": "ERROR", "msg": "worker died"})


def test_nobody_who_logs_waits_for_long_where_nobody_reads_and_what_was_lost_is_told(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    handler, record = handler_of(writer)
    began = time.monotonic()
    for _ in range(3000):
        handler.handle(record)
    # Once it is patient, and not with every line.
    assert time.monotonic() - began < 5
    kept = os.read(reader, 10**7).splitlines()
    assert {json.loads(line)["message"] for line in kept} == {"worker died"}
    assert 0 < len(kept) < 3000
    handler.handle(record)
    told, after = map(json.loads, os.read(reader, 10**7).splitlines())
    assert (told["message"], told["lines"]) == (
        "lines of the log were lost: nobody read it",
        3000 - len(kept),
    )
    assert after["message"] == "worker died"


def test_a_line_that_was_lost_in_its_middle_spoils_no_other(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    handler, record = handler_of(writer)
    long = logging.makeLogRecord({"name": "n", "levelname": "ERROR", "msg": "long" * 2**17})
    handler.handle(long)
    os.read(reader, 10**7)
    handler.handle(record)
    _, told, after = os.read(reader, 10**7).split(b"\n", 2)
    assert json.loads(told)["lines"] == 1
    assert json.loads(after)["message"] == "worker died"


def test_a_long_line_comes_whole_where_somebody_reads(pipe: tuple[int, int]) -> None:
    handler, _ = handler_of(pipe[1])
    handler.handle(logging.makeLogRecord({"name": "n", "levelname": "ERROR", "msg": "long" * 2**13}))
    assert json.loads(os.read(pipe[0], 10**7))["message"] == "long" * 2**13


def test_what_logs_goes_on_when_its_reader_has_gone(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    handler, record = handler_of(pipe[1])
    for _ in range(500):
        handler.handle(record)
