"""The generate extension: inputs by name in flat JSON, answers whole or piece by piece as server-sent events.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.engine import Engine
from pilotage_runtime.errors import Refused
from pilotage_runtime.protocol import v2
from pilotage_runtime.repository import Repository
from pilotage_runtime.services import counted, reading
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.held import Held
from pilotage_runtime.services.infer import refused
from pilotage_runtime.services.payload_log import PayloadLog

_OWN = frozenset({"id", "parameters", "stream"})


Piece = tuple[list[TensorSpec], list[np.ndarray]]


def add(app: FastAPI, repository: Repository, held: Held, payloads: PayloadLog | None = None) -> None:
    """Add the paths."""

    async def generate(request: Request, name: tuple[str, str | None], *, stream: bool) -> Response:
        async def serve(engine: Engine, exchange: Exchange) -> Response:
            async with reading.document(request, held) as body:
                asked = read(body, engine.contract)
                pieces = engine.pieces(
                    asked.inputs,
                    asked.parameters or {},
                    deadline=exchange.until(asked.timeout_us),
                    unseen=exchange.pinned,
                )
                if stream:
                    # The first piece, or its failure, decides the status.
                    first = await counted.unless_left(request, _first(pieces))
                    outcome = counted.Outcome()
                    return counted.EventStream(
                        _events(engine, asked, first, pieces, exchange=exchange, outcome=outcome), outcome
                    )
                answering = _whole(pieces)
                if payloads is not None:
                    answering = payloads.noted(answering, exchange, engine, asked)
                whole = await counted.unless_left(request, answering)
            return counted.json(_named(engine, asked, *whole))

        return await counted.counted(request, repository, name, serve)

    for end, streams in (("generate", False), ("generate_stream", True)):

        async def of_model(request: Request, model: str, *, _stream: bool = streams) -> Response:
            return await generate(request, (model, None), stream=_stream)

        async def of_version(
            request: Request, model: str, version: str, *, _stream: bool = streams
        ) -> Response:
            return await generate(request, (model, version), stream=_stream)

        for path, handler in (
            (f"/v2/models/{{model}}/{end}", of_model),
            (f"/v2/models/{{model}}/versions/{{version}}/{end}", of_version),
        ):
            app.add_api_route(
                path,
                handler,
                methods=["POST"],
                tags=["inference"],
                include_in_schema=False,
                response_model=None,
            )


def read(body: Any, contract: Contract) -> v2.InferRequest:
    """Read a request: names of inputs hold values, everything else is a parameter; raise Refused."""
    if type(body) is not dict:
        raise Refused("the body should be an object with the model's inputs by name")
    stated = body.get("parameters", {})
    if type(stated) is not dict:
        raise Refused("'parameters' should be an object")
    inputs = [_entry(spec, body[spec.name]) for spec in contract.inputs if spec.name in body]
    if missing := [spec.name for spec in contract.inputs if spec.name not in body]:
        raise Refused(f"input '{missing[0]}' is missing; the model takes {', '.join(contract.input_by_name)}")
    beside = {
        name: value for name, value in body.items() if name not in contract.input_by_name and name not in _OWN
    }
    document = {"inputs": inputs, "parameters": {**stated, **beside}}
    if "id" in body:
        document["id"] = body["id"]
    return v2.read(document, contract)


def _entry(spec: TensorSpec, value: Any) -> dict[str, Any]:
    """Give a value the shape that the contract wants: a scalar fills dimensions of one."""
    dimensions, inner = list[int](), value
    while type(inner) is list and inner:
        dimensions.append(len(inner))
        inner = inner[0]
    padding = len(spec.shape) - len(dimensions)
    shape = [1] * max(0, padding) + dimensions
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": shape,
        # Nested as deep as its shape says; v2 refuses what is uneven.
        "data": _nested(value, padding) if type(value) is list else [value],
    }


def _nested(value: list[Any], times: int) -> list[Any]:
    for _ in range(times):
        value = [value]
    return value


async def _first(pieces: AsyncGenerator[Piece]) -> Piece | None:
    return await anext(pieces, None)


async def _whole(pieces: AsyncGenerator[Piece]) -> Piece:
    async with aclosing(pieces):
        gathered = [piece async for piece in pieces]
    if not gathered:
        return [], []
    values = zip(*(piece[1] for piece in gathered), strict=True)
    return gathered[0][0], [np.concatenate(parts) for parts in values]


def _named(
    engine: Engine, asked: v2.InferRequest, specs: Sequence[TensorSpec], values: Sequence[np.ndarray]
) -> dict[str, Any]:
    answer: dict[str, Any] = {"model_name": engine.name, "model_version": engine.version}
    if asked.id is not None:
        answer["id"] = asked.id
    for spec, value in zip(specs, values, strict=True):
        plain = value.astype(np.float32) if spec.datatype == "BF16" else value
        flat = [
            item.decode("utf-8", "replace") if isinstance(item, bytes) else item
            for item in plain.ravel().tolist()
        ]
        answer[spec.name] = flat[0] if len(flat) == 1 else flat
    return answer


async def _events(
    engine: Engine,
    asked: v2.InferRequest,
    first: Piece | None,
    rest: AsyncGenerator[Piece],
    *,
    exchange: Exchange,
    outcome: counted.Outcome,
) -> AsyncGenerator[bytes]:
    """Write each piece as an event; a failure in the middle is the last one, for the status has gone already."""
    try:
        piece = first
        while piece is not None:
            yield b"data: " + orjson.dumps(_named(engine, asked, *piece)) + b"\n\n"
            piece = await anext(rest, None)
        outcome.status = 200
    except Exception as error:  # noqa: BLE001 - told in the stream, counted and logged by `refused`
        answer = refused(error, exchange)
        outcome.status = answer.status
        assert isinstance(answer.body, bytes)
        yield b"data: " + answer.body + b"\n\n"
    finally:
        await rest.aclose()
