"""The protocol over gRPC: the same engine, errors and numbers as REST, and nothing imported where it is off."""

import asyncio
import json
import queue
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import numpy as np
import pytest

from pilotage_runtime import telemetry
from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import Refused
from pilotage_runtime.log import AccessLog
from pilotage_runtime.protocol import messages, v2, v2_grpc
from pilotage_runtime.services import awaited, grpc_server
from pilotage_runtime.services.admin import Control
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.grpc_server import GrpcServer, _left
from pilotage_runtime.tensors import DATATYPES
from tests.runtime.conftest import Server, Servers, free_port
from tests.runtime.scripted import NOWHERE, World, double, serving
from tests.runtime.test_infer import until

METHODS = messages.load()
TYPED = [name for name in DATATYPES if name not in ("FP16", "BF16")]


class Client:
    """The service's methods by name."""

    def __init__(self, channel: Any, server: Any = None) -> None:
        self._channel = channel
        self.server = server

    def stream(self, requests: Any = None) -> Any:
        return self._channel.stream_stream(
            f"/{messages.SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=METHODS["ModelStreamInfer"].response.FromString,
        )(requests)

    def silent(self, name: str) -> Any:
        """A call whose message never comes."""
        return self._channel.stream_unary(f"/{messages.SERVICE}/{name}")()

    def __getattr__(self, name: str) -> Any:
        method = METHODS[name]
        return self._channel.unary_unary(
            f"/{messages.SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=method.response.FromString,
        )


def request(*values: float, **fields: Any) -> Any:
    message = METHODS["ModelInfer"].request(model_name="m", **fields)
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[len(values)])
    tensor.contents.fp32_contents.extend(values)
    return message


@asynccontextmanager
async def connected(
    run: Any = double,
    *,
    control: Control | None = None,
    max_calls: int = 100,
    max_body_bytes: int = 10_000,
    **limits: Any,
) -> AsyncGenerator[tuple[Client, World]]:
    async with serving(run, max_body_bytes=max_body_bytes, **limits) as world:
        port = free_port()
        server = GrpcServer(
            world.repository,
            world.lifecycle,
            AccessLog(NOWHERE),
            control,
            world.handler.held,
            host="127.0.0.1",
            port=port,
            max_calls=max_calls,
        )
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Client(channel, server), world
        finally:
            await server.stop()


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


async def test_typed_and_raw_contents_are_answered_alike() -> None:
    async with connected() as (client, world):
        typed = await client.ModelInfer(request(1, 2, id="7"))
        assert (typed.model_name, typed.model_version, typed.id) == ("m", "1", "7")
        assert list(typed.outputs[0].contents.fp32_contents) == [2, 4]
        message = METHODS["ModelInfer"].request(model_name="m", model_version="1")
        message.inputs.add(name="x", datatype="FP32", shape=[2])
        message.raw_input_contents.append(np.array([1, 2], np.float32).tobytes())
        raw = await client.ModelInfer(message)
        assert np.frombuffer(raw.raw_output_contents[0], np.float32).tolist() == [2, 4]
        assert not raw.outputs[0].HasField("contents")
        assert (world.count(200), world.in_flight) == (2, 0)


@pytest.mark.parametrize("datatype", TYPED)
def test_each_datatype_with_typed_contents_comes_and_goes_unchanged(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1,))
    values = (
        np.array([0, 1, 1], DATATYPES[datatype].dtype)
        if datatype != "BYTES"
        else np.array(["a", "ö", ""], object)
    )
    written = v2_grpc.write(
        METHODS["ModelInfer"].response(), v2.InferRequest(None, {}, ()), [spec], [values]
    ).outputs[0]
    message = METHODS["ModelInfer"].request()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=written.shape)
    tensor.contents.ParseFromString(written.contents.SerializeToString())
    came = v2_grpc.read(message).inputs["x"]
    assert came.dtype == values.dtype
    assert came.tolist() == values.tolist()


def test_a_datatype_without_typed_contents_is_answered_raw() -> None:
    specs = Contract((), (TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "BF16", (-1,)))).outputs
    values = [np.ones(1, np.float32), np.ones(1, DATATYPES["BF16"].dtype)]
    answer = v2_grpc.write(METHODS["ModelInfer"].response(), v2.InferRequest(None, {}, ()), specs, values)
    assert [len(raw) for raw in answer.raw_output_contents] == [4, 2]


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ([], "the request has no inputs"),
        ([{"datatype": "FP33"}], "datatype 'FP33' is unknown"),
        ([{"shape": [-1]}], "shape [-1] should hold at least one element"),
        ([{"shape": [0]}], "shape [0] should hold at least one element"),
        ([{"shape": [3]}], "2 elements came, shape [3] needs 3"),
        ([{"shape": [1] * 65}], "shape has 65 dimensions; at most 64 are taken"),
        ([{"shape": [2**62] * 300_000}], "shape has 300000 dimensions; at most 64 are taken"),
        ([{"shape": [2**62, 2**62]}], "2 elements came, shape"),
        ([{"datatype": "INT32"}], "INT32 should come in int_contents, but fp32_contents came"),
        ([{"datatype": "FP16"}], "FP16 has no typed contents; send raw_input_contents"),
        ([{"field": "int_contents", "values": [1, 300], "datatype": "INT8"}], "an element is outside INT8"),
        ([{"field": None}], "has neither contents nor raw_input_contents"),
        ([{}, {}], "input 'x' came twice"),
        ([{"field": "bytes_contents", "values": [b"a", b"\xff"], "datatype": "BYTES"}], "is not UTF-8"),
    ],
)
def test_what_does_not_add_up_is_refused_with_a_sentence(
    tensors: list[dict[str, Any]], sentence: str
) -> None:
    message = METHODS["ModelInfer"].request()
    for stated in tensors:
        stated = {"datatype": "FP32", "shape": [2], "field": "fp32_contents", "values": [1, 2], **stated}  # noqa: PLW2901
        tensor = message.inputs.add(name="x", datatype=stated["datatype"], shape=stated["shape"])
        if stated["field"]:
            getattr(tensor.contents, stated["field"]).extend(stated["values"])
    with pytest.raises(Refused) as refused:
        v2_grpc.read(message)
    assert sentence in refused.value.message


def test_a_very_long_list_of_outputs_is_read_in_time_that_grows_with_it() -> None:
    message = request(1)
    for number in range(100_000):
        message.outputs.add(name=str(number))
    started = time.monotonic()
    assert len(v2_grpc.read(message).outputs) == 100_000
    assert time.monotonic() - started < 5


def test_raw_contents_that_belong_to_no_input_are_refused() -> None:
    message = request(1)
    message.raw_input_contents.append(b"\x00" * 4)
    with pytest.raises(Refused, match="1 raw_input_contents came, 0 inputs are without contents"):
        v2_grpc.read(message)


async def test_whose_fault_it_is_decides_the_code() -> None:
    def fail(inputs: Any, outputs: Any) -> list[Any]:
        raise ValueError("odd")

    async with connected(fail) as (client, world):
        assert await code_of(client.ModelInfer(request(1))) == (
            grpc.StatusCode.INTERNAL, "model 'm' failed: odd",
        )  # fmt: skip
        wrong = METHODS["ModelInfer"].request(model_name="m")
        wrong.inputs.add(name="y", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
        code, sentence = await code_of(client.ModelInfer(wrong))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "input 'x' is missing; input 'y' is unknown" in sentence
        unknown = METHODS["ModelInfer"].request(model_name="nobody")
        assert (await code_of(client.ModelInfer(unknown)))[0] is grpc.StatusCode.NOT_FOUND
        assert (await code_of(client.ModelReady(METHODS["ModelReady"].request(name="m", version="9"))))[
            0
        ] is (grpc.StatusCode.NOT_FOUND)
        assert [world.count(code) for code in (400, 404, 500)] == [1, 1, 1]


@pytest.mark.parametrize("named", ["customer_feature_{}", "признак_клиента_{}", "100%_{}"])
async def test_a_refusal_that_has_much_to_tell_arrives_as_what_it_is(named: str) -> None:
    names = tuple(named.format(at) for at in range(900))
    many = Contract(
        (TensorSpec("x", "FP32", (-1, 900)),), (TensorSpec("y", "FP32", (-1,)),), feature_names=names
    )
    async with connected(described=many) as (client, _):
        code, sentence = await code_of(client.ModelInfer(request(1)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence.startswith("input 'x'")
    assert f"a row is {names[0]}, {names[1]}, " in sentence
    assert sentence.endswith("…")
    assert len(quote(sentence)) < 4000


class Noting:
    """Who loads and unloads, and only notes what."""

    def __init__(self) -> None:
        self.asked = list[str]()

    async def load(self, model: str) -> None:
        self.asked.append(model)

    unload = load


@pytest.mark.parametrize("step", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_what_can_be_no_models_name_is_passed_on_to_nobody(step: str) -> None:
    async with connected(control=(noting := Noting())) as (client, _):
        for name in ("x" * 254, "two\nlines", ""):
            code, sentence = await code_of(getattr(client, step)(METHODS[step].request(model_name=name)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "cannot be a model's name: letters, digits" in sentence
        await getattr(client, step)(METHODS[step].request(model_name="x" * 253))
    assert noting.asked == ["x" * 253]


async def test_a_message_beyond_the_cap_is_refused() -> None:
    async with connected() as (client, _):
        code, _ = await code_of(client.ModelInfer(request(*range(5000))))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await client.ServerLive(METHODS["ServerLive"].request())).live


async def test_the_callers_deadline_ends_the_wait(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with connected(wait) as (client, world):
        code, _ = await code_of(client.ModelInfer(request(1), timeout=0.05))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        message = request(2)
        message.parameters["timeout"].int64_param = 30_000
        code, sentence = await code_of(client.ModelInfer(message, timeout=20))
        assert (code, sentence) == (
            grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within the time that the caller waits",
        )  # fmt: skip
        gate.set()
        # The one that waited never ran.
        assert world.model.runs == [[1]]
        assert world.count(504) + world.count(499) == 2


async def test_a_call_that_ends_at_its_deadline_came_too_late_and_before_it_was_left() -> None:
    exchange = Exchange("POST", "/", [])
    assert _left(exchange) == (499, "the caller left before it was answered")
    exchange.deadline = asyncio.get_running_loop().time() + 10
    assert _left(exchange)[0] == 499
    exchange.deadline = asyncio.get_running_loop().time() + 0.001  # by grpc's clock it has come
    assert _left(exchange) == (504, "no answer within the time that the caller waits")


async def test_a_cancelled_call_leaves_the_queue(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with connected(wait) as (client, world):
        first = client.ModelInfer(request(1))
        async with asyncio.timeout(20):
            while not world.model.runs:  # noqa: ASYNC110 - the model has no event
                await asyncio.sleep(0.005)
            second = client.ModelInfer(request(2))
            while world.engine.waiting != 1:  # noqa: ASYNC110 - the queue has no event
                await asyncio.sleep(0.005)
            second.cancel()
            while world.engine.waiting:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.005)
            gate.set()
            await first
        assert (len(world.model.runs), world.count(499), world.count(200)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("call_seconds", "timeout_us", "expected"), [(60, None, 60), (60, 30_000_000, 30), (20, 30_000_000, 20)]
)
async def test_the_smallest_of_the_deadlines_counts(
    call_seconds: float, timeout_us: int | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines = list[float]()
    async with connected() as (client, world):
        infer = world.engine.infer

        async def noting(*args: Any, deadline: float, **more: Any) -> Any:
            deadlines.append(deadline - asyncio.get_running_loop().time())
            return await infer(*args, deadline=deadline, **more)

        monkeypatch.setattr(world.engine, "infer", noting)
        message = request(1)
        if timeout_us is not None:
            message.parameters["timeout"].int64_param = timeout_us
        await client.ModelInfer(message, timeout=call_seconds)
    assert deadlines == [pytest.approx(expected, abs=5)]


async def test_a_call_that_was_pinned_to_a_revision_is_no_evidence_of_it() -> None:
    async with connected() as (client, world):
        values = world.engine.slot.values
        await client.ModelInfer(request(1), metadata=(("x-pilotage-pinned", "true"),))
        assert (world.count(200), world.in_flight) == (0, 0)
        assert (values[telemetry._PINNED], values[telemetry._ROWS]) == (1, 0)
        await client.ModelInfer(request(1))
        assert (world.count(200), values[telemetry._PINNED], values[telemetry._ROWS]) == (1, 1, 1)


async def test_while_draining_it_is_not_ready_and_answers() -> None:
    async with connected() as (client, world):
        assert (await client.ServerReady(METHODS["ServerReady"].request())).ready
        world.lifecycle.draining = True
        assert not (await client.ServerReady(METHODS["ServerReady"].request())).ready
        assert (await client.ServerLive(METHODS["ServerLive"].request())).live
        assert (await client.ModelInfer(request(3))).outputs[0].contents.fp32_contents[0] == 6


async def test_beyond_the_most_calls_at_a_time_the_answer_is_busy(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with connected(wait, max_calls=2) as (client, world):
        calls = [client.ModelInfer(request(value)) for value in (1, 2)]
        async with asyncio.timeout(20):
            while world.in_flight != 2:  # noqa: ASYNC110 - the slot has no event
                await asyncio.sleep(0.005)
        assert (await code_of(client.ModelInfer(request(3))))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.set()
        assert [(await call).outputs[0].contents.fp32_contents[0] for call in calls] == [2, 4]
        assert (await client.ModelInfer(request(3))).outputs[0].contents.fp32_contents[0] == 6


async def test_a_call_whose_message_never_comes_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "MESSAGE_SECONDS", 0.2)
    async with connected() as (client, _):
        assert await code_of(client.silent("ModelInfer")) == (
            grpc.StatusCode.DEADLINE_EXCEEDED, "no whole message came within 0.2 s",
        )  # fmt: skip
        assert (await client.ModelInfer(request(3))).model_name == "m"


async def test_a_stream_that_is_silent_for_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "STREAM_SECONDS", 0.2)
    async with connected() as (client, _):
        stream = client.stream()
        await stream.write(request(4))
        assert (await stream.read()).infer_response.outputs
        code, sentence = await code_of(stream.read())
        assert (code, sentence) == (
            grpc.StatusCode.DEADLINE_EXCEEDED, "no whole message came within 0.2 s; open the stream anew",
        )  # fmt: skip


async def test_of_calls_whose_message_is_to_come_the_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(awaited, "_SPARED_SECONDS", 0.5)
    async with connected(max_body_bytes=10_000, max_buffered_bytes=50_000) as (client, _):
        waiting = client.server._arriving._waiting
        first = client.silent("ServerReady")
        await until(lambda: waiting)
        others = [client.silent("ServerReady") for _ in range(5)]
        await until(lambda: len(waiting) == 6)
        # What has just come is spared: an honest call is whole by then.
        assert (await client.ModelInfer(request(3))).model_name == "m"
        assert not first.done()
        code, sentence = await code_of(first)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert sentence == "busy: more than 5 calls wait for their message, and this one for longest"
        assert not any(call.done() for call in others)


async def test_messages_that_wait_may_together_only_have_so_many_bytes(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    large = [1.0] * 20_000  # 80 kB
    async with connected(wait, max_body_bytes=100_000, max_buffered_bytes=150_000) as (client, world):
        first = client.ModelInfer(request(*large))
        await until(lambda: world.in_flight == 1)
        code, sentence = await code_of(client.ModelInfer(request(*large)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert sentence.startswith("busy: unanswered requests")
        # Over REST it is the same sum; and a small one is welcome all the same.
        over_rest = await (await world.caller()).infer(*large[:19_000])
        assert over_rest.status == 429
        small = client.ModelInfer(request(1))
        gate.set()
        assert len((await first).outputs[0].contents.fp32_contents) == len(large)
        assert (await small).outputs[0].contents.fp32_contents[0] == 2
        assert (world.count(429), world.handler.held.size) == (2, 0)
        assert (await client.ModelInfer(request(*large))).model_name == "m"


def test_an_open_stream_does_not_hold_back_the_exit(models: Path, serve: Servers) -> None:
    port = free_port()
    server: Server = serve(models / "iris" / "1", "iris", grpc_port=port, drain_seconds=0)
    message = METHODS["ModelInfer"].request(model_name="iris")
    message.inputs.add(name="X", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([5, 3, 1, 0])
    asked = queue.SimpleQueue[Any]()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        silent, talking = (
            Client(channel).stream(iter(queue.SimpleQueue[Any]().get, 0)),
            Client(channel).stream(iter(asked.get, 0)),
        )
        asked.put(message)
        assert next(talking).infer_response.outputs
        server.terminate()
        for stream in (silent, talking):
            with pytest.raises(grpc.RpcError) as ended:
                next(stream)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE, ended.value
        assert server.wait_exit() == 0
        asked.put(0)
    assert "Traceback" not in server.log()


async def test_what_a_stream_has_asked_is_answered_before_it_ends(gate: threading.Event) -> None:
    def wait(inputs: Any, outputs: Any) -> list[Any]:
        gate.wait()
        return double(inputs, outputs)

    async with connected(wait) as (client, world):
        stream = client.stream()
        await stream.write(request(4))
        async with asyncio.timeout(20):
            while not world.model.runs:  # noqa: ASYNC110 - the model has no event
                await asyncio.sleep(0.005)
            stopping = asyncio.create_task(client.server.stop())
            while not client.server._stopping.done():  # noqa: ASYNC110 - the task has just begun
                await asyncio.sleep(0.005)
            gate.set()
            assert (await stream.read()).infer_response.outputs[0].contents.fp32_contents[0] == 8
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.read()
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            await stopping


@pytest.mark.parametrize("workers", [1, 2])
def test_on_sigterm_calls_in_flight_are_finished(models: Path, serve: Servers, workers: int) -> None:
    port = free_port()
    server: Server = serve(models / "fraud" / "bad-latency", grpc_port=port, workers=workers)
    lines = (models / "requests" / "fraud.jsonl").read_text().splitlines()
    slowest = max((json.loads(line)["inputs"][0]["data"] for line in lines), key=lambda data: data[0])
    message = METHODS["ModelInfer"].request(model_name="fraud")
    tensor = message.inputs.add(name="X", datatype="FP32", shape=[1, len(slowest)])
    tensor.contents.fp32_contents.extend(slowest)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls = [Client(channel).ModelInfer.future(message) for _ in range(3)]
        calls[0].result(timeout=60)
        server.terminate()
        for call in calls:
            assert call.result(timeout=60).outputs
    assert server.wait_exit() == 0
