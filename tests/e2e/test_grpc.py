"""A ModelDeployment over gRPC: from outside, through the real gateway, split by the weights of its rollout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from demo.site import NAMESPACE, Site
from pilotage_runtime.protocol import messages
from tests.e2e.seen import eventually, small, weights

NAME, HOST = "calls", "calls.example.com"
CALLS = 100
METHODS = messages.load()


@pytest.fixture
def channel(site: Site) -> Iterator[grpc.Channel]:
    routing = {"hosts": [HOST], "gateways": ["istio-system/public"]}
    runtime = {"resources": {"requests": {"cpu": "50m"}}, "grpc": True}
    rollout = {"minReadySeconds": 1, "steps": [{"weight": 50, "holdSeconds": 3600}]}
    site.apply(small(NAME, routing=routing, runtime=runtime, rollout=rollout))
    site.ready(NAME)
    gateway = urlsplit(site.cluster.gateway_url).netloc
    with grpc.insecure_channel(gateway, options=[("grpc.default_authority", HOST)]) as opened:
        yield opened
    site.kubectl("delete", "modeldeployment", NAME, "-n", NAMESPACE, "--wait")


def test_calls_are_answered_and_split_like_requests(site: Site, channel: grpc.Channel) -> None:
    row = json.loads((site.models / "requests/fraud.json").read_text())["inputs"][0]["data"]
    stable = site.status(NAME)["stable"]["revision"]
    eventually(lambda: infer(channel, row) is grpc.StatusCode.OK)  # the gateway hears of it
    site.serve(NAME, "fraud/2")
    canary = eventually(lambda: site.status(NAME).get("canary", {}).get("revision"))
    site.edit(NAME, {"rollout": {"canaryWeight": 50}})
    eventually(lambda: weights(site, NAME) == {stable: 50, canary: 50}, seconds=60)
    eventually(lambda: infer(channel, row) is grpc.StatusCode.OK and answered(site, canary) > 0)
    before = {revision: answered(site, revision) for revision in (stable, canary)}
    assert {infer(channel, row) for _ in range(CALLS)} == {grpc.StatusCode.OK}
    took = {revision: answered(site, revision) - count for revision, count in before.items()}
    assert sum(took.values()) == CALLS
    # Half and half: fewer than 25 of 100 are less likely than one in a million.
    assert min(took.values()) >= 25, took


def infer(channel: grpc.Channel, row: list[float]) -> grpc.StatusCode:
    """Call once; what came of it."""
    method = METHODS["ModelInfer"]
    call = channel.unary_unary(
        f"/{messages.SERVICE}/ModelInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=method.response.FromString,
    )
    asked = method.request(model_name=NAME)
    tensor = asked.inputs.add(name="X", datatype="FP32", shape=[1, len(row)])
    tensor.contents.fp32_contents.extend(row)
    try:
        answer = call(asked, timeout=5)
    except grpc.RpcError as error:
        return error.code()
    assert answer.model_name == NAME
    assert [output.name for output in answer.outputs]
    return grpc.StatusCode.OK


def answered(site: Site, revision: str) -> float:
    """What the pods of a revision counted, asked as Prometheus asks."""
    total = 0.0
    for pod in site.list("pods", labels=f"pilotage.dev/revision={revision}"):
        text = httpx.get(f"http://{pod['status']['podIP']}:9090/metrics").text
        found = re.findall(r'^inference_requests_total\{.*code="200".*\} (\S+)$', text, re.MULTILINE)
        total += sum(map(float, found))
    return total
