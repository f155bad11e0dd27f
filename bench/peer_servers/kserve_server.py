"""iris behind KServe's Python server."""

import os
import sys

import numpy as np
import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Iris(Model):
    """One session."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.path = path
        self.session: ort.InferenceSession | None = None
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        rows = payload.inputs[0].as_numpy().astype(np.float32)
        if self.session is None:  # made in the worker, for sessions do not travel to other processes
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        label, zip_map = self.session.run(None, {"X": rows})
        probability = np.array([list(row.values()) for row in zip_map], dtype=np.float32)
        outputs = [
            InferOutput("output_label", list(label.shape), "INT64", label.tolist()),
            InferOutput("output_probability", list(probability.shape), "FP32", probability.ravel().tolist()),
        ]
        return InferResponse(payload.id or "none", self.name, outputs)


if __name__ == "__main__":
    server = ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=int(os.environ["WORKERS"]))
    server.start([Iris(name, os.environ["IRIS"]) for name in os.environ["MODELS"].split(",")])
