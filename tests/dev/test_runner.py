from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from pilotage_dev import runner
from pilotage_dev.part import Part, Tier
from pilotage_dev.process import Command, Process
from pilotage_dev.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path


def silent(_: str) -> None:
    pass


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(folder=tmp_path)


def program(name: str, code: str, *after: str) -> Part:
    """A part that runs Python code and is ready once it has written its file."""
    return Part(
        name=name,
        tier=Tier.ALL,
        after=after,
        command=lambda _: Command((sys.executable, "-c", code)),
        ready=lambda stack: (stack.folder / name / "ready").exists(),
        within=20,
    )


LIVES = "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(60)"


def test_parts_start_in_order_and_stop(stack: Stack) -> None:
    needs = "import pathlib; assert pathlib.Path('../first/ready').exists(); " + LIVES
    parts = (program("second", needs, "first"), program("first", LIVES))
    runner.up(stack, parts, silent)
    started = [Process.read(stack.pid_file(part.name)) for part in parts]
    assert all(process is not None and process.alive() for process in started)
    assert runner.dead_parts(stack, parts) == []

    runner.down(stack, parts, silent)

    assert not any(process is not None and process.alive() for process in started)


def test_a_part_that_dies_is_named_with_the_end_of_its_log(stack: Stack) -> None:
    parts = (program("lives", LIVES), program("dies", "raise SystemExit('the port is taken')"))
    with pytest.raises(
        runner.PartFailedError, match=r"(?s)dies died before .*dies\.log:\n    the port is taken"
    ):
        runner.up(stack, parts, silent)
    runner.down(stack, parts, silent)


def test_what_waits_for_a_part_that_died_is_not_started(stack: Stack) -> None:
    parts = (program("dies", "raise SystemExit(1)"), program("waits", LIVES, "dies"))
    with pytest.raises(runner.PartFailedError, match="dies died"):
        runner.up(stack, parts, silent)
    assert not stack.pid_file("waits").exists()


def test_a_part_waits_for_its_port_and_then_says_who_to_ask(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PORT_WAIT", 0.3)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = holder.getsockname()
        part = Part(name="listens", tier=Tier.ALL, ready=lambda _: True, ports=lambda _: (address,))
        with pytest.raises(
            runner.StackError, match=f"listens needs 127.0.0.1:{address[1]}, which another process"
        ):
            runner.up(stack, (part,), silent)
    runner.up(stack, (part,), silent)
