"""iris behind BentoML."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=int(os.environ["WORKERS"]))
class Iris:
    """A session for each model."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.sessions = {
            name: ort.InferenceSession(os.environ["IRIS"], options, providers=["CPUExecutionProvider"])
            for name in os.environ["MODELS"].split(",")
        }

    @bentoml.api
    def predict(self, data: list[list[float]], model: str) -> dict:
        label, zip_map = self.sessions[model].run(None, {"X": np.array(data, dtype=np.float32)})
        return {"label": label.tolist(), "probability": [list(row.values()) for row in zip_map]}
