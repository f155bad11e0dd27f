"""What the page on payloads shows can be done."""

import json
import subprocess
import sys
from pathlib import Path

from pilotage_runtime.services import payload_event, payload_log
from pilotage_runtime.services.payload_event import Redaction
from tests.docs import pages
from tests.docs.pages import ROOT

PAGE = ROOT / "docs/how-to/log-payloads-for-labelling.md"


def event(subject: str, kind: str, **more: object) -> str:
    return json.dumps({"subject": subject, "type": f"dev.pilotage.inference.{kind}", **more})


def test_requests_and_answers_are_put_side_by_side(tmp_path: Path) -> None:
    (script,) = pages.blocks(PAGE, "python")
    lines = [
        event("a", "request", data={"inputs": [{"data": [1, 2]}]}),
        event("b", "request", data={"inputs": [{"data": [3, 4]}]}),
        event("b", "response", statuscode=500),
        event("a", "response", statuscode=200, data={"outputs": [{"data": [7]}]}),
    ]
    (tmp_path / "payloads.jsonl").write_text("\n".join(lines))
    printed = subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, text=True, timeout=30)
    assert printed == "a\t[1, 2]\t[7]\n"


def test_the_shown_event_has_the_attributes_of_a_real_one() -> None:
    (shown,) = pages.blocks(PAGE, "json")
    real = payload_event.Payload(
        slot=None,  # pyright: ignore[reportArgumentType] - nothing is counted
        weight=0,
        model="iris",
        version="1",
        request_id="7f3c",
        number=0,
        began=0,
        ended=0,
        traceparent=b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        status=200,
        id=None,
        inputs=[],
        outputs=[],
        wanted=(),
        parameters=Redaction().parameters(None),
    )
    assert json.loads(payload_event.events(real)[1]).keys() == json.loads(shown).keys()


def test_the_bounds_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text().split())
    for bound in (
        f"at most {payload_log.MAX_EVENTS:,} of them and {payload_log.MAX_BYTES >> 20} MiB",
        f"up to {payload_log.BATCH_EVENTS} at a time",
        f"up to {payload_log.ATTEMPTS} times",
        f"a pair of more than {payload_log.MAX_PAYLOAD_BYTES >> 20} MiB",
        f"within {payload_log.FLUSH_SECONDS} seconds",
    ):
        assert bound in text
