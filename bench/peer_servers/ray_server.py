"""iris behind Ray Serve."""

import os
import sys
import time

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=int(os.environ["WORKERS"]), max_ongoing_requests=100)
class Iris:
    """A session for each model, in each replica."""

    def __init__(self, path: str, models: list[str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.sessions = {
            name: ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for name in models
        }

    async def __call__(self, request: Request) -> dict:
        asked = await request.json()
        rows = np.array(asked["data"], dtype=np.float32)
        label, zip_map = self.sessions[asked["model"]].run(None, {"X": rows})
        return {"label": label.tolist(), "probability": [list(row.values()) for row in zip_map]}


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False,
             _node_ip_address="127.0.0.1", object_store_memory=10**8)  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Iris.bind(os.environ["IRIS"], os.environ["MODELS"].split(",")), route_prefix="/predict")
    while True:
        time.sleep(1)
