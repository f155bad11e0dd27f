"""The floor: the least that can answer an inference over HTTP. One file, ASGI + orjson + onnxruntime, inline.

It checks nothing, counts nothing, logs nothing and drains nothing; bench/runtime.py measures what those cost.
"""

import os
import sys
from typing import Any

import numpy as np
import orjson
import uvicorn

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # as the runtime does, or the floor would report to the library's maker
)
import onnxruntime as ort

_options = ort.SessionOptions()
_options.intra_op_num_threads = 1
_session = ort.InferenceSession(sys.argv[1], _options, providers=["CPUExecutionProvider"])
_HEADERS = [(b"content-type", b"application/json")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request as an inference of one FP32 input with a label and a ZipMap output."""
    del scope
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    tensor = orjson.loads(body)["inputs"][0]
    rows = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
    outputs: Any = _session.run(None, {tensor["name"]: rows})
    label, zip_map = outputs
    probability = [list(row.values()) for row in zip_map]
    answer = orjson.dumps(
        {
            "model_name": "iris",
            "outputs": [
                {"name": "output_label", "datatype": "INT64", "shape": label.shape, "data": label},
                {
                    "name": "output_probability",
                    "datatype": "FP32",
                    "shape": [len(probability), len(probability[0])],
                    "data": [value for row in probability for value in row],
                },
            ],
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    headers = [*_HEADERS, (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
