"""Requests that ask for another protocol: answered in HTTP/1.1, and no body of theirs is read as a request."""

import asyncio

import pytest

from tests.runtime.scripted import body, serving

UPGRADE = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAAAAIAAAAB"}
SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 2, 1000], ids=["one packet", "two packets", "byte by byte"])
@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_who_asks_for_another_protocol_is_answered_in_this_one(upgrade: str, pieces: int) -> None:
    async with serving() as world:
        caller = await world.caller()
        asking = {**UPGRADE, "upgrade": upgrade}
        head = "".join(f"{name}: {value}\r\n" for name, value in asking.items()).encode()
        whole = body(4)
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole)
        post = b"POST %b HTTP/1.1\r\nhost: x\r\n" + head + b"%b\r\n\r\n%b"
        for _ in range(2):  # the connection goes on
            for request in (
                post % (b"/v2/models/m/infer", b"content-length: %d" % len(whole), whole),
                post % (b"/v2/models/m/infer", b"transfer-encoding: chunked", chunked),
                post % (b"/v2/repository/index", b"content-length: 2", b"{}"),
                b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n",
            ):
                cut = request.index(b"\r\n\r\n") + 4
                parts = {1: [request], 2: [request[:cut], request[cut:]]}.get(
                    pieces, [request[at : at + 1] for at in range(len(request))]
                )
                for part in parts:
                    caller.writer.write(part)
                    await asyncio.sleep(0)
                answer = await caller.answer()
                assert answer.status == 200
                assert b"infer" not in request or answer.json["outputs"][0]["data"] == [8]


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/models/m/predict", "/v2/repository/index"])
async def test_the_body_of_who_asks_for_another_protocol_is_no_request(path: str) -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.send(SMUGGLED, path, connection="Upgrade", upgrade="h2c")
        caller.send(body(1))
        first = await caller.answer()
        assert first.status == 400
        assert b"live" not in first.body
        assert (await caller.answer()).json["outputs"][0]["data"] == [2]


async def test_requests_in_one_go_that_ask_for_another_protocol_are_answered_in_their_order() -> None:
    async with serving() as world:
        caller = await world.caller()
        for value in range(20):
            caller.send(body(value), connection="Upgrade", upgrade="h2c")
            caller.send(body(value))
        answers = [(await caller.answer()).json["outputs"][0]["data"] for _ in range(40)]
        assert answers == [[2 * value] for value in range(20) for _ in range(2)]


async def test_a_tunnel_is_refused() -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.writer.write(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n" + SMUGGLED)
        assert (await caller.answer()).status == 400
        assert await caller.reader.read() == b""
