"""What KServe's own clients see of a server: run in their own environment."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

HTTP, GRPC = sys.argv[1:3]
ROW = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
seen: dict[str, object] = {}


def request(*, binary: bool) -> InferRequest:
    tensor = InferInput("X", list(ROW.shape), "FP32")
    tensor.set_data_from_numpy(ROW, binary_data=binary)
    return InferRequest(model_name="iris", infer_inputs=[tensor], request_id="k-1")


def taken(response) -> list:
    outputs = {output.name: output.as_numpy() for output in response.outputs}
    return [outputs["output_label"].tolist(), list(outputs["output_probability"].shape)]


async def main() -> None:
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = f"http://{HTTP}"
    seen["rest.live"] = [await rest.is_server_live(base), await rest.is_server_ready(base),
                         await rest.is_model_ready(base, "iris")]  # fmt: skip
    for binary in (False, True):
        response = await rest.infer(base, request(binary=binary), model_name="iris")
        seen[f"rest.infer.{binary}"] = taken(response)
    await rest.close()
    grpc = InferenceGRPCClient(GRPC)
    seen["grpc.live"] = [
        await grpc.is_server_live(),
        await grpc.is_server_ready(),
        await grpc.is_model_ready("iris"),
    ]
    for binary in (False, True):
        seen[f"grpc.infer.{binary}"] = taken(await grpc.infer(request(binary=binary)))


asyncio.run(main())
print(json.dumps(seen))
