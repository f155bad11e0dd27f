"""iris behind KServe's Python server."""

import sys

import numpy as np
import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Iris(Model):
    """One session."""

    def __init__(self, path: str) -> None:
        super().__init__("iris")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        rows = payload.inputs[0].as_numpy().astype(np.float32)
        label, zip_map = self.session.run(None, {"X": rows})
        probability = np.array([list(row.values()) for row in zip_map], dtype=np.float32)
        outputs = [
            InferOutput("output_label", list(label.shape), "INT64", label.tolist()),
            InferOutput("output_probability", list(probability.shape), "FP32", probability.ravel().tolist()),
        ]
        return InferResponse(payload.id or "none", "iris", outputs)


if __name__ == "__main__":
    server = ModelServer(http_port=int(sys.argv[2]), enable_grpc=False, workers=1)
    server.start([Iris(sys.argv[1])])
