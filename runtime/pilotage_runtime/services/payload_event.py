"""One inference as two CloudEvents, its request and its response, in the protocol's JSON.

What must not be kept is replaced here, before anything waits in a queue: numbers by NaN, which JSON carries as
null, everything else by None. Tensors are copied, so that no queued event holds a request's body or a whole
batch's answer. JSON is written later, away from the event loop.
CloudEvents 1.0: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import orjson

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.engine import Engine
from pilotage_runtime.protocol import v2
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.tracing import trace_context
from pilotage_runtime.telemetry import Slot

# What an event weighs beside its tensors, in the queue's reckoning.
_HEAD_BYTES = 1024
_KINDS = ("request", "response")
_numbers = itertools.count()
_prefix = os.urandom(6).hex()  # workers are spawned: each has its own


class Tensor(NamedTuple):
    """A tensor's values as they may be kept."""

    spec: TensorSpec
    values: np.ndarray
    redacted: tuple[str, ...] = ()


class Redaction:
    """Which inputs, outputs, features and parameters nobody may see."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(names)

    def unknown(self, contracts: Iterable[Contract]) -> list[str]:
        """Tell which names mean nothing in any of these contracts: misspelt, perhaps, and so not redacted."""
        known = {
            name
            for contract in contracts
            for name in (*contract.input_by_name, *contract.output_by_name, *contract.feature_names)
        }
        return sorted(self._names - known)

    def tensor(self, spec: TensorSpec, array: np.ndarray, features: Sequence[str] = ()) -> Tensor:
        """Copy what may be kept of a tensor whose last dimension is those features, where there are some."""
        columns = [at for at, feature in enumerate(features) if feature in self._names]
        named = tuple(features[at] for at in columns)
        # Columns that cannot be told apart are all replaced.
        if spec.name in self._names or (columns and array.shape[-1:] != (len(features),)):
            return Tensor(spec, np.full(array.shape, None, dtype=object), (spec.name,))
        if not columns:
            return Tensor(spec, array.copy())
        number = array.dtype.kind in "fV"  # of numpy's kinds V is bfloat16
        values = array.copy() if number else array.astype(object)
        values[..., columns] = np.nan if number else None
        return Tensor(spec, values, named)

    def parameters(self, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Copy what may be kept of a request's parameters."""
        if given is None:
            return None
        return {name: None if name in self._names else value for name, value in given.items()}


class Payload(NamedTuple):
    """An inference as it waits to be written."""

    slot: Slot
    weight: int
    model: str
    version: str
    request_id: str
    number: int
    began: float  # seconds since 1970
    ended: float
    traceparent: bytes | None
    status: int
    id: str | None
    inputs: list[Tensor]
    outputs: list[Tensor]
    wanted: tuple[str, ...]
    parameters: dict[str, Any] | None


def weigh(request: v2.InferRequest, values: Sequence[np.ndarray]) -> int:
    """Tell how many bytes a payload will take in the queue, before anything is copied."""
    beside = len(request.id or "") + len(request.sharing or b"")
    return 2 * _HEAD_BYTES + beside + sum(map(_bytes, (*request.inputs.values(), *values)))


def payload(
    exchange: Exchange,
    engine: Engine,
    request: v2.InferRequest,
    status: int,
    outputs: Iterable[tuple[TensorSpec, np.ndarray]],
    *,
    redaction: Redaction,
    weight: int,
) -> Payload:
    """Copy what may be kept of an answered inference."""
    contract = engine.contract
    # Only the columns of a model's one input are features of their own.
    features = contract.feature_names if len(contract.inputs) == 1 else ()
    now = time.time()
    return Payload(
        slot=engine.slot,
        weight=weight,
        model=engine.name,
        version=engine.version,
        request_id=exchange.request_id,
        number=next(_numbers),
        began=now - (time.perf_counter() - exchange.started),
        ended=now,
        traceparent=exchange.traceparent,
        status=status,
        id=request.id,
        inputs=[
            redaction.tensor(contract.input_by_name[name], array, features)
            for name, array in request.inputs.items()
        ],
        outputs=[redaction.tensor(spec, value) for spec, value in outputs],
        wanted=request.outputs,
        parameters=redaction.parameters(request.parameters),
    )


def events(of: Payload) -> list[bytes]:
    """Write the request and the response as structured events; of a failure its status, for a sentence may quote values."""
    shared: dict[str, Any] = {} if of.id is None else {"id": of.id}
    asked: dict[str, Any] = {**shared, "inputs": [_tensor(tensor) for tensor in of.inputs]}
    if of.parameters is not None:
        asked["parameters"] = of.parameters
    if of.wanted:
        asked["outputs"] = [{"name": name} for name in of.wanted]
    answered: dict[str, Any] | None = None
    if of.status == 200:
        outputs = [_tensor(tensor) for tensor in of.outputs]
        answered = {"model_name": of.model, "model_version": of.version, **shared, "outputs": outputs}
    return [
        _event(of, kind, at, data)
        for kind, at, data in zip(_KINDS, (of.began, of.ended), (asked, answered), strict=True)
    ]


def _event(of: Payload, kind: str, at: float, data: dict[str, Any] | None) -> bytes:
    event: dict[str, Any] = {
        "specversion": "1.0",
        # Callers repeat request ids, and streams share one; source and id together may come only once.
        "id": f"{of.request_id}.{_prefix}{of.number:x}.{kind}",
        "source": f"/v2/models/{quote(of.model)}/versions/{quote(of.version)}",
        "type": f"dev.pilotage.inference.{kind}",
        "subject": of.request_id,
        "time": datetime.fromtimestamp(at, UTC),
    }
    if trace_context(of.traceparent) is not None and of.traceparent is not None:
        event["traceparent"] = of.traceparent.decode("latin-1")
    if kind == "response":
        event["statuscode"] = of.status
    if data is not None:
        event |= {"datacontenttype": "application/json", "data": data}
    return orjson.dumps(event, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


def _tensor(tensor: Tensor) -> dict[str, Any]:
    spec, values, redacted = tensor
    told: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": values.shape}
    if redacted:
        told["parameters"] = {"redacted": ",".join(redacted)}
    return {**told, "data": v2.data(spec, values)}


def _bytes(array: np.ndarray) -> int:
    if array.dtype.kind != "O":
        return array.nbytes
    return array.nbytes + sum(len(item) for item in array.flat if isinstance(item, str | bytes))
