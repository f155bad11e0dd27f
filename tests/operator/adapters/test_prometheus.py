"""What Prometheus, or what stands before it, may answer: never an exception, and silence is no answer."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web

from pilotage_operator.adapters.prometheus import Prometheus
from pilotage_operator.core.signals import Outage


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"status": "success"}', 200),
        ('{"status": "success", "data": []}', 200),
        ('{"status": "error"}', 200),
        ("[]", 200),
        ("<html>", 200),
        ('{"status": "success", "data": {}}', 503),
    ],
)
async def test_an_answer_without_what_was_asked_is_an_outage(body: str, status: int) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body, status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        prometheus = Prometheus(session, f"http://127.0.0.1:{runner.addresses[0][1]}")
        seen = await prometheus.look("shop", "fraud", [], counted_since=None)
    await runner.cleanup()
    assert isinstance(seen, Outage)
