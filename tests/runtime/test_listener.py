"""How connections are accepted, on the event loop that serves."""

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
import uvloop

from pilotage_runtime.services.listener import ACCEPTS, listen, several
from tests.runtime.conftest import Servers

CALLERS = 4 * ACCEPTS


def turns_until_all_are_accepted(listeners: list[socket.socket]) -> int:
    """How many turns of the loop it takes to accept callers that all wait when it begins."""

    async def accept() -> int:
        loop = asyncio.get_running_loop()
        turns, accepted = 0, 0
        begun: int | None = None
        done = asyncio.Event()

        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                nonlocal accepted, begun
                begun = turns if begun is None else begun
                accepted += 1
                transport.close()
                if accepted == CALLERS:
                    done.set()

        with contextlib.ExitStack() as callers:
            for listener in listeners:
                listener.listen(CALLERS)
            for _ in range(CALLERS):
                callers.enter_context(socket.create_connection(listeners[0].getsockname()))
            servers = [await loop.create_server(Accepted, sock=listener) for listener in listeners]
            turn()
            await asyncio.wait_for(done.wait(), 30)
            for server in servers:
                server.close()
            assert begun is not None
            return turns - begun

    return uvloop.run(accept())


def test_a_turn_of_the_loop_accepts_several_connections() -> None:
    assert turns_until_all_are_accepted(several(listen("127.0.0.1", 0))) < CALLERS / ACCEPTS * 2


def test_one_listener_alone_accepts_one_a_turn() -> None:
    """Without which there would be no reason for the others."""
    assert turns_until_all_are_accepted([listen("127.0.0.1", 0)]) >= CALLERS - 2


def test_a_worker_that_comes_up_makes_no_other_wait_for_a_connection() -> None:
    """A worker gets the port as a descriptor, and with it the one flag that all of them share."""
    port = listen("127.0.0.1", 0)
    assert not os.get_blocking(port.fileno())
    theirs = several(socket.socket(fileno=os.dup(port.fileno())))
    assert len(theirs) == ACCEPTS
    assert not os.get_blocking(port.fileno())


def test_what_python_does_to_a_port_of_which_it_is_asked_for_another_descriptor() -> None:
    """Without which `several` could ask for one."""
    port = listen("127.0.0.1", 0)
    socket.socket(fileno=os.dup(port.fileno())).dup()
    assert os.get_blocking(port.fileno())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("setting", ["http_port", "metrics_port", "grpc_port"])
def test_a_port_that_is_taken_ends_the_start_with_one_sentence(
    setting: str, workers: int, models: Path, serve: Servers
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve.start(models / "iris" / "1", workers=workers, **{setting: port})
        assert server.wait_exit() == 1
    (line,) = server.log().splitlines()
    assert json.loads(line)["message"] == (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; see PILOTAGE_HOST and PILOTAGE_{setting.upper()}"
    )


def test_a_host_that_is_not_this_machines_is_told_in_one_sentence(models: Path, serve: Servers) -> None:
    server = serve.start(models / "iris" / "1", host="192.0.2.1", http_port=18080)
    assert server.wait_exit() == 1
    (line,) = server.log().splitlines()
    assert "cannot listen on 192.0.2.1 port 18080: Cannot assign requested address" in line
