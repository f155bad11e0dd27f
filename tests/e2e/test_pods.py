"""The runtime's pods behind the real Envoy: restarts and idle connections lose no request, load makes them more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from demo import story
from demo.site import NAMESPACE, Site
from tests.e2e.seen import eventually, small

RESTARTS = 20
GAPS = (59.9, 60.0, 60.1, 89.9, 90.0, 90.1)
"""Seconds without a request, around the time-outs of Envoy (60 s) and of the runtime (90 s)."""


@pytest.fixture(scope="module")
def after_gaps(site: Site) -> Iterator[dict[float, Future[list[int]]]]:
    """One ModelDeployment a gap, so that each has upstream connections of its own, asked in the background."""
    names = {gap: f"idle-{index}" for index, gap in enumerate(GAPS)}
    for name in names.values():
        routing = {"hosts": [f"{name}.example.com"], "gateways": ["istio-system/public"]}
        site.apply(small(name, routing=routing))
    for name in names.values():
        site.ready(name)
    with ThreadPoolExecutor(len(GAPS)) as threads:
        yield {gap: threads.submit(_ask_twice, site, name, gap) for gap, name in names.items()}
    site.kubectl("delete", "modeldeployment", *names.values(), "-n", NAMESPACE, "--wait")


@pytest.mark.usefixtures("after_gaps")
def test_twenty_rolling_restarts_under_load_lose_no_request(site: Site, fraud: dict[str, Any]) -> None:
    revision = site.status("fraud")["stable"]["revision"]
    with story.load(site) as traffic:
        began = time.time()
        for _ in range(RESTARTS):
            # kubectl's stamp has whole seconds: twice in one second would be no restart.
            stamp = {"kubectl.kubernetes.io/restartedAt": f"{time.time():.3f}"}
            patch = json.dumps({"spec": {"template": {"metadata": {"annotations": stamp}}}})
            site.kubectl("patch", "deployment", revision, "-n", NAMESPACE, "-p", patch)
            site.kubectl("rollout", "status", f"deployment/{revision}", "-n", NAMESPACE, "--timeout=60s")
        time.sleep(20)  # the last pods drain
        codes = traffic.codes(began)
    print(f"{codes.total()} requests over {RESTARTS} restarts: {dict(codes)}")
    assert set(codes) == {200}
    assert codes.total() > 50 * RESTARTS


@pytest.mark.parametrize("gap", GAPS)
def test_a_request_after_an_idle_gap_is_answered(
    after_gaps: dict[float, Future[list[int]]], gap: float
) -> None:
    assert after_gaps[gap].result(timeout=gap + 60) == [200, 200]


def test_the_autoscaler_reads_the_cpu_of_the_inference_container(site: Site, fraud: dict[str, Any]) -> None:
    revision = site.status("fraud")["stable"]["revision"]

    def measured() -> int | None:
        scaler = site.get("hpa", revision) or {}
        for metric in scaler.get("status", {}).get("currentMetrics") or []:
            found = metric.get("containerResource", {})
            if found.get("container") == "inference" and found.get("name") == "cpu":
                return found["current"].get("averageUtilization")
        return None

    with story.load(site, per_second=100):
        assert eventually(measured, seconds=90) > 0
    scaler = site.get("hpa", revision)
    assert scaler is not None
    active = next(c for c in scaler["status"]["conditions"] if c["type"] == "ScalingActive")
    assert active["status"] == "True", active


def _ask_twice(site: Site, name: str, gap: float) -> list[int]:
    """Ask, wait, ask again; each over a connection of its own, so that only Envoy's to the pod has been idle."""
    body = (site.models / "requests/fraud.json").read_bytes()
    headers = {"Host": f"{name}.example.com", "Content-Type": "application/json"}
    url = f"{site.cluster.gateway_url}/v2/models/{name}/infer"
    # The gateway hears of a new host a moment after it is ready.
    end = time.monotonic() + 15
    while (
        first := httpx.post(url, content=body, headers=headers).status_code
    ) == 404 and time.monotonic() < end:
        time.sleep(0.5)
    time.sleep(gap)
    return [first, httpx.post(url, content=body, headers=headers).status_code]
