"""Inference over REST: a plain handler, for here every microsecond is paid by every request."""

import logging
import time
import zlib
from collections.abc import Sequence

import numpy as np

from pilotage_runtime.batching import Entry
from pilotage_runtime.contract import TensorSpec
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import BusyError, ModelFailedError, Refused, TooLateError
from pilotage_runtime.log import AccessLog
from pilotage_runtime.protocol import v2
from pilotage_runtime.repository import Repository
from pilotage_runtime.services.asgi import JSON
from pilotage_runtime.services.call import Call
from pilotage_runtime.services.exchange import Answer, Exchange, is_late, refusal
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.payload_log import PayloadLog
from pilotage_runtime.services.tracing import Tracing

_CLIENT_CLOSED = 499  # as nginx writes it
INTERNAL = "internal error; the log has it under this request's id"
_WINDOW = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}

logger = logging.getLogger(__name__)


class InferHandler:
    """POST /v2/models/M[/versions/V]/infer."""

    def __init__(
        self,
        repository: Repository,
        access_log: AccessLog,
        held: Held,
        *,
        tracing: Tracing | None = None,
        payloads: PayloadLog | None = None,
    ) -> None:
        self._repository = repository
        self.sheet = repository.sheet
        self._access_log = access_log
        self._tracing = tracing
        self.payloads = payloads
        self.held = held

    @staticmethod
    def serves(path: str) -> bool:
        """Tell an inference by its path, whether or not there is such a model."""
        return path.endswith("/infer")

    def opened(self, call: Call) -> None:
        """Look at a head: whose request it is, and whether its body may come at all."""
        engine = call.engine = self._repository.routes.get(call.path)
        call.slot = engine.slot if engine is not None else self._repository.unknown
        call.slot.enter()
        if engine is not None:
            engine.holders += 1
            engine.used_at = call.started
        if call.content_length is not None and int(call.content_length) > self.held.each:
            length = call.content_length.decode()
            call.answer(refusal(413, f"the body has {length} bytes; at most {self.held.each} are taken"))

    def grown(self, call: Call, size: int) -> None:
        """A body has grown: it, and all of them together, may only grow so far."""
        held = self.held
        held.size += size
        if call.size > held.each:
            call.answer(refusal(413, f"the body is larger than {held.each} bytes, the most that is taken"))
        elif held.size > held.most:
            held.make_room(call)

    def begin(self, call: Call) -> None:
        """Answer a whole request, now or when the model has; a caller's fault is 4xx, the model's is 5xx."""
        engine = call.engine
        if engine is None:
            refused = self._repository.not_served(call.path)
            call.answer(refusal(refused.status, refused.message))
            return
        try:
            body = call.body[0] if len(call.body) == 1 else b"".join(call.body)
            if call.content_encoding is not None:
                body = self._unpacked(body, call.content_encoding)
                call.size += len(body)
                self.held.size += len(body)
                self.held.make_room(call)
                if call.response_complete:
                    return
            request = v2.parse(body, engine.contract, _json_length(call))
            engine.check(request.inputs, request.outputs, unseen=call.pinned)
            entry = _Inference(call, engine, request, call.until(request.timeout_us))
            entry.unseen = call.pinned
            call.entry = entry
            engine.submit(entry)
        except Refused as refused:
            call.answer(refusal(refused.status, refused.message, *refused.headers))
        except Exception:
            logger.exception("unexpected failure", extra={"request_id": call.request_id})
            call.answer(refusal(500, INTERNAL))

    def ended(self, call: Call, answer: Answer) -> None:
        """Count and log an answer: when it is known, before a slow reader takes it."""
        seconds = time.perf_counter() - call.started
        if call.engine is not None:
            call.engine.holders -= 1
        self.held.release(call)
        if call.pinned:
            call.slot.leave_pinned()
        else:
            call.slot.leave(answer.status, seconds)
        self._access_log.write(
            call.request_id,
            "POST",
            call.path,
            answer.status,
            seconds,
            error=answer.error,
            traceparent=call.traceparent,
        )
        if self._tracing is not None:
            engine, entry = call.engine, call.entry
            self._tracing.ended(
                call,
                answer.status,
                seconds,
                model=(engine.name, engine.version) if engine is not None else None,
                rows=entry.rows if entry is not None else 0,
                ran=entry.ran if entry is not None else None,
            )

    def abandoned(self, call: Call) -> None:
        """Count and log a request whose caller left; one that was never whole is nobody's failure.

        A caller that leaves when its time is up, as a proxy does, has waited in vain: that is the model's failure.
        """
        seconds = time.perf_counter() - call.started
        late = call.entry is not None and is_late(call.entry.deadline)
        status = 504 if late else _CLIENT_CLOSED
        if call.engine is not None:
            call.engine.holders -= 1
        self.held.release(call)
        if call.begun and not call.pinned:
            call.slot.leave(status, seconds)
        else:
            call.slot.abandon()
        when = "before it was answered" if call.begun else "before its request was whole"
        self._access_log.write(
            call.request_id, "POST", call.path, status, seconds, error=f"the caller left {when}"
        )

    def _unpacked(self, body: bytes, encoding: bytes) -> bytes:
        window = _WINDOW.get(encoding.strip().lower())
        shown = encoding[:60].decode("latin-1")
        if window is None:
            raise Refused(f"content encoding {shown} came; gzip, deflate and none are taken", 415)
        unpacker = zlib.decompressobj(window)
        try:
            unpacked = unpacker.decompress(body, self.held.each)
        except zlib.error as error:
            raise Refused(f"the body is not {shown}: {error}") from error
        if unpacker.unconsumed_tail:
            raise Refused(
                f"the body unpacks to more than {self.held.each} bytes, the most that is taken", 413
            )
        if not unpacker.eof:
            raise Refused(f"the body breaks off in the middle of its {shown}")
        if unpacker.unused_data:
            raise Refused(
                f"the body goes on for {len(unpacker.unused_data)} bytes behind the end of its {shown}"
            )
        return unpacked


class _Inference(Entry):
    """A request in the engine's queue, and how its outcome is told over REST."""

    __slots__ = ("call", "engine", "request")

    def __init__(self, call: Call, engine: Engine, request: v2.InferRequest, deadline: float | None) -> None:
        super().__init__(
            request.inputs,
            request.outputs,
            engine.rows(request.inputs),
            engine.key(request.inputs, request.outputs, request.sharing),
            deadline,
        )
        self.call = call
        self.engine = engine
        self.request = request

    def succeeded(self, specs: Sequence[TensorSpec], values: Sequence[np.ndarray]) -> None:
        """Write the answer."""
        try:
            body, json_length = v2.answer(self.engine.name, self.engine.version, self.request, specs, values)
            answer = (
                Answer(200, body)
                if json_length is None
                else Answer(
                    200,
                    body,
                    None,
                    ((b"inference-header-content-length", b"%d" % json_length),),
                    b"application/octet-stream",
                )
            )
        except Exception:
            logger.exception("unexpected failure", extra={"request_id": self.call.request_id})
            answer = refusal(500, INTERNAL)
        self.call.answer(answer)
        payloads = self.call.handler.payloads
        if payloads is not None:
            payloads.note(self.call, self.engine, self.request, answer.status, (specs, values))

    def failed(self, error: Exception) -> None:
        """Tell whose fault it was."""
        answer = refused(error, self.call)
        self.call.answer(answer)
        payloads = self.call.handler.payloads
        if payloads is not None:
            payloads.note(self.call, self.engine, self.request, answer.status)


def refused(error: Exception, exchange: Exchange) -> Answer:
    """Answer what the engine raises."""
    match error:
        case TooLateError():
            return refusal(504, f"no answer within the {exchange.waits_ms:.6g} ms that the caller waits")
        case BusyError():
            return refusal(429, str(error), (b"retry-after", b"1"))
        case ModelFailedError():
            return refusal(500, str(error))
        case Refused():
            return refusal(error.status, error.message, *error.headers)
        case _:
            logger.error("unexpected failure", exc_info=error)
            return refusal(500, INTERNAL)


def _json_length(call: Call) -> int | None:
    """Read how much of the body is JSON; the rest is binary tensors. Refuse a content type that is neither."""
    kind = call.content_type
    if call.json_length is None:
        if kind not in (None, JSON) and b"json" not in kind.lower():
            raise Refused(
                f"content type {kind[:100].decode('latin-1')} came, application/json is expected"
                " (or application/octet-stream with Inference-Header-Content-Length)",
                415,
            )
        return None
    if not call.json_length.isdigit() or len(call.json_length) > 12:
        shown = call.json_length[:40].decode("latin-1")
        raise Refused(f"Inference-Header-Content-Length should be a number of bytes, but is {shown}")
    return int(call.json_length)
