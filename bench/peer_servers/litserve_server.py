"""iris behind LitServe."""

import sys

import litserve
import numpy as np
import onnxruntime as ort


class Iris(litserve.LitAPI):
    """One session in one worker."""

    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        return np.array(request["data"], dtype=np.float32)

    def predict(self, rows):
        return self.session.run(None, {"X": rows})

    def encode_response(self, outputs):
        label, zip_map = outputs
        return {"label": label.tolist(), "probability": [list(row.values()) for row in zip_map]}


if __name__ == "__main__":
    server = litserve.LitServer(Iris(), accelerator="cpu", devices=1, workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
    )
