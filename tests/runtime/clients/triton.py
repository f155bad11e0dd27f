"""What tritonclient sees of a server: runs in its own environment, since its messages collide with others'."""

import asyncio
import json
import sys

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

HTTP, GRPC = sys.argv[1:3]
ROW = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
seen: dict[str, object] = {}


def inputs(module, *, binary: bool | None = None):
    tensor = module.InferInput("X", list(ROW.shape), "FP32")
    if binary is None:
        tensor.set_data_from_numpy(ROW)
    else:
        tensor.set_data_from_numpy(ROW, binary_data=binary)
    return [tensor]


def taken(result) -> list:
    label, probability = result.as_numpy("output_label"), result.as_numpy("output_probability")
    return [
        label.tolist(),
        list(probability.shape),
        str(probability.dtype),
        round(float(probability.sum()), 3),
    ]


def failure(call) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    raise AssertionError("no failure")


def http() -> None:
    client = triton_http.InferenceServerClient(HTTP)
    seen["http.live"] = [client.is_server_live(), client.is_server_ready(), client.is_model_ready("iris")]
    seen["http.server"] = client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("iris")
    seen["http.model"] = [metadata["inputs"], metadata["versions"]]
    seen["http.index"] = client.get_model_repository_index()
    seen["http.infer"] = taken(client.infer("iris", inputs(triton_http)))
    seen["http.json"] = taken(client.infer("iris", inputs(triton_http, binary=False)))
    wanted = [triton_http.InferRequestedOutput("output_label", binary_data=False),
              triton_http.InferRequestedOutput("output_probability", binary_data=True)]  # fmt: skip
    result = client.infer("iris", inputs(triton_http), outputs=wanted, request_id="7", model_version="1")
    seen["http.mixed"] = [*taken(result), result.get_response()["id"]]
    packed = client.infer("iris", inputs(triton_http), request_compression_algorithm="gzip",
                          response_compression_algorithm="gzip")  # fmt: skip
    seen["http.gzip"] = taken(packed)
    seen["http.async"] = taken(client.async_infer("iris", inputs(triton_http)).get_result())
    seen["http.unknown"] = failure(lambda: client.infer("nobody", inputs(triton_http)))
    seen["http.load"] = failure(lambda: client.load_model("iris"))
    # Whole seconds, as this client's own time-out; the server sees the same in the request's parameter.
    seen["http.timeout"] = taken(client.infer("iris", inputs(triton_http), timeout=5_000_000))


async def http_aio() -> None:
    async with triton_http_aio.InferenceServerClient(HTTP) as client:
        seen["http.aio"] = [
            await client.is_model_ready("iris"),
            *taken(await client.infer("iris", inputs(triton_http))),
        ]


def grpc() -> None:
    client = triton_grpc.InferenceServerClient(GRPC)
    seen["grpc.live"] = [
        client.is_server_live(),
        client.is_server_ready(),
        client.is_model_ready("iris", "1"),
    ]
    seen["grpc.server"] = list(client.get_server_metadata().extensions)
    metadata = client.get_model_metadata("iris", as_json=True)
    seen["grpc.model"] = [metadata["inputs"], metadata["versions"]]
    seen["grpc.index"] = client.get_model_repository_index(as_json=True)
    seen["grpc.infer"] = taken(client.infer("iris", inputs(triton_grpc), client_timeout=10))
    wanted = [triton_grpc.InferRequestedOutput("output_label")]
    result = client.infer("iris", inputs(triton_grpc), outputs=wanted, request_id="9")
    seen["grpc.outputs"] = [result.as_numpy("output_label").tolist(), result.as_numpy("output_probability"),
                            result.get_response().id]  # fmt: skip
    wrong = triton_grpc.InferInput("X", [1, 3], "FP32")
    wrong.set_data_from_numpy(ROW[:1, :3])
    seen["grpc.wrong"] = failure(lambda: client.infer("iris", [wrong]))
    seen["grpc.unknown"] = failure(lambda: client.infer("nobody", inputs(triton_grpc)))
    seen["grpc.load"] = failure(lambda: client.load_model("iris"))
    streamed: list = []
    client.start_stream(lambda result, error: streamed.append(error.message() if error else taken(result)))
    client.async_stream_infer("iris", inputs(triton_grpc))
    client.async_stream_infer("iris", [wrong])
    client.async_stream_infer("iris", inputs(triton_grpc))
    client.stop_stream()
    seen["grpc.stream"] = streamed


async def grpc_aio() -> None:
    async with triton_grpc_aio.InferenceServerClient(GRPC) as client:
        seen["grpc.aio"] = [
            await client.is_model_ready("iris"),
            *taken(await client.infer("iris", inputs(triton_grpc))),
        ]


http()
grpc()
asyncio.run(http_aio())
asyncio.run(grpc_aio())
print(json.dumps(seen))
