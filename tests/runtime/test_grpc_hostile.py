"""What is no gRPC, or half of it, is answered with a status or a closed connection, and hurts nobody else."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pilotage_runtime.protocol import messages
from tests.runtime.conftest import Server, Servers, eventually, free_port
from tests.runtime.test_grpc import METHODS, Client

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
MOST_BYTES = 100_000


@pytest.fixture(scope="module")
def served(serve_for_module: Servers, models: Path) -> tuple[Server, int]:
    port = free_port()
    return serve_for_module(models / "iris" / "1", "iris", grpc_port=port, max_body_bytes=MOST_BYTES), port


@pytest.fixture(autouse=True)
def unharmed(served: tuple[Server, int]) -> Iterator[None]:
    """Whatever came: the next honest call is answered, nothing is left in flight, nothing was thrown."""
    yield
    server, port = served
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert Client(channel).ModelInfer(honest(), timeout=20).outputs
    eventually(lambda: server.metric("inference_requests_in_flight") == 0)
    assert server.process.poll() is None
    assert "Traceback" not in server.log()


def honest() -> Any:
    message = METHODS["ModelInfer"].request(model_name="iris")
    tensor = message.inputs.add(name="X", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend([5, 3, 1, 0])
    return message


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def head(stream: int) -> bytes:
    """A call's head, as a client writes it."""
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": f"/{messages.SERVICE}/ModelInfer".encode(),
        b":authority": b"x",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    # Literals, without an index and without Huffman's code.
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in headers.items()
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def call(body: bytes) -> bytes:
    """One call with these bytes in the place of its message."""
    return PREFACE + frame(SETTINGS, 0, 0, b"") + head(1) + frame(DATA, END_STREAM, 1, body)


def answer(port: int, sent: bytes) -> bytes:
    """Send all there is, and read until the other side closes; a hang is a failure."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        with contextlib.suppress(OSError):  # closed already
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(1 << 16):
                received += chunk
    return received


@pytest.mark.parametrize(
    "sent",
    [
        bytes(range(256)) * 40,
        b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
        PREFACE[:11],
        PREFACE + b"\xff" * 200,
        PREFACE + frame(SETTINGS, 0, 0, b"\0"),
        PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
        PREFACE + frame(SETTINGS, 0, 0, b"") + frame(DATA, END_STREAM, 5, b"data of no stream"),
        b"",
    ],
    ids=[
        "garbage",
        "HTTP/1",
        "cut preface",
        "no frame",
        "cut settings",
        "no headers",
        "no stream",
        "nothing",
    ],
)
def test_what_is_no_grpc_is_closed(served: tuple[Server, int], sent: bytes) -> None:
    assert b"output_label" not in answer(served[1], sent)


@pytest.mark.parametrize(
    "body",
    [
        b"\0" + (1000).to_bytes(4, "big") + b"short",
        b"\0" + (2**32 - 1).to_bytes(4, "big") + b"short",
        b"\0" + (1).to_bytes(4, "big") + honest().SerializeToString(),
        b"\0\0\0",
        b"\1" + (5).to_bytes(4, "big") + b"plain",
        b"\7" + (5).to_bytes(4, "big") + b"plain",
    ],
    ids=["longer", "longest", "shorter", "cut prefix", "not compressed", "no flag"],
)
def test_a_length_prefix_that_lies_ends_its_call(served: tuple[Server, int], body: bytes) -> None:
    assert b"output_label" not in answer(served[1], call(body))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff" * 40, grpc.StatusCode.INVALID_ARGUMENT),
        (honest().SerializeToString()[:-3], grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x0a\x04iris" + b"\0" * MOST_BYTES, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"", grpc.StatusCode.NOT_FOUND),
    ],
    ids=["garbage", "cut", "too large", "empty"],
)
def test_a_message_that_is_none_is_answered_with_a_status(
    served: tuple[Server, int], message: bytes, code: grpc.StatusCode
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{served[1]}") as channel:
        method = channel.unary_unary(f"/{messages.SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as failed:
            method(message, timeout=20)
    assert failed.value.code() is code, failed.value


def test_a_caller_that_goes_in_the_middle_of_its_call_is_forgotten(served: tuple[Server, int]) -> None:
    whole = call(b"\0" + (1000).to_bytes(4, "big") + b"short")
    for end in range(len(PREFACE), len(whole), 29):
        with socket.create_connection(("127.0.0.1", served[1]), 20) as connection:
            connection.sendall(whole[:end])


def test_calls_whose_message_never_comes_keep_out_no_other(served: tuple[Server, int]) -> None:
    with socket.create_connection(("127.0.0.1", served[1]), 20) as connection:
        # More than there may be calls at a time.
        heads = b"".join(head(1 + 2 * nth) for nth in range(900))
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + heads)
        with grpc.insecure_channel(f"127.0.0.1:{served[1]}") as channel:
            for _ in range(20):
                assert Client(channel).ModelInfer(honest(), timeout=20).outputs


def test_a_whole_call_written_by_hand_is_answered(served: tuple[Server, int]) -> None:
    """What the calls above are cut from is a call: so it is their lies that are refused."""
    message = honest().SerializeToString()
    sent, received = call(b"\0" + len(message).to_bytes(4, "big") + message), b""
    with socket.create_connection(("127.0.0.1", served[1]), 20) as connection:
        connection.sendall(sent)
        while b"output_label" not in received:
            received += connection.recv(1 << 16)
            assert received


def test_garbage_in_a_stream_is_an_answer_and_the_stream_goes_on(served: tuple[Server, int]) -> None:
    sent = [b"\xff" * 40, honest().SerializeToString()]
    with grpc.insecure_channel(f"127.0.0.1:{served[1]}") as channel:
        stream = channel.stream_stream(
            f"/{messages.SERVICE}/ModelStreamInfer",
            response_deserializer=METHODS["ModelStreamInfer"].response.FromString,
        )
        first, second = stream(iter(sent), timeout=20)
    assert first.error_message == "the bytes are no ModelInferRequest"
    assert second.infer_response.outputs
