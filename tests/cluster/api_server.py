"""A client for the real API server that says exactly what is sent and what came back."""

from __future__ import annotations

import base64
import ssl
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
import yaml

if TYPE_CHECKING:
    from pathlib import Path

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEPLOYMENTS = "/apis/pilotage.dev/v1alpha1/namespaces/default/modeldeployments"
STRICT = {"fieldValidation": "Strict"}
DRY_RUN = STRICT | {"dryRun": "All"}


class ApiServer(httpx.Client):
    """The administrator's connection to an API server."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        super().__init__(
            base_url=cluster["server"],
            verify=ssl.create_default_context(cadata=authority),
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
            timeout=30,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def establish(self, definition: dict[str, Any]) -> None:
        """Create a CRD and wait until its objects are served."""
        answer = self.post(DEFINITIONS, json=definition, params=STRICT)
        assert answer.status_code in (201, 409), answer.text
        spec = definition["spec"]
        objects = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        for _ in range(300):
            if self.get(objects).status_code == 200:
                return
            time.sleep(0.1)
        raise AssertionError(f"{objects} is not served after 30 s")

    def dry_run(self, deployment: dict[str, Any]) -> httpx.Response:
        """Ask what the API server makes of a new object, without keeping it."""
        return self.post(DEPLOYMENTS, json=deployment, params=DRY_RUN)


def refusal(answer: httpx.Response) -> str:
    """Give the API server's words; an accepted object is a failure of the test."""
    assert answer.status_code in (400, 422), f"accepted, or worse: {answer.status_code} {answer.text}"
    return answer.json()["message"]
