"""The access log under load: sampled lines say so, and failures are not lost among successes."""

import json
import os
import time

import pytest

from pilotage_runtime.log import SAMPLED, AccessLog


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
