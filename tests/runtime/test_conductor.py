"""Changes that several workers take together, or none of them: whoever comes, goes or gives up meanwhile."""

import asyncio
import os
import shutil
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilotage_runtime import conductor as conducting
from pilotage_runtime import memory
from pilotage_runtime.catalog import Location
from pilotage_runtime.channel import Channel
from pilotage_runtime.conductor import Conductor, Member
from pilotage_runtime.digest import digest
from pilotage_runtime.errors import Refused
from pilotage_runtime.loading import Loading
from pilotage_runtime.repository import Repository
from pilotage_runtime.roster import Roster
from pilotage_runtime.settings import ServeSettings
from pilotage_runtime.telemetry import Sheet
from pilotage_runtime.worker import _Remote
from tests.runtime.conftest import Server, Servers, eventually
from tests.runtime.test_infer import until
from tests.runtime.test_repository import scale
from tests.runtime.test_workers import worker_pids

HELD = """
import pathlib, time

class Model:
    def load(self, folder):
        hold = pathlib.Path({hold!r})
        if hold.exists():
            hold.with_name("loading").touch()
        while hold.exists():
            time.sleep(0.01)
        pathlib.Path(folder, "contract.json").stat()

    def predict(self, inputs):
        return {{"y": inputs["x"] * 7}}
"""
CONTRACT = (
    '{"inputs":[{"name":"x","datatype":"FP32","shape":[-1]}],'
    '"outputs":[{"name":"y","datatype":"FP32","shape":[-1]}]}'
)


class Worker:
    """A member that notes its steps, and takes one when the test lets it."""

    def __init__(self, **answers: Any) -> None:
        self.steps = list[str]()
        self.free = asyncio.Event()
        self.free.set()
        self._answers = {"prepare": {"loaded": 1}, **answers}

    async def handle(self, message: Mapping[str, Any]) -> dict[str, Any]:
        step = message["do"]
        self.steps.append(f"{step} {message['model']}" if "model" in message else step)
        await self.free.wait()
        answer = self._answers.get(step, {})
        return answer(message) if callable(answer) else answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scale(tmp_path / "repository" / "triple" / "model.onnx", 3)
    return tmp_path / "repository"


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A model whose load goes on for as long as the file `hold` is beside its folder."""
    model = tmp_path / "held"
    model.mkdir()
    (model / "model.py").write_text(HELD.format(hold=str(tmp_path / "hold")))
    (model / "contract.json").write_text(CONTRACT)
    return model


def conducted(folder: Path, members: Sequence[Member], **settings: Any) -> tuple[Conductor, Roster]:
    roster = Roster(folder, "m")
    chosen = ServeSettings(model_dir=folder, model_name="m", **settings)
    return Conductor(chosen, roster, lambda: list(members)), roster


def loading_of(folder: Path) -> Loading:
    return Loading(ServeSettings(model_dir=folder, model_name="m"), Repository(Sheet()))


def names(roster: Roster) -> list[str]:
    return sorted(location.model for location in roster.wanted.values())


# Workers that come while a change is under way.


async def test_a_worker_that_comes_up_during_a_load_takes_part_in_it(folder: Path) -> None:
    first, second = Worker(), Worker()
    members = [first]
    conductor, roster = conducted(folder, members)
    scale(folder / "five" / "model.onnx", 5)
    first.free.clear()
    load = asyncio.create_task(conductor.load("five"))
    await until(lambda: first.steps)
    members.append(second)
    first.free.set()
    await load
    assert first.steps == second.steps == ["prepare five", "commit five"]
    assert names(roster) == ["five", "triple"]


async def test_what_a_late_worker_cannot_load_none_does(folder: Path) -> None:
    first, second = Worker(), Worker(prepare={"error": "no room"})
    members = [first]
    conductor, roster = conducted(folder, members)
    first.free.clear()
    load = asyncio.create_task(conductor.load("triple"))
    await until(lambda: first.steps)
    members.append(second)
    first.free.set()
    with pytest.raises(Refused, match="no room"):
        await load
    assert first.steps == second.steps == ["prepare triple", "abort"]
    assert roster.generation == 0


async def test_only_a_load_that_changes_something_is_another_generation(folder: Path) -> None:
    loading = loading_of(folder)
    conductor, roster = conducted(folder, [loading])
    before = roster.wanted
    loading.load_all(before)
    await conductor.load("triple")
    assert (roster.wanted, roster.generation) == (before, 0)
    scale(folder / "triple" / "model.onnx", 33)
    await conductor.load("triple")
    assert (roster.wanted, roster.generation) == (before, 1)
    await conductor.unload("triple")
    assert (roster.wanted, roster.generation) == ({}, 2)


async def test_a_load_that_nobody_was_there_to_take_part_in_is_another_generation(folder: Path) -> None:
    conductor, roster = conducted(folder, [])
    await conductor.load("triple")
    assert roster.generation == 1


async def test_whoever_starts_anew_waits_for_no_member_that_does_not_answer_and_for_no_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conducting, "_ANSWER_SECONDS", 0.05)
    member = Worker()
    conductor, _ = conducted(folder, [member])
    member.free.clear()
    async with asyncio.timeout(10):
        await conductor.agree()
        load = asyncio.create_task(conductor.load("triple"))
        await until(lambda: "prepare triple" in member.steps)
        await conductor.agree()
    assert member.steps == ["changed", "prepare triple"]
    member.free.set()
    await load


async def to_nobody() -> Channel:
    """A channel whose other end has gone."""
    reader = asyncio.StreamReader()
    reader.feed_eof()

    async def never(message: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError(message)

    channel = Channel(reader, None, never)  # pyright: ignore[reportArgumentType] - nothing is written
    await channel.run()
    return channel


async def test_a_step_for_a_process_that_has_gone_is_answered_at_once() -> None:
    channel = await to_nobody()
    async with asyncio.timeout(10):
        assert "gone" in (await channel.handle({"do": "usage"}))["error"]


async def test_a_worker_whose_supervisor_has_gone_refuses_a_change_for_now() -> None:
    remote = _Remote(await to_nobody())
    with pytest.raises(Refused) as refused:
        await remote.load("triple")
    assert refused.value.status == 503


async def test_a_step_that_breaks_off_unexpectedly_is_answered_with_what_was_raised() -> None:
    async def breaks(message: Mapping[str, Any]) -> dict[str, Any]:
        raise OSError(f"no {message['model']}")

    ours, theirs = socket.socketpair()
    asking = Channel(*await asyncio.open_connection(sock=ours), breaks)
    asked = Channel(*await asyncio.open_connection(sock=theirs), breaks)
    running = [asyncio.create_task(end.run()) for end in (asking, asked)]
    async with asyncio.timeout(10):
        answer = await asking.handle({"do": "prepare", "model": "triple"})
    assert answer == {"error": "OSError: no triple"}
    for end, task in zip((asking, asked), running, strict=True):
        end._writer.close()
        await task


def factors(server: Server, model: str) -> set[float]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    found = set[float]()
    for _ in range(24):
        answer = httpx.post(
            f"{server.client.base_url}/v2/models/{model}/infer", json={"inputs": [tensor]}, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        found.add(answer.json()["outputs"][0]["data"][0])
    return found


def serving(server: Server, count: int) -> list[int]:
    return eventually(lambda: len(pids := worker_pids(server)) == count and pids)


def test_workers_agree_though_one_came_up_during_a_long_load(
    folder: Path, held: Path, serve: Servers
) -> None:
    server = serve(folder, repository_control=True, workers=2, trusted=True, model_digest=digest(held))
    hold = held.with_name("hold")
    hold.touch()
    held.rename(folder / "held")
    answers = list[httpx.Response]()
    url = f"{server.client.base_url}/v2/repository/models/held/load"
    load = threading.Thread(target=lambda: answers.append(httpx.post(url, timeout=60, trust_env=False)))
    server.client.close()
    one, _ = serving(server, 2)
    os.kill(one, signal.SIGKILL)
    eventually(lambda: '"worker died"' in server.log())
    load.start()
    serving(server, 3)
    hold.unlink()
    load.join()
    assert answers[0].status_code == 200, answers[0].text
    assert factors(server, "held") == {7}


def test_a_worker_that_loaded_what_has_been_replaced_meanwhile_never_serves_it(
    folder: Path, held: Path, serve: Servers
) -> None:
    held.rename(folder / "x-held")  # behind the model that will change, in the order of loading
    hold = folder.with_name("hold")
    server = serve(
        folder, repository_control=True, workers=2, trusted=True, model_digest=digest(folder / "x-held")
    )
    server.client.close()
    one, _ = serving(server, 2)
    hold.touch()
    os.kill(one, signal.SIGKILL)
    eventually(hold.with_name("loading").exists)
    scale(folder / "triple" / "model.onnx", 33)
    answer = httpx.post(f"{server.client.base_url}/v2/repository/models/triple/load", trust_env=False)
    assert answer.status_code == 200
    hold.unlink()
    serving(server, 3)
    assert factors(server, "triple") == {33}


def test_a_worker_whose_only_version_has_gone_while_it_loaded_starts_anew_with_what_is_wanted(
    folder: Path, held: Path, serve: Servers
) -> None:
    shutil.rmtree(folder / "triple")
    shutil.copytree(held, folder / "held" / "1")
    hold = held.with_name("hold")
    server = serve(folder, repository_control=True, workers=2, trusted=True, model_digest=digest(held))
    server.client.close()
    one, _ = serving(server, 2)
    hold.touch()
    os.kill(one, signal.SIGKILL)
    eventually(hold.with_name("loading").exists)
    scale(folder / "held" / "2" / "model.onnx", 33)
    shutil.rmtree(folder / "held" / "1")
    answer = httpx.post(f"{server.client.base_url}/v2/repository/models/held/load", trust_env=False)
    assert answer.status_code == 200, answer.text
    hold.unlink()
    serving(server, 3)
    assert factors(server, "held") == {33}
    # That its load failed is no crash of its own.
    assert server.log().count('"worker died"') == 1


def test_a_worker_that_dies_while_no_model_is_loaded_is_replaced(folder: Path, serve: Servers) -> None:
    server = serve(folder, repository_control=True, workers=2)
    one, _ = serving(server, 2)
    path = f"{server.client.base_url}/v2/repository/models/triple"
    server.client.close()
    assert httpx.post(f"{path}/unload", trust_env=False).status_code == 200
    os.kill(one, signal.SIGKILL)
    serving(server, 3)
    assert httpx.post(f"{path}/load", trust_env=False).status_code == 200
    assert factors(server, "triple") == {3}


# Callers that leave while a change is under way.


async def test_a_change_goes_on_to_its_end_though_its_caller_has_left(folder: Path) -> None:
    worker = Worker()
    conductor, roster = conducted(folder, [worker])
    scale(folder / "five" / "model.onnx", 5)
    worker.free.clear()
    load = asyncio.create_task(conductor.load("five"))
    await until(lambda: worker.steps)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    next_one = asyncio.create_task(conductor.unload("triple"))
    worker.free.set()
    await next_one
    assert worker.steps == ["prepare five", "commit five", "prepare triple", "commit triple"]
    assert names(roster) == ["five"]


async def test_a_change_that_breaks_off_is_undone(folder: Path) -> None:
    def breaks(message: Mapping[str, Any]) -> dict[str, Any]:
        raise OSError(f"no {message['model']}")

    worker = Worker(prepare=breaks)
    conductor, roster = conducted(folder, [worker])
    with pytest.raises(OSError, match="no triple"):
        await conductor.load("triple")
    assert worker.steps == ["prepare triple", "abort"]
    assert roster.generation == 0


def test_a_load_outlasts_its_callers_patience_and_nothing_of_it_is_left_over(
    folder: Path, held: Path, serve: Servers
) -> None:
    server = serve(folder, repository_control=True, trusted=True, model_digest=digest(held))
    hold = held.with_name("hold")
    hold.touch()
    for version in ("1", "2"):
        shutil.copytree(held, folder / "held" / version)
    path = "/v2/repository/models/held"
    answer = server.client.post(f"{path}/load", headers={"x-envoy-expected-rq-timeout-ms": "300"})
    assert answer.status_code == 504
    hold.unlink()
    scale(folder / "five" / "model.onnx", 5)
    assert server.client.post("/v2/repository/models/five/load").status_code == 200
    entries = server.client.post("/v2/repository/index").json()
    assert [(entry["name"], entry["version"], entry["state"]) for entry in entries] == [
        ("five", "1", "READY"), ("held", "1", "READY"), ("held", "2", "READY"), ("triple", "1", "READY"),
    ]  # fmt: skip
    assert (factors(server, "held"), factors(server, "five")) == ({7}, {5})
    assert server.client.post(f"{path}/unload").status_code == 200
    assert server.client.post("/v2/models/held/infer", json={}).status_code == 404


async def test_a_commit_shows_nothing_but_what_it_names(folder: Path) -> None:
    loading = loading_of(folder)
    triple = {1: Location("triple", "1", folder / "triple")}
    scale(folder / "five" / "model.onnx", 5)
    await loading.prepare({2: Location("five", "1", folder / "five")})
    await loading.prepare(triple)
    loading.commit("triple", triple)
    assert loading._repository.names() == ["triple"]
    await loading.abort()


# Models that make room for another.


def crowded(message: Mapping[str, Any]) -> dict[str, Any]:
    """A member that can load `big` only where another goes, the longest unused being `triple`."""
    del message
    return {"resident": 90, "loaded": [["triple", 1000, 60.0], ["five", 1000, 5.0]]}


def only_big_fails(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": "no version 1"} if message["model"] == "big" else {"loaded": 1}


def steps_of(worker: Worker) -> list[str]:
    return [step for step in worker.steps if step != "usage"]


async def test_what_made_room_is_loaded_again_where_the_load_fails(folder: Path) -> None:
    scale(folder / "big" / "1" / "model.onnx", 1)
    worker = Worker(usage=crowded, prepare=only_big_fails)
    shutil.move(folder / "big", folder.parent / "big")
    scale(folder / "five" / "model.onnx", 5)
    conductor, roster = conducted(folder, [worker], memory_budget_bytes=100, evict_models=True)
    shutil.move(folder.parent / "big", folder / "big")
    before = roster.wanted
    with pytest.raises(Refused, match="model 'big' cannot be loaded: no version 1"):
        await conductor.load("big")
    assert steps_of(worker) == [
        "prepare triple", "commit triple", "prepare big", "abort", "prepare triple", "commit triple",
    ]  # fmt: skip
    assert roster.wanted == before


def used(resident: int, **idle: float) -> dict[str, Any]:
    """What a worker says of its memory, and how long nobody has used each of its models."""
    return {"resident": resident, "loaded": [[name, 1000, seconds] for name, seconds in idle.items()]}


async def loading_big(folder: Path, members: list[Worker], **settings: Any) -> list[str]:
    """Ask for one model more than there is room for, and tell the steps that the first worker took."""
    scale(folder / "five" / "model.onnx", 5)
    conductor, _ = conducted(folder, members, evict_models=True, **settings)
    scale(folder / "big" / "1" / "model.onnx", 1)
    await conductor.load("big")
    return steps_of(members[0])


MAKING_ROOM = ["prepare triple", "commit triple", "prepare big", "commit big"]


async def test_a_model_that_one_worker_has_used_lately_stays(folder: Path) -> None:
    members = [Worker(usage=used(90, triple=40, five=60)), Worker(usage=used(80, triple=50, five=1))]
    assert await loading_big(folder, members, memory_budget_bytes=100) == MAKING_ROOM


@pytest.mark.parametrize("fullest", [0, 1])
async def test_the_fullest_worker_decides_whether_there_is_room(folder: Path, fullest: int) -> None:
    members = [Worker(usage=used(999_990 if at == fullest else 0, triple=60, five=5)) for at in range(2)]
    assert await loading_big(folder, members, memory_budget_bytes=1_000_000) == MAKING_ROOM


async def test_without_a_budget_the_workers_share_the_memory_of_their_container(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nine tenths of it are for models, half of these for each.
    monkeypatch.setattr(memory, "limit", lambda: 2_000_000)
    full, roomy = (Worker(usage=used(resident, triple=60, five=5)) for resident in (899_990, 800_000))
    assert await loading_big(folder, [full], workers=2) == MAKING_ROOM
    assert await loading_big(folder, [roomy], workers=2) == ["prepare big", "commit big"]


async def test_a_version_that_cannot_be_loaded_again_stops_no_other(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder / "triple")
    for path in ("triple/1", "triple/2", "five", "big/1"):
        scale(folder / path / "model.onnx", 1)
    shutil.move(folder / "big", folder.parent / "big")

    def prepare(message: Mapping[str, Any]) -> dict[str, Any]:
        listed = [(message["model"], version) for _, version, _ in message["versions"]]
        damaged = ("triple", "1") in listed or message["model"] == "big"
        return {"error": "damaged"} if damaged else {"loaded": 1}

    worker = Worker(usage=crowded, prepare=prepare)
    conductor, roster = conducted(folder, [worker], memory_budget_bytes=100, evict_models=True)
    shutil.move(folder.parent / "big", folder / "big")
    with pytest.raises(Refused, match="damaged"):
        await conductor.load("big")
    assert [location.version for location in roster.versions("triple").values()] == ["2"]
    assert "cannot be loaded again: damaged" in caplog.text


def test_a_load_that_fails_costs_no_other_model_its_place(folder: Path, serve: Servers) -> None:
    shutil.rmtree(folder / "triple")
    scale(folder / "large" / "model.onnx", 1, padding_mib=40)
    scale(folder / "small" / "model.onnx", 2)
    first = serve(folder, repository_control=True)
    resident = int(Path(f"/proc/{first.process.pid}/statm").read_text().split()[1]) * 4096
    first.terminate()
    first.wait_exit()
    server = serve(
        folder, repository_control=True, evict_models=True, memory_budget_bytes=resident + 10 * 2**20
    )
    (folder / "broken").mkdir()
    (folder / "broken" / "model.onnx").write_bytes(b"\x08\x07" + bytes(40 * 2**20))
    factors(server, "small")
    answer = server.client.post("/v2/repository/models/broken/load")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("model 'broken' cannot be loaded: ")
    assert '"unloading the longest unused","model":"large"' in server.log()
    assert len(factors(server, "large")) == 1


async def test_an_unload_that_a_worker_cannot_take_part_in_is_refused(folder: Path) -> None:
    conductor, roster = conducted(folder, [Worker(prepare={"error": "gone"})])
    with pytest.raises(Refused, match="model 'triple' cannot be unloaded now: gone") as refused:
        await conductor.unload("triple")
    assert (refused.value.status, names(roster)) == (503, ["triple"])
