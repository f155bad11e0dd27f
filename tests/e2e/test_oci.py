"""A model in an image: the node pulls it and mounts it, `fetch` copies it from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.site import NAMESPACE, Site
from pilotage_dev.images import Image
from pilotage_runtime.digest import digest
from tests.e2e.seen import condition, eventually, small

LAYOUTS = {"folder": "/models", "whole": "/"}
"""Where the model lies in the image: in its folder /models, or it is all that is in it."""


@pytest.fixture
def deploy(site: Site) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Apply a ModelDeployment with a route of its own."""
    names: list[str] = []

    def applied(name: str, model: dict[str, Any]) -> None:
        routing = {"hosts": [f"{name}.example.com"], "gateways": ["istio-system/public"]}
        names.append(name)
        site.apply(small(name, routing=routing, model=model))

    yield applied
    site.kubectl("delete", "modeldeployment", *names, "-n", NAMESPACE, "--wait")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_in_an_image_is_mounted_verified_and_served(
    site: Site, deploy: Callable[[str, dict[str, Any]], None], layout: str
) -> None:
    model, reference = site.models / "iris" / "1", f"localhost/models/iris-{layout}:1"
    site.cluster.load_image(image(f"iris-{layout}", reference, model, LAYOUTS[layout]))

    deploy(f"iris-{layout}", {"uri": f"oci://{reference}", "digest": digest(model)})

    site.ready(f"iris-{layout}")
    [pod] = site.list("pods", labels=f"pilotage.dev/modeldeployment=iris-{layout}")
    [volume] = [each for each in pod["spec"]["volumes"] if "image" in each]
    assert volume["image"] == {"reference": reference, "pullPolicy": "IfNotPresent"}
    [fetch] = pod["spec"]["initContainers"]
    [mount] = [each for each in fetch["volumeMounts"] if each["name"] == volume["name"]]
    assert mount["readOnly"]
    sample = json.loads((model / "contract.json").read_text())["sample"]
    answer = eventually(lambda: infer(site, f"iris-{layout}", sample["request"]))  # the gateway hears of it
    found = {output["name"]: output["data"] for output in answer["outputs"]}
    for output in sample["response"]["outputs"]:
        assert found[output["name"]] == pytest.approx(output["data"], abs=1e-5)


def test_an_image_that_is_not_there_is_named(
    site: Site, deploy: Callable[[str, dict[str, Any]], None]
) -> None:
    deploy("iris-lost", {"uri": "oci://localhost/models/lost:1"})

    def told() -> dict[str, Any] | None:
        ready = condition(site.status("iris-lost"), "Ready")
        return ready if ready["reason"] in ("ErrImagePull", "ImagePullBackOff") else None

    ready = eventually(told)
    assert ready["status"] == "False"
    assert "localhost/models/lost:1" in ready["message"]


def image(name: str, reference: str, model: Path, inside: str) -> Image:
    files = {f"model/{file.name}": file for file in model.iterdir()}
    dockerfile = f"FROM scratch\nCOPY model {inside}\n"
    return Image(name, reference, partial(str, dockerfile), partial(dict, files))


def infer(site: Site, name: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Ask through the gateway; None while it answers otherwise than well."""
    url = f"{site.cluster.gateway_url}/v2/models/{name}/infer"
    answer = httpx.post(url, json=request, headers={"Host": f"{name}.example.com"})
    return answer.json() if answer.status_code == 200 else None
