"""iris behind Ray Serve."""

import sys
import time

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class Iris:
    """One session in one replica."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request) -> dict:
        rows = np.array((await request.json())["data"], dtype=np.float32)
        label, zip_map = self.session.run(None, {"X": rows})
        return {"label": label.tolist(), "probability": [list(row.values()) for row in zip_map]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False,
             _node_ip_address="127.0.0.1", object_store_memory=10**8)  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Iris.bind(sys.argv[1]), route_prefix="/predict")
    while True:
        time.sleep(1)
