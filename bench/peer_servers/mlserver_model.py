"""iris behind MLServer: its own codec, one process (its parallel workers are slower for small models)."""

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Iris(MLModel):
    """One session."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        label, zip_map = self.session.run(None, {"X": rows})
        import numpy as np

        probability = np.array([list(row.values()) for row in zip_map], dtype=np.float32)
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output("output_label", label),
                NumpyCodec.encode_output("output_probability", probability),
            ],
        )
