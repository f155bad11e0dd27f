"""Large tensors: a model of ResNet-50's shape, in this process and behind the server; binary, JSON and gRPC.

    .venv/bin/python -m bench.large [--pairs 5] [--seconds 6]

The model has ResNet-50's layers with random weights and takes one 224 x 224 picture of 3 channels, 150,528 floats, on one
thread. `in-process` is onnxruntime alone in a process of its own; the server answers two connections, so that it
never waits for its caller. Model and server have one core, the callers the other, in turns. Then the same payload
through a model that only adds it up, where nothing is left but the way of the tensor.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench.runtime import LOAD_CORE, ROOT, SERVER_CORE, free_port

SHAPE = (1, 3, 224, 224)
CONNECTIONS = 2
WAYS = ("binary", "json", "grpc")


def main() -> None:
    """Measure both models by every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(_alone(options.alone, options.seconds))
        return
    if options.ask:
        way, http, grpc = options.ask
        print(asyncio.run(_ask(way, int(http), int(grpc), options.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, build in (("resnet-50", _resnet), ("sum", _sum)):
            path = Path(folder) / name / "model.onnx"
            path.parent.mkdir()
            build(path)
            _compare(name, path, options)


def _compare(name: str, path: Path, options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {"in-process": [], **{way: [] for way in WAYS}}
    with _server(path) as (http, grpc):
        for _ in range(options.pairs):
            rates["in-process"].append(_run(SERVER_CORE, "--alone", str(path), seconds=options.seconds))
            for way in WAYS:
                rate = _run(LOAD_CORE, "--ask", way, str(http), str(grpc), seconds=options.seconds)
                rates[way].append(rate)
    for way, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates["in-process"], strict=True)]
        print(
            f"{name:10} {way:11} {statistics.median(found):9.1f}/s  {statistics.median(ratios):.3f} of in-process "
            f"({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


def _run(core: int, *arguments: str, seconds: float) -> float:
    command = [
        "taskset",
        "-c",
        str(core),
        sys.executable,
        "-m",
        "bench.large",
        *arguments,
        "--seconds",
        str(seconds),
    ]
    return float(subprocess.check_output(command, cwd=ROOT, text=True).splitlines()[-1])


def _alone(path: Path, seconds: float) -> float:
    import onnxruntime as ort  # noqa: PLC0415 - only where it runs

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    picture = _picture()
    session.run(None, {"x": picture})
    until, runs, started = time.perf_counter() + seconds, 0, time.perf_counter()
    while time.perf_counter() < until:
        session.run(None, {"x": picture})
        runs += 1
    return runs / (time.perf_counter() - started)


@contextmanager
def _server(path: Path) -> Generator[tuple[int, int]]:
    http, grpc = free_port(), free_port()
    environment = {
        **os.environ,
        "PILOTAGE_MODEL_NAME": "m",
        "PILOTAGE_MODEL_DIR": str(path),
        "PILOTAGE_HOST": "127.0.0.1",
        "PILOTAGE_HTTP_PORT": str(http),
        "PILOTAGE_GRPC_PORT": str(grpc),
        "PILOTAGE_METRICS_PORT": "0",
        "PILOTAGE_THREADS": "1",
        "PILOTAGE_DRAIN_SECONDS": "0",
    }
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "pilotage_runtime", "serve"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                asyncio.run(_ask("binary", http, grpc, 0.1))
            except OSError:
                time.sleep(0.3)
            else:
                break
        yield http, grpc
    finally:
        process.terminate()
        process.wait(20)


async def _ask(way: str, http: int, grpc: int, seconds: float) -> float:
    """Ask on two connections, one request after the other on each; give the answers a second."""
    until, started = time.perf_counter() + seconds, time.perf_counter()
    ask = _over_grpc(grpc, until) if way == "grpc" else _over_http(http, _request(way), until)
    answered = sum(await asyncio.gather(*(ask() for _ in range(CONNECTIONS))))
    return answered / (time.perf_counter() - started)


def _over_http(port: int, request: bytes, until: float) -> Any:
    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        answered = 0
        while time.perf_counter() < until:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(head.decode())
            length = int(head.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            answered += 1
        writer.close()
        return answered

    return ask


def _over_grpc(port: int, until: float) -> Any:
    import grpc.aio  # noqa: PLC0415 - only where it is asked for

    from pilotage_runtime.protocol import messages  # noqa: PLC0415

    method = messages.load()["ModelInfer"]
    message = method.request(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=SHAPE)
    message.raw_input_contents.append(_picture().tobytes())

    async def ask() -> int:
        answered = 0
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(
                f"/{messages.SERVICE}/ModelInfer",
                request_serializer=_written,
                response_deserializer=method.response.FromString,
            )
            while time.perf_counter() < until:
                await call(message)
                answered += 1
        return answered

    return ask


def _written(message: Any) -> bytes:
    return message.SerializeToString()


def _request(way: str) -> bytes:
    picture = _picture()
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(SHAPE)}
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\n"
    if way == "json":
        body = orjson.dumps(
            {"inputs": [{**tensor, "data": picture.ravel()}]}, option=orjson.OPT_SERIALIZE_NUMPY
        )
        return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)
    raw = picture.tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    text = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return b"%binference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b%b" % (
        head, len(text), len(text) + len(raw), text, raw,
    )  # fmt: skip


def _picture() -> np.ndarray:
    return np.random.default_rng(5).random(SHAPE, dtype=np.float32)


def _resnet(path: Path) -> None:
    """ResNet-50's convolutions with random weights, batch normalisation folded into them as exporters do."""
    import onnx  # noqa: PLC0415 - only the builder needs it
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    random = np.random.default_rng(5)
    nodes, weights = list[Any](), list[Any]()

    def conv(source: str, inside: int, outside: int, size: int, stride: int, *, relu: bool = True) -> str:
        name = f"c{len(weights)}"
        scale = np.float32(np.sqrt(2 / (inside * size * size)))
        kernel = random.standard_normal((outside, inside, size, size), dtype=np.float32) * scale
        weights.append(numpy_helper.from_array(kernel, f"{name}.w"))
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}.w"], [name], kernel_shape=[size, size], strides=[stride, stride],
                pads=[size // 2] * 4,
            )
        )  # fmt: skip
        if not relu:
            return name
        nodes.append(helper.make_node("Relu", [name], [f"{name}.r"]))
        return f"{name}.r"

    last = conv("x", 3, 64, 7, 2)
    nodes.append(
        helper.make_node("MaxPool", [last], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    )
    last, inside = "pool", 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            inner = conv(conv(last, inside, width, 1, 1), width, width, 3, stride)
            inner = conv(inner, width, width * 4, 1, 1, relu=False)
            beside = last if block else conv(last, inside, width * 4, 1, stride, relu=False)
            total = f"s{stage}.{block}"
            nodes.append(helper.make_node("Add", [inner, beside], [f"{total}.a"]))
            # Random weights without normalisation grow from block to block; halved, they stay finite.
            weights.append(numpy_helper.from_array(np.array(0.5, np.float32), f"{total}.h"))
            nodes.append(helper.make_node("Mul", [f"{total}.a", f"{total}.h"], [f"{total}.m"]))
            nodes.append(helper.make_node("Relu", [f"{total}.m"], [total]))
            last, inside = total, width * 4
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["average"]))
    nodes.append(helper.make_node("Flatten", ["average"], ["flat"]))
    dense = random.standard_normal((inside, 1000), dtype=np.float32) * np.float32(0.01)
    weights.append(numpy_helper.from_array(dense, "dense"))
    nodes.append(helper.make_node("MatMul", ["flat", "dense"], ["y"]))
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE[1:]])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000])
    graph = helper.make_graph(nodes, "resnet-50", [picture], [answer], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)


def _sum(path: Path) -> None:
    """Add up a picture."""
    import onnx  # noqa: PLC0415 - only the builder needs it
    from onnx import TensorProto, helper  # noqa: PLC0415

    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE[1:]])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 1, 1])
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=1)]
    graph = helper.make_graph(nodes, "sum", [picture], [answer])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)


if __name__ == "__main__":
    main()
