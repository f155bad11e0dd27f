"""How a worker's place is kept: started anew after a pause, and given up where it keeps dying."""

import asyncio
import errno
import functools
import gc
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotage_runtime import supervisor
from pilotage_runtime.roster import UNKNOWN_NUMBER
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.supervisor import MAX_CRASHES, Supervisor, _Place
from tests.runtime.test_repository import scale

KILLED = -9
# A worker that says what no supervisor reads, and goes on until its supervisor has let it go.
TALKATIVE = """
import contextlib, socket, sys
control = socket.socket(fileno=int(sys.argv[2]))
lines = control.makefile("rb")
lines.readline()
control.sendall(b"loaded\\n")
lines.readline()
with contextlib.suppress(ConnectionError):
    control.sendall(b"x" * 2**26)
    lines.readline()
sys.exit(7)
"""


def open_descriptors() -> int:
    gc.collect()  # what earlier tests have left
    return len(list(Path("/proc/self/fd").iterdir()))


class Place:
    """A supervisor's first place, whose worker ends as the test says."""

    def __init__(self, folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = ServeSettings(
            model_dir=folder, model_name="m", host="127.0.0.1", http_port=0, termination_log=log
        )
        self.supervisor = Supervisor(settings)
        self.firsts = list[bool]()
        self.pauses = list[float]()
        self._log = log
        self._statuses = list[int]()
        self._loads = True
        monkeypatch.setattr(self.supervisor, "_run_worker", self._run)
        monkeypatch.setattr(self.supervisor, "_pause", self._pause)

    async def keep(self, *statuses: int, loads: bool = True) -> int:
        """Let workers end with these statuses, and then the server stop."""
        self._statuses, self._loads = [*statuses], loads
        return await self.supervisor._keep(self.supervisor._places[0])

    @property
    def told(self) -> dict[str, str]:
        return json.loads(self._log.read_text())

    async def _run(self, place: _Place) -> int:
        self.firsts.append(not place.loaded)
        place.loaded = place.loaded or self._loads
        return self._statuses.pop(0)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if not self._statuses:
            self.supervisor._stopping.set()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    log = tmp_path / "termination-log"
    log.touch()
    scale(tmp_path / "model" / "model.onnx", 2)
    made = Place(tmp_path / "model", log, monkeypatch)
    yield made
    made.supervisor._listener.close()


async def test_a_worker_that_dies_is_started_anew_after_ever_longer_pauses(place: Place) -> None:
    assert await place.keep(*[KILLED] * (MAX_CRASHES - 1)) == 0
    assert place.pauses == [0.25, 0.5, 1.0, 2.0]
    # Only the first waits for the others before it serves.
    assert place.firsts == [True, False, False, False]


async def test_what_was_in_flight_dies_with_its_worker_though_its_model_is_wanted_no_more(
    place: Place,
) -> None:
    roster, sheet = place.supervisor._roster, place.supervisor._sheets[0]
    (number,) = roster.wanted
    for slot in (sheet.slot(number), sheet.slot(UNKNOWN_NUMBER)):
        slot.enter()
    sheet.connected(1)
    roster.replace("m", {})
    await place.keep(KILLED)
    assert (sheet.slot(number).in_flight, sheet.slot(UNKNOWN_NUMBER).in_flight, sheet.connections) == (
        0,
        0,
        0,
    )


async def test_a_worker_that_keeps_dying_is_given_up(place: Place) -> None:
    assert await place.keep(*[KILLED] * MAX_CRASHES) == 1
    assert len(place.pauses) == MAX_CRASHES - 1
    assert (place.told["stage"], place.told["reason"]) == ("Serve", "WorkersCrashed")
    assert f"worker 0 died {MAX_CRASHES} times, at last by SIGKILL" in place.told["message"]


async def test_a_worker_that_dies_now_and_then_is_never_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_HEALTHY_SECONDS", -1.0)
    assert await place.keep(*[KILLED] * 3 * MAX_CRASHES) == 0
    assert place.pauses == [0.25] * 3 * MAX_CRASHES


async def test_a_first_load_that_is_ended_from_outside_says_by_what(place: Place) -> None:
    assert await place.keep(KILLED, loads=False) == 1
    assert (place.told["stage"], place.told["reason"]) == ("Load", "LoadFailed")
    assert place.told["message"] == "the model's first load was ended by SIGKILL"


async def test_a_first_load_that_fails_ends_with_its_own_status_and_words(place: Place) -> None:
    place._log.write_text('{"told": "by the worker"}')
    assert await place.keep(75, loads=False) == 75
    assert place.told == {"told": "by the worker"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
async def test_ctrl_c_before_anything_serves_is_told_by_the_status(
    place: Place, number: signal.Signals, status: int
) -> None:
    place.supervisor._stop(number)
    assert await place.keep() == status


async def test_a_worker_that_cannot_be_started_is_tried_again_and_ends_no_other(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = functools.partial(Supervisor._run_worker, place.supervisor)
    monkeypatch.setattr(place.supervisor, "_run_worker", run)
    tries = list[None]()

    async def refuse(*_: str, **__: Any) -> asyncio.subprocess.Process:
        tries.append(None)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    place._statuses = [KILLED]  # so that nothing stops but the tries' end
    place.supervisor._places[0].loaded = True
    open_before = open_descriptors()
    assert await place.supervisor._keep(place.supervisor._places[0]) == 1
    assert open_descriptors() == open_before
    assert (len(tries), len(place.pauses)) == (MAX_CRASHES, MAX_CRASHES - 1)
    assert (place.told["stage"], place.told["reason"]) == ("Serve", "WorkersCrashed")
    assert "could not be started: [Errno 11] Resource temporarily unavailable" in place.told["message"]


async def test_a_first_worker_that_cannot_be_started_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = functools.partial(Supervisor._run_worker, place.supervisor)
    monkeypatch.setattr(place.supervisor, "_run_worker", run)

    async def refuse(*_: str, **__: Any) -> asyncio.subprocess.Process:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    assert await place.supervisor._keep(place.supervisor._places[0]) == 1
    assert (place.told["stage"], place.told["reason"]) == ("Load", "LoadFailed")
    assert place.told["message"] == "worker 0 could not be started: [Errno 12] Cannot allocate memory"


async def test_a_worker_whose_channel_has_broken_is_let_go(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec

    async def talkative(python: str, *arguments: str, **more: Any) -> asyncio.subprocess.Process:
        return await start(python, "-c", TALKATIVE, *arguments[2:], **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", talkative)
    async with asyncio.timeout(20):
        assert await Supervisor._run_worker(place.supervisor, place.supervisor._places[0]) == 7
    assert place.supervisor._members == {}
