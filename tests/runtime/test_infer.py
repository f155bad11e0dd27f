"""Inference over a real connection, with a model that waits for the test's word."""

import asyncio
import gzip
import os
import threading
import zlib
from typing import Any

import numpy as np
import pytest

from pilotage_runtime.services import arrival
from pilotage_runtime.telemetry import CODES
from tests.runtime.scripted import body, contract, double, serving


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


async def test_time_up_is_answered_and_counted_while_the_model_still_runs(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with serving(wait) as world:
        caller = await world.caller()
        answer = await caller.infer(1, x_envoy_expected_rq_timeout_ms="30")
        assert not gate.is_set()
        assert (answer.status, world.count(504), world.in_flight) == (504, 1, 0)
        assert answer.error == "no answer within the 30 ms that the caller waits"
        gate.set()


@pytest.mark.parametrize(
    ("headers", "parameters", "waits"),
    [({"x_envoy_expected_rq_timeout_ms": "30"}, {"timeout": 10_000_000}, "30 ms"), ({}, {"timeout": 40_000}, "40 ms"),
     ({"x_envoy_expected_rq_timeout_ms": "10000"}, {"timeout": 25_500}, "25.5 ms")],
)  # fmt: skip
async def test_the_smallest_of_the_callers_deadlines_counts(
    gate: threading.Event, headers: dict[str, str], parameters: dict[str, int], waits: str
) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with serving(wait) as world:
        caller = await world.caller()
        caller.send(body(1, parameters=parameters), **headers)
        answer = await caller.answer()
        assert answer.status == 504
        assert f"within the {waits} that" in answer.error
        gate.set()


async def test_a_request_that_waits_beyond_its_time_never_reaches_the_model(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with serving(wait) as world:
        first, second = await world.caller(), await world.caller()
        first.send(body(1))
        await until(lambda: world.model.runs)
        assert (await second.infer(2, x_envoy_expected_rq_timeout_ms="30")).status == 504
        gate.set()
        assert (await first.answer()).status == 200
        assert world.model.runs == [[1]]
        assert (world.count(504), world.count(200), world.in_flight) == (1, 1, 0)


async def test_a_connection_of_http_1_0_ends_behind_its_answer() -> None:
    async with serving() as world:
        caller = await world.caller()
        asked = body(1)
        head = f"POST /v2/models/m/infer HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: {len(asked)}\r\n\r\n"
        caller.writer.write(head.encode() + asked)
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await caller.reader.read() == b""


async def test_a_request_that_is_not_whole_in_time_is_the_callers_fault() -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.writer.write(
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n"
            b"x-envoy-expected-rq-timeout-ms: 30\r\n\r\n{"
        )
        answer = await caller.answer()
        assert (answer.status, world.count(408), world.count(504)) == (408, 1, 0)
        assert answer.headers["connection"] == "close"
        assert await caller.reader.read() == b""


async def test_a_body_may_come_slowly_but_not_byte_by_byte_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(arrival, "BODY_BYTES", 10)
    async with serving() as world:
        caller = await world.caller()
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n"
        caller.writer.write(head)
        for _ in range(20):  # in more than one window
            await asyncio.sleep(0.03)
            caller.writer.write(b" " * 10)
        assert world.in_flight == 1
        answering = asyncio.create_task(caller.answer())
        while not answering.done():
            caller.writer.write(b" ")
            await asyncio.sleep(0.06)
        answer = await answering
        assert (answer.status, world.count(408)) == (408, 1)
        assert answer.error == "fewer than 10 bytes of the body came within 0.3 s"


async def test_a_body_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "BODY_SECONDS", 0.1)
    async with serving() as world:
        caller = await world.caller()
        caller.writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
        assert (await caller.answer()).status == 408


async def test_a_body_in_many_pieces_and_in_chunks_is_put_together() -> None:
    async with serving() as world:
        caller = await world.caller()
        whole = body(1, 2)
        caller.writer.write(
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(whole)
        )
        for at in range(len(whole)):
            caller.writer.write(whole[at : at + 1])
            await asyncio.sleep(0)
        assert (await caller.answer()).json["outputs"][0]["data"] == [2, 4]
        chunked = b"".join(b"1\r\n" + whole[at : at + 1] + b"\r\n" for at in range(len(whole))) + b"0\r\n\r\n"
        caller.send(chunked, transfer_encoding="chunked")
        assert (await caller.answer()).json["outputs"][0]["data"] == [2, 4]


async def test_no_more_of_an_endless_body_is_taken_than_the_cap() -> None:
    async with serving(max_body_bytes=1000) as world:
        caller = await world.caller()
        caller.send(b"400\r\n" + b"x" * 1024 + b"\r\n", transfer_encoding="chunked")
        answer = await caller.answer()
        assert (answer.status, world.count(413)) == (413, 1)
        assert await caller.reader.read() == b""


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/models/m/predict"])
@pytest.mark.parametrize(
    "flood",
    [b"0\r\n" + b"x: y\r\n" * 200_000, b"0\r\nx: " + b"y" * 1_000_000, b"1;" + b"y" * 1_000_000],
    ids=["trailers", "one long trailer", "an extension"],
)
async def test_what_comes_with_a_body_and_is_none_ends_somewhere(path: str, flood: bytes) -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.send(b"", path, transfer_encoding="chunked")
        caller.writer.write(b"2\r\n{}\r\n" + flood)
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert (await (await world.caller()).infer(1)).status == 200


async def test_a_few_trailers_are_passed_over() -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.send(b"", transfer_encoding="chunked")
        whole = body(1)
        caller.writer.write(b"%x\r\n%b\r\n0\r\nx-checksum: 7\r\n\r\n" % (len(whole), whole))
        assert (await caller.answer()).status == 200
        assert (await caller.infer(2)).status == 200


async def test_a_caller_that_leaves_amid_its_rows_is_nobodys_failure() -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.writer.write(b"POST /models/m/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        while not world.in_flight:  # noqa: ASYNC110 - the slot has no event
            await asyncio.sleep(0.005)
        caller.writer.close()
        while world.in_flight:  # noqa: ASYNC110 - the slot has no event
            await asyncio.sleep(0.005)
        assert [world.count(code) for code in CODES] == [0] * len(CODES)


async def test_a_list_of_models_takes_no_endless_body() -> None:
    async with serving() as world:
        caller = await world.caller()
        caller.send(b"", "/v2/repository/index", transfer_encoding="chunked")
        part = b"8000\r\n%b\r\n" % (b"x" * 0x8000)
        for _ in range(600):
            caller.writer.write(part)
        assert (await caller.answer()).status == 413


async def test_all_unanswered_bodies_together_may_only_grow_so_far() -> None:
    async with serving(max_body_bytes=1000, max_buffered_bytes=2500) as world:
        callers = [await world.caller() for _ in range(3)]
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        for caller in callers[:2]:
            caller.writer.write(head + b" " * 900)
        await until(lambda: world.in_flight == 2)
        callers[2].writer.write(head + b" " * 900)
        answer = await callers[2].answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        for caller in callers[:2]:
            caller.writer.close()
        await until(lambda: world.in_flight == 0)
        assert (await (await world.caller()).infer(1)).status == 200


async def test_who_sends_slowly_keeps_nobody_out() -> None:
    async with serving(max_body_bytes=1000, max_buffered_bytes=2450) as world:
        slow = [await world.caller() for _ in range(3)]
        whole = [body(value) + b" " * 800 for value in range(3)]
        for caller, sent in zip(slow, whole, strict=True):
            caller.writer.write(
                b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(sent)
                + sent[:800]
            )
        await until(lambda: world.in_flight == 3)
        prompt = await world.caller()
        for _ in range(3):
            assert (await prompt.infer(1)).status == 200
        # Who began first of those that hold most has gone; that is enough for the others.
        assert (await slow[0].answer()).status == 429
        for caller, sent in zip(slow[1:], whole[1:], strict=True):
            caller.writer.write(sent[800:])
            assert (await caller.answer()).status == 200
        assert (world.count(429), world.handler.held.size) == (1, 0)


async def test_a_packed_body_counts_with_what_it_unpacks_to(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with serving(wait, max_buffered_bytes=1800) as world:
        first, second = await world.caller(), await world.caller()
        packed = gzip.compress(body(4) + b" " * 900)
        first.send(packed, content_encoding="gzip")
        await until(lambda: world.model.runs)
        second.send(packed, content_encoding="gzip")
        answer = await second.answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        gate.set()
        assert (await first.answer()).status == 200
        second.send(packed, content_encoding="gzip")
        assert (await second.answer()).status == 200
        assert world.handler.held.size == 0


async def test_beyond_the_queues_bound_the_answer_is_busy(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with serving(wait, max_waiting=2) as world:
        callers = [await world.caller() for _ in range(4)]
        callers[0].send(body(1))
        await until(lambda: world.model.runs)
        for caller in callers[1:3]:
            caller.send(body(1))
        await until(lambda: world.engine.waiting == 2)
        answer = await callers[3].infer(1)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.error == "busy: 2 requests wait already"
        gate.set()
        assert [(await caller.answer()).status for caller in callers[:3]] == [200, 200, 200]
        assert world.count(429) == 1


async def test_requests_in_one_go_are_answered_in_their_order() -> None:
    async with serving() as world:
        caller = await world.caller()
        for value in range(20):
            caller.send(body(value))
            if value % 5 == 0:
                caller.send(b"{", path="/v2/models/m/infer")
                caller.writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        seen = []
        for _ in range(28):
            answer = await caller.answer()
            seen.append(answer.json["outputs"][0]["data"][0] if answer.status == 200 and b"outputs" in answer.body
                        else answer.status)  # fmt: skip
        expected: list[int] = []
        for value in range(20):
            expected.append(value * 2)
            if value % 5 == 0:
                expected += [400, 200]
        assert seen == expected


async def test_many_refusals_in_one_go_do_not_pile_up() -> None:
    async with serving() as world:
        caller = await world.caller()
        for _ in range(3000):
            caller.send(b"{")
        answers = [await caller.answer() for _ in range(3000)]
        assert {answer.status for answer in answers} == {400}


async def test_who_takes_no_answers_may_ask_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(max_body_bytes=200_000) as world:
        caller = await world.caller()
        caller.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
        large = body(*range(10_000))
        sent = 0
        for _ in range(400):
            caller.send(large)
            sent += 1
        await asyncio.sleep(0.5)
        answered = world.count(200)
        assert answered < sent
        await asyncio.sleep(0.3)
        assert world.count(200) == answered


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_packed_body_is_unpacked_as_far_as_the_cap(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    async with serving(max_body_bytes=1000) as world:
        caller = await world.caller()
        caller.send(pack(body(4)), content_encoding=encoding)
        assert (await caller.answer()).json["outputs"][0]["data"] == [8]
        caller.send(pack(b" " * 100_000), content_encoding=encoding)
        bomb = await caller.answer()
        assert bomb.status == 413
        assert "unpacks to more than 1000 bytes" in bomb.error
        caller.send(pack(body(4))[:-5], content_encoding=encoding)
        assert (await caller.answer()).status == 400
        caller.send(pack(body(4)) + pack(body(5)), content_encoding=encoding)
        twice = await caller.answer()
        assert twice.status == 400
        assert twice.error.startswith(f"the body goes on for {len(pack(body(5)))} bytes behind the end")
        caller.send(body(4), content_encoding=encoding)
        assert (await caller.answer()).status == 400
        caller.send(body(4), content_encoding="br")
        unknown = await caller.answer()
        assert (unknown.status, unknown.error) == (
            415, "content encoding br came; gzip, deflate and none are taken",
        )  # fmt: skip


async def test_a_caller_that_asks_first_whether_to_send_is_told() -> None:
    async with serving() as world:
        caller = await world.caller()
        whole = body(1)
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
        caller.writer.write(head % len(whole))
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.writer.write(whole)
        assert (await caller.answer()).status == 200
        caller.writer.write(head % 100_000)
        assert (await caller.answer()).status == 413


async def test_a_defect_of_our_own_is_500_without_its_text() -> None:
    def bad_answer(inputs: Any, outputs: Any) -> list[Any]:
        return [np.array([1], np.float32), "more than asked for"]

    async with serving(bad_answer) as world:
        answer = await (await world.caller()).infer(1)
        assert (answer.status, world.count(500), world.in_flight) == (500, 1, 0)

    async with serving(described=contract(datatype="BYTES")) as world:
        world.repository.not_served = None  # pyright: ignore[reportAttributeAccessIssue]
        world.engine.check = None  # pyright: ignore[reportAttributeAccessIssue]
        answer = await (await world.caller()).infer(1)
        assert answer.error == "internal error; the log has it under this request's id"
        assert (answer.status, world.count(500), world.in_flight) == (500, 1, 0)


async def test_while_draining_each_answer_says_to_close(gate: threading.Event) -> None:
    async with serving() as world:
        caller = await world.caller()
        assert "connection" not in (await caller.infer(1)).headers
        world.lifecycle.draining = True
        assert (await caller.infer(1)).headers["connection"] == "close"
        assert await caller.reader.read() == b""


async def test_a_failure_told_in_halves_of_characters_is_told_all_the_same() -> None:
    def unreadable(inputs: Any, outputs: Any) -> list[Any]:
        raise OSError(os.fsdecode(b"cannot read \xff.txt"))

    async with serving(unreadable) as world:
        caller = await world.caller()
        answer = await caller.infer(1)
        assert (answer.status, answer.error) == (500, "model 'm' failed: cannot read ?.txt")
        assert world.in_flight == 0


async def test_an_answer_that_cannot_be_counted_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncountable(*_: Any) -> None:
        raise TypeError("unhashable")

    async with serving() as world:
        monkeypatch.setattr(world.engine, "predicted", uncountable)
        caller = await world.caller()
        assert (await caller.infer(1)).status == 200


async def test_a_defect_of_our_own_on_any_path_has_the_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise RuntimeError("the secret of the inside")

    async with serving() as world:
        monkeypatch.setattr(world.repository, "names", broken)
        caller = await world.caller()
        caller.send(b"{}", "/v2/repository/index")
        answer = await caller.answer()
        assert (answer.status, answer.error) == (
            500,
            "internal error; the log has it under this request's id",
        )
