"""What two processes say to each other: whatever went wrong at one end, the other hears of it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from pilotage_runtime.channel import Channel, Handler
from tests.runtime.conftest import Servers
from tests.runtime.test_repository import factor, scale
from tests.runtime.test_workers import worker_pids


async def never(message: Mapping[str, Any]) -> dict[str, Any]:
    raise AssertionError(message)


@contextlib.asynccontextmanager
async def asking(handler: Handler) -> AsyncGenerator[tuple[Channel, Channel]]:
    """A channel's two ends: one that asks, and one that answers as `handler` does."""
    ours, theirs = socket.socketpair()
    asks = Channel(*await asyncio.open_connection(sock=ours), never)
    asked = Channel(*await asyncio.open_connection(sock=theirs), handler)
    running = [asyncio.create_task(end.run()) for end in (asks, asked)]
    async with asyncio.timeout(10):
        yield asks, asked
        for end in (asks, asked):
            end._writer.close()
        await asyncio.gather(*running)


@pytest.mark.parametrize("sentence", ["x" * 2**26, "half a character: \ud800"])
async def test_an_error_is_told_however_long_it_is_and_whatever_is_in_it(sentence: str) -> None:
    async def fails(message: Mapping[str, Any]) -> dict[str, Any]:
        if message["do"] == "prepare":
            return {"error": sentence}
        raise OSError(sentence)

    async with asking(fails) as (asks, _):
        answer = await asks.handle({"do": "prepare"})
        assert answer["error"][:18] == sentence[:18]
        assert (await asks.handle({"do": "commit"}))["error"].startswith(f"OSError: {sentence[:18]}")


async def test_an_answer_that_nobody_hears_any_more_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    began, goes = asyncio.Event(), asyncio.Event()

    async def answers_late(message: Mapping[str, Any]) -> dict[str, Any]:
        began.set()
        await goes.wait()
        return {}

    async with asking(answers_late) as (asks, asked):
        owed = asyncio.create_task(asks.handle({"do": "prepare"}))
        await began.wait()
        [answering] = asked._tasks
        asked._writer.close()
        assert "gone" in (await owed)["error"]
        goes.set()
        await answering
    assert caplog.text == ""


def quoting(path: Path, length: int) -> None:
    """A model whose library quotes a name of that length when it refuses it."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([helper.make_node("A" * length, ["x"], ["y"])], "g", [value], [answer])
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)


def test_a_load_that_fails_with_a_long_sentence_ends_no_worker(tmp_path: Path, serve: Servers) -> None:
    folder = tmp_path / "repository"
    scale(folder / "double" / "model.onnx", 2)
    server = serve(folder, "double", workers=2, repository_control=True)
    quoting(folder / "long" / "model.onnx", 2**21)
    answer = server.client.post("/v2/repository/models/long/load")
    assert (answer.status_code, answer.json()["error"][:36]) == (400, "model 'long' cannot be loaded: Inval")
    assert factor(server, "double") == 2
    pids = worker_pids(server)
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, 0)
    assert '"the channel broke"' not in server.log()
