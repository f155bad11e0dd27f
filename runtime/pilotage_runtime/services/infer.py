"""Inference over REST: a plain handler, for here every microsecond is paid by every request."""

from collections.abc import Sequence

import numpy as np

from pilotage_runtime.contract import TensorSpec
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import ModelFailedError, Refused
from pilotage_runtime.protocol import v2
from pilotage_runtime.services.exchange import Answer, Exchange, refusal
from pilotage_runtime.telemetry import Slot

# Beyond this many at once, waiting only makes every answer late.
MAX_IN_FLIGHT = 512


class InferHandler:
    """POST /v2/models/M/infer."""

    def __init__(self, engine: Engine, slot: Slot, max_body_bytes: int) -> None:
        self._engine = engine
        self._slot = slot
        self._max_body_bytes = max_body_bytes
        self.path = f"/v2/models/{engine.name}/infer"
        probability = engine.contract.probability
        self._probability = probability.name if probability else None

    async def __call__(self, exchange: Exchange) -> Answer:
        """Answer one request; a caller's fault is 4xx, everything of the model's is 5xx."""
        if exchange.path != self.path:
            return refusal(404, f"{exchange.path[:200]} is not served here; this server answers {self.path}")
        if exchange.method != "POST":
            return refusal(
                405,
                f"{exchange.method} is not allowed on {self.path}; send POST with a JSON body",
                (b"allow", b"POST"),
            )
        if self._slot.in_flight > MAX_IN_FLIGHT:
            return refusal(503, f"busy: {MAX_IN_FLIGHT} requests are being served", (b"retry-after", b"1"))
        kind = exchange.content_type
        if kind is not None and b"json" not in kind.lower():
            return refusal(
                415, f"content type {kind[:100].decode('latin-1')} came, application/json is expected"
            )
        engine = self._engine
        try:
            request = v2.parse(await exchange.body(self._max_body_bytes), engine.contract)
            engine.check(request.inputs, request.outputs)
            rows = engine.rows(request.inputs)
            if engine.is_short(rows):
                specs, values = engine.run(request.inputs, request.outputs, rows)
            else:
                specs, values = await engine.run_in_thread(request.inputs, request.outputs, rows)
        except Refused as refused:
            return refusal(refused.status, refused.message)
        except ModelFailedError as failed:
            return refusal(500, str(failed))
        if not exchange.pinned:
            self._slot.predicted(rows, self._confidences(specs, values))
        return Answer(200, v2.answer(engine.name, request.id, specs, values))

    def _confidences(self, specs: Sequence[TensorSpec], values: Sequence[np.ndarray]) -> list[float]:
        for spec, value in zip(specs, values, strict=True):
            if spec.name == self._probability and value.ndim == 2:
                if value.shape[1] == 1:  # the positive class alone
                    return np.maximum(value, 1 - value).ravel().tolist()
                return (
                    [max(row) for row in value.tolist()] if value.size <= 64 else value.max(axis=1).tolist()
                )
        return []
