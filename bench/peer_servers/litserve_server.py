"""iris behind LitServe."""

import os
import sys

import litserve
import numpy as np
import onnxruntime as ort


class Iris(litserve.LitAPI):
    """A session for each model, in each worker."""

    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.sessions = {
            name: ort.InferenceSession(os.environ["IRIS"], options, providers=["CPUExecutionProvider"])
            for name in os.environ["MODELS"].split(",")
        }

    def decode_request(self, request):
        return request["model"], np.array(request["data"], dtype=np.float32)

    def predict(self, asked):
        model, rows = asked
        return self.sessions[model].run(None, {"X": rows})

    def encode_response(self, outputs):
        label, zip_map = outputs
        return {"label": label.tolist(), "probability": [list(row.values()) for row in zip_map]}


if __name__ == "__main__":
    workers = int(os.environ["WORKERS"])
    server = litserve.LitServer(Iris(), accelerator="cpu", devices=1, workers_per_device=workers)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=workers,
        generate_client_file=False,
        log_level="error",
    )
