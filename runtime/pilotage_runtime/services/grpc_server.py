"""The protocol over gRPC, on a port of its own: the same repository, engine, metrics and errors as REST."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from pilotage_runtime import __version__
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import BusyError, ModelFailedError, Refused, TooLateError
from pilotage_runtime.log import AccessLog
from pilotage_runtime.protocol import messages, v2_grpc
from pilotage_runtime.repository import Repository, State
from pilotage_runtime.services.admin import EXTENSIONS, Control, allowed
from pilotage_runtime.services.awaited import MESSAGE_SECONDS, STREAM_SECONDS, Awaited, CutOffError
from pilotage_runtime.services.exchange import Exchange, is_late
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.lifecycle import Lifecycle
from pilotage_runtime.services.payload_log import PayloadLog
from pilotage_runtime.services.tracing import Tracing

FINISH_SECONDS = 300
_MAX_STREAMS = 1000  # at a time on one connection; beyond it they wait their turn
# Of the calls whose message is still to come, so many are never cut off for others.
_FEWEST_ARRIVING = 4
_MOST_SILENT_STREAMS = 256  # between two requests
_SENTENCE_BYTES = 2000
_TOO_LATE = "no answer within the time that the caller waits"
_AS_IT_IS = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_HALF_ESCAPE = re.compile(r"%.?\Z")
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class _Refusal(Exception):  # noqa: N818 - an answer, in gRPC's words
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class _Received(NamedTuple):
    """A message, or why it is none, and how many bytes it had."""

    message: Any
    size: int


_Handler = Callable[[_Received, Context], Awaitable[Any]]


def _reading(method: messages.Method) -> Callable[[bytes], _Received]:
    """Read a message, or give the refusal: what is raised here, grpc writes into the log with a traceback."""

    def read(raw: bytes) -> _Received:
        try:
            message = method.read(raw)
        except DecodeError:
            message = Refused(f"the bytes are no {method.request.DESCRIPTOR.name}")
        return _Received(message, len(raw))

    return read


class GrpcServer:
    """Serves beside the HTTP server of the same worker, and drains with it."""

    def __init__(
        self,
        repository: Repository,
        lifecycle: Lifecycle,
        access_log: AccessLog,
        control: Control | None,
        held: Held,
        *,
        host: str,
        port: int,
        max_calls: int,
        tracing: Tracing | None = None,
        payloads: PayloadLog | None = None,
    ) -> None:
        self._held = held
        self._payloads = payloads
        self._tracing = tracing
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._repository = repository
        self._lifecycle = lifecycle
        self._access_log = access_log
        self._control = control
        self._methods = messages.load()
        self._stopping: asyncio.Future[None] | None = None
        # Not by grpc, which counts calls whose message never comes: these would keep out all others.
        self._most_calls = max_calls
        self._calls = 0
        # Each may hold a message of the largest size: together these have what the bodies of requests may have.
        self._arriving = Awaited(max(_FEWEST_ARRIVING, held.most // held.each))
        self._silent = Awaited(_MOST_SILENT_STREAMS)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", held.each),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.so_reuseport", 1),  # the workers share the port
                # A peer that has gone without a word is noticed; one that pings too eagerly is told off.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        handlers = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        answering = {name: _of_message(handler) for name, handler in handlers.items()}
        answering["ModelInfer"] = self._model_infer
        service = {name: self._unary(self._methods[name], handler) for name, handler in answering.items()}
        stream = self._methods["ModelStreamInfer"]
        service[stream.name] = grpc.stream_stream_rpc_method_handler(
            self._model_stream_infer, request_deserializer=_reading(stream), response_serializer=stream.write
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(messages.SERVICE, service),)
        )

    async def start(self) -> None:
        """Listen; raise RuntimeError where the port is taken."""
        self._stopping = asyncio.get_running_loop().create_future()
        port = self._server.add_insecure_port(self._address)
        await self._server.start()
        logger.info("serving gRPC", extra={"port": port})

    async def stop(self) -> None:
        """Take nothing new, and finish what is in flight."""
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)
        await self._server.stop(FINISH_SECONDS)

    def _unary(self, method: messages.Method, handler: _Handler) -> Any:
        async def call(requests: Any, context: Context) -> Any:
            del requests
            try:
                received = await self._arriving.message(context, MESSAGE_SECONDS)
                self._take_one_more()
                try:
                    return await handler(_whole(received), context)
                finally:
                    self._calls -= 1
            except CutOffError as cut:
                await context.abort(cut.status, cut.message)
            except (_Refusal, Refused) as refusal:
                status = _STATUS.get(refusal.status, grpc.StatusCode.UNKNOWN)
                await context.abort(status, _fitting(refusal.message))

        # A stream with one request is the same call; only of a stream grpc tells before its message is whole.
        return grpc.stream_unary_rpc_method_handler(
            call, request_deserializer=_reading(method), response_serializer=method.write
        )

    def _take_one_more(self) -> None:
        """Count a call in whose message is whole; raise Refused where there are as many as are taken at a time."""
        if self._calls >= self._most_calls:
            raise Refused(f"busy: {self._calls} calls are not answered yet", 429)
        self._calls += 1

    def _answer(self, method: str, **fields: Any) -> Any:
        return self._methods[method].response(**fields)

    async def _server_live(self, request: Any, context: Context) -> Any:
        del request, context
        return self._answer("ServerLive", live=True)

    async def _server_ready(self, request: Any, context: Context) -> Any:
        del request, context
        return self._answer("ServerReady", ready=self._lifecycle.ready and self._repository.ready())

    async def _model_ready(self, request: Any, context: Context) -> Any:
        del context
        version = self._repository.find(request.name, request.version or None)
        ready = version.state is State.READY and self._lifecycle.ready
        return self._answer("ModelReady", ready=ready)

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        del request, context
        return self._answer("ServerMetadata", name="pilotage", version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        del context
        engine = self._repository.engine(request.name, request.version or None)
        versions = self._repository.versions(request.name)
        answer = self._answer(
            "ModelMetadata",
            name=engine.name,
            versions=[one.location.version for one in versions if one.state is State.READY],
            platform=engine.platform,
        )
        for specs, tensors in (
            (engine.contract.inputs, answer.inputs),
            (engine.contract.outputs, answer.outputs),
        ):
            for spec in specs:
                tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return answer

    async def _model_infer(self, received: _Received, context: Context) -> Any:
        return await self._infer(received, _exchange("ModelInfer", context))

    async def _infer(self, received: _Received, exchange: Exchange) -> Any:
        request = received.message
        try:
            engine = self._repository.engine(request.model_name, request.model_version or None)
        except Refused as refused:
            self._count(exchange, None, refused.status, refused.message)
            raise
        engine.slot.enter()
        engine.holders += 1
        engine.used_at = exchange.started
        try:
            answer = await self._run(engine, received, exchange)
        except asyncio.CancelledError:
            self._count(exchange, engine, *_left(exchange))
            raise
        except _Refusal as refusal:
            self._count(exchange, engine, refusal.status, refusal.message)
            raise
        self._count(exchange, engine, 200, None)
        return answer

    async def _run(self, engine: Engine, received: _Received, exchange: Exchange) -> Any:
        try:
            with self._held.whole(received.size):
                parsed = v2_grpc.read(received.message)
                answering = engine.infer(
                    parsed.inputs,
                    parsed.outputs,
                    sharing=parsed.sharing,
                    deadline=exchange.until(parsed.timeout_us),
                    unseen=exchange.pinned,
                )
                payloads = self._payloads
                specs, values = await (
                    answering if payloads is None else payloads.noted(answering, exchange, engine, parsed)
                )
                answer = self._answer("ModelInfer", model_name=engine.name, model_version=engine.version)
                return v2_grpc.write(answer, parsed, specs, values)
        except Exception as error:
            raise self._told(error, exchange) from error

    @staticmethod
    def _told(error: Exception, exchange: Exchange) -> _Refusal:
        """Say whose fault it was."""
        match error:
            case Refused():
                return _Refusal(error.status, error.message)
            case TooLateError():
                return _Refusal(504, _TOO_LATE)
            case BusyError():
                return _Refusal(429, str(error))
            case ModelFailedError():
                return _Refusal(500, str(error))
            case _:
                logger.error("unexpected failure", exc_info=error, extra={"request_id": exchange.request_id})
                return _Refusal(
                    500, f"internal error; the log has it under the request id {exchange.request_id}"
                )

    async def _model_stream_infer(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """Answer each request of a stream in its turn; a refusal is an answer, and the stream goes on."""
        del requests
        while received := await self._next(context):
            request = received.message
            if isinstance(request, Refused):
                yield self._answer("ModelStreamInfer", error_message=request.message)
                continue
            exchange = _exchange("ModelStreamInfer", context)
            try:
                self._take_one_more()
                try:
                    async for answer in self._answers(received, exchange):
                        yield self._answer("ModelStreamInfer", infer_response=answer)
                finally:
                    self._calls -= 1
            except (_Refusal, Refused) as refusal:
                yield self._failure(request, refusal.message)

    async def _next(self, context: Context) -> Any:
        """Wait for a stream's next request; what is false at its end. One that says nothing holds no server back."""
        assert self._stopping is not None
        reading = asyncio.ensure_future(self._silent.message(context, STREAM_SECONDS))
        try:
            await asyncio.wait((reading, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
        except CutOffError as cut:
            return await context.abort(cut.status, f"{cut.message}; open the stream anew")
        finally:
            reading.cancel()
        # Not a silent end: tritonclient would not tell whoever still waits for an answer.
        return await context.abort(
            grpc.StatusCode.UNAVAILABLE, "the server is stopping; open the stream anew"
        )

    async def _answers(self, received: _Received, exchange: Exchange) -> AsyncIterator[Any]:
        """Answer one request of a stream: once, or piece by piece where the model streams."""
        request = received.message
        version = f"/versions/{request.model_version}" if request.model_version else ""
        engine = self._repository.routes.get(f"/v2/models/{request.model_name}{version}/infer")
        if engine is None or not engine.streams:
            yield await self._infer(received, exchange)
            return
        engine.slot.enter()
        engine.holders += 1
        engine.used_at = exchange.started
        outcome: tuple[int, str | None] | None = None
        try:
            with self._held.whole(received.size):
                parsed = v2_grpc.read(request)
                async for specs, values in engine.pieces(
                    parsed.inputs,
                    parsed.parameters or {},
                    deadline=exchange.until(parsed.timeout_us),
                    unseen=exchange.pinned,
                ):
                    answer = self._answer("ModelInfer", model_name=engine.name, model_version=engine.version)
                    yield v2_grpc.write(answer, parsed, specs, values)
            outcome = 200, None
        except Exception as failure:
            refusal = self._told(failure, exchange)
            outcome = refusal.status, refusal.message
            raise refusal from failure
        finally:
            self._count(exchange, engine, *(outcome or _left(exchange)))

    def _failure(self, request: Any, message: str) -> Any:
        answer = self._answer("ModelStreamInfer", error_message=message)
        answer.infer_response.id = request.id
        return answer

    async def _index(self, request: Any, context: Context) -> Any:
        del context
        answer = self._answer("RepositoryIndex")
        for model in self._repository.names():
            for one in self._repository.versions(model):
                if not request.ready or one.state is State.READY:
                    answer.models.add(
                        name=model, version=one.location.version, state=one.state, reason=one.reason
                    )
        return answer

    async def _load(self, request: Any, context: Context) -> Any:
        del context
        await allowed(self._control, request.model_name).load(request.model_name)
        return self._answer("RepositoryModelLoad")

    async def _unload(self, request: Any, context: Context) -> Any:
        del context
        await allowed(self._control, request.model_name).unload(request.model_name)
        return self._answer("RepositoryModelUnload")

    def _count(self, exchange: Exchange, engine: Engine | None, status: int, error: str | None) -> None:
        seconds = time.perf_counter() - exchange.started
        slot = engine.slot if engine is not None else self._repository.unknown
        if engine is None:
            slot.enter()
        else:
            engine.holders -= 1
        if exchange.pinned:
            slot.leave_pinned()
        else:
            slot.leave(status, seconds)
        self._access_log.write(
            exchange.request_id,
            exchange.method,
            exchange.path,
            status,
            seconds,
            error=error,
            traceparent=exchange.traceparent,
        )
        if self._tracing is not None:
            self._tracing.ended(
                exchange,
                status,
                seconds,
                model=(engine.name, engine.version) if engine is not None else None,
            )


def _fitting(message: str) -> str:
    """Cut a sentence so that a client takes it: of 8 KiB of trailers it may refuse the call with a status of its own."""
    # As it is sent: all but ASCII takes three bytes for each of its own.
    sent = quote(message, safe=_AS_IT_IS, errors="replace")
    if len(sent) <= _SENTENCE_BYTES:
        return unquote(sent)
    return unquote(_HALF_ESCAPE.sub("", sent[:_SENTENCE_BYTES]), errors="ignore") + "…"


def _left(exchange: Exchange) -> tuple[int, str]:
    """Tell why nobody waits any more: grpc ends a call at its deadline, which may be a moment before our own clock's."""
    if is_late(exchange.deadline):
        return 504, _TOO_LATE
    return 499, "the caller left before it was answered"


def _whole(received: Any) -> _Received:
    """Give what came for a call that has one request; raise Refused where it has none, or it is no message."""
    if not received:
        raise Refused("the call ended before its message was whole")
    if isinstance(received.message, Refused):
        raise received.message
    return received


def _of_message(handler: Callable[[Any, Context], Awaitable[Any]]) -> _Handler:
    async def call(received: _Received, context: Context) -> Any:
        return await handler(received.message, context)

    return call


def _exchange(method: str, context: Context) -> Exchange:
    """Read a call's head; a stream's deadline is that of each of its requests."""
    exchange = Exchange("POST", f"/inference.GRPCInferenceService/{method}", _headers(context))
    remaining: Any = context.time_remaining()  # None without a deadline, whatever the types say
    if remaining is not None:
        own = asyncio.get_running_loop().time() + remaining
        exchange.deadline = own if exchange.deadline is None else min(own, exchange.deadline)
    return exchange


def _headers(context: Context) -> list[tuple[bytes, bytes]]:
    found = list[tuple[bytes, bytes]]()
    for name, value in context.invocation_metadata() or ():
        raw = value if isinstance(value, bytes) else value.encode()
        found.append((str(name).encode(), raw))
    return found
