"""What an event of the log of payloads says, and what it leaves out."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from pilotage_runtime.contract import Contract, TensorSpec
from pilotage_runtime.errors import BusyError, ModelFailedError, TooLateError
from pilotage_runtime.features import Feature
from pilotage_runtime.protocol import v2
from pilotage_runtime.services import payload_event
from pilotage_runtime.services.exchange import Exchange
from pilotage_runtime.services.payload_event import Redaction
from pilotage_runtime.services.payload_log import PayloadLog
from tests.runtime import scripted
from tests.runtime.test_payload_log import TRACEPARENT, Held, inference


@pytest.mark.parametrize(
    ("error", "status"), [(TooLateError(), 504), (BusyError(3), 429), (ModelFailedError("it failed"), 500)]
)
def test_of_a_prediction_that_failed_there_is_the_status_that_its_caller_got(
    error: Exception, status: int
) -> None:
    async def failing() -> Any:
        raise error

    async def run() -> None:
        log, (asked, _) = PayloadLog(Held()), inference()
        with pytest.raises(type(error)):
            await log.noted(failing(), Exchange("POST", "/", []), scripted.engine(), asked)
        (waiting,) = log._queue
        assert json.loads(payload_event.events(waiting)[1])["statuscode"] == status

    asyncio.run(run())


@pytest.mark.parametrize(("header", "kept"), [(TRACEPARENT, True), (TRACEPARENT[:-1], False), ("", False)])
def test_an_event_says_all_that_was_asked_and_of_which_model(header: str, kept: bool) -> None:
    log, engine, (given, answer) = PayloadLog(Held()), scripted.engine(), inference()
    engine.name = "détecteur 2"
    asked = given._replace(id="7", outputs=("y",), parameters={"top": 3})
    log.note(Exchange("POST", "/", [(b"traceparent", header.encode())]), engine, asked, 200, answer)
    (waiting,) = log._queue
    events = [json.loads(event) for event in payload_event.events(waiting)]
    assert {event["source"] for event in events} == {"/v2/models/d%C3%A9tecteur%202/versions/1"}
    assert [event.get("traceparent") for event in events] == [header if kept else None] * 2
    assert events[0]["data"]["outputs"] == [{"name": "y"}]
    assert events[0]["data"]["parameters"] == {"top": 3}
    assert [event["data"]["id"] for event in events] == ["7", "7"]


def test_of_several_inputs_the_one_that_is_named_is_replaced_and_no_other() -> None:
    specs = tuple(TensorSpec(name, "FP32", (-1, 1)) for name in ("age", "height"))
    described = Contract(
        specs, scripted.contract().outputs, features=tuple(Feature(spec.name) for spec in specs)
    )
    log = PayloadLog(Held(), redaction=Redaction(["age"]))
    values = {spec.name: np.full((2, 1), 5, np.float32) for spec in specs}
    engine = scripted.engine(described=described)
    log.note(Exchange("POST", "/", []), engine, v2.InferRequest(None, values, ()), 200)
    (waiting,) = log._queue
    assert [tensor.values.ravel().tolist() for tensor in waiting.inputs] == [[None, None], [5, 5]]
    assert [tensor.redacted for tensor in waiting.inputs] == [("age",), ()]
