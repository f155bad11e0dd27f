"""iris behind BentoML."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Iris:
    """One session in one worker."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["IRIS"], options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def predict(self, data: list[list[float]]) -> dict:
        label, zip_map = self.session.run(None, {"X": np.array(data, dtype=np.float32)})
        return {"label": label.tolist(), "probability": [list(row.values()) for row in zip_map]}
