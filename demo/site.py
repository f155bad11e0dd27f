"""A cluster with Pilotage installed by its chart, and the demonstration's models in its store."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3fs
import yaml

from demo.models import build as models
from pilotage_dev import gobuild, images, paths
from pilotage_dev.cluster import Cluster
from pilotage_dev.errors import StackError
from pilotage_dev.parts import store

REPOSITORY = Path(__file__).resolve().parent.parent
NAMESPACE = "shop"
OPERATOR_NAMESPACE = "pilotage-system"
GATEWAY = "istio-system/public"
HOST = "fraud.example.com"
VALUES: dict[str, Any] = {
    "image": {"repository": "localhost/pilotage-operator", "tag": "dev"},
    "runtime": {"image": {"repository": "localhost/pilotage-runtime", "tag": "dev"}},
    "prometheus": {"url": "http://prometheus.monitoring.svc:9090"},
    "monitoring": {"scrapeInterval": "5s"},
    "routing": {"allowedGateways": [GATEWAY], "allowedHosts": {NAMESPACE: ["*.example.com"]}},
    # The model store of a cluster on one machine has a private address.
    "models": {"allowPrivateAddresses": True, "maxBytes": 32 * 2**20},
}
Say = Callable[[str], None]


@dataclass
class Site:
    """Where the story plays."""

    cluster: Cluster
    kubeconfig: Path
    models: Path

    def kubectl(self, *arguments: str, manifest: dict[str, Any] | None = None) -> str:
        """Run kubectl; a refusal is a StackError with the API server's sentence."""
        done = self.try_kubectl(*arguments, manifest=manifest)
        if done.returncode != 0:
            raise StackError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def try_kubectl(
        self, *arguments: str, manifest: dict[str, Any] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [str(gobuild.binary("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        given = None if manifest is None else json.dumps(manifest)
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)

    def get(self, kind: str, name: str, namespace: str = NAMESPACE) -> dict[str, Any] | None:
        done = self.try_kubectl("get", kind, name, "-n", namespace, "-o", "json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def list(self, kinds: str, *, namespace: str = NAMESPACE, labels: str = "") -> list[dict[str, Any]]:
        found = self.kubectl("get", kinds, "-n", namespace, "-l", labels, "-o", "json")
        return json.loads(found)["items"]

    def status(self, name: str) -> dict[str, Any]:
        found = self.get("modeldeployment", name)
        return (found or {}).get("status", {})

    def apply(self, manifest: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", manifest=manifest)

    def serve(self, name: str, version: str) -> None:
        """Edit the model of a ModelDeployment, as a person or a pipeline would."""
        self.edit(name, {"model": {"uri": f"s3://{store.BUCKET}/{version}"}})

    def edit(self, name: str, spec: dict[str, Any]) -> None:
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", "modeldeployment", name, "-n", NAMESPACE, "--type=merge", "-p", patch)

    def wait(
        self, name: str, done: Callable[[dict[str, Any]], bool], *, seconds: float
    ) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield each changed status with its time until `done`; a StackError tells where it stuck."""
        began, before = time.monotonic(), None
        while time.monotonic() - began < seconds:
            status = self.status(name)
            if status and status != before:
                before = status
                yield time.time(), status
                if done(status):
                    return
            time.sleep(0.3)
        raise StackError(f"{name} did not get there in {seconds:g} s; its status is {json.dumps(before)}")

    def upload(self, key: str, content: bytes) -> None:
        """Put an object into the model store, over what is there."""
        files = s3fs.S3FileSystem(
            key=store.ACCESS_KEY,
            secret=store.SECRET_KEY,
            endpoint_url=self.cluster.store_url,
            client_kwargs={"region_name": "us-east-1"},
        )
        files.pipe_file(f"{store.BUCKET}/{key}", content)

    def helm(self, command: str, *arguments: str) -> str:
        """Run a Helm command on the release; a failure is a StackError with Helm's words."""
        whole = [
            str(gobuild.binary("helm")), command, "pilotage", *arguments,
            f"--kubeconfig={self.kubeconfig}", f"--namespace={OPERATOR_NAMESPACE}",
        ]  # fmt: skip
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StackError(f"helm {command} failed:\n{done.stdout.strip()}\n{done.stderr.strip()}")
        return done.stdout

    def install(self, *settings: str) -> None:
        """Install or upgrade the chart with VALUES and `settings` (as `--set` takes them)."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
            yaml.safe_dump(VALUES, values)
            values.flush()
            self.helm(
                "upgrade", str(REPOSITORY / "charts/pilotage"), "--install", "--create-namespace",
                f"--values={values.name}", *(f"--set={setting}" for setting in settings), "--wait", "--timeout=3m",
            )  # fmt: skip

    def ready(self, name: str, seconds: float = 180) -> dict[str, Any]:
        """Wait until a ModelDeployment is Stable on what its spec says."""
        *_, (_, status) = self.wait(name, lambda s: s.get("phase") == "Stable", seconds=seconds)
        return status


def example(path: Path = REPOSITORY / "demo" / "fraud.yaml") -> dict[str, Any]:
    """Read a ModelDeployment from a file."""
    return yaml.safe_load(path.read_text())


def prepare(cluster: Cluster, say: Say) -> Site:
    """Bring the cluster up, install Pilotage, fill the store."""
    kubeconfig = cluster.up()
    for image in (images.RUNTIME, images.OPERATOR):
        say(f"building and loading the image of the {image.name}")
        cluster.load_image(image)
    folder = paths.cache() / "models"
    site = Site(cluster, kubeconfig, folder)
    say("installing Pilotage with Helm")
    site.install()
    say("training the models and putting them into the store")
    models.main(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        site.upload(str(path.relative_to(folder)), path.read_bytes())
    site.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    site.apply(_credentials())
    return site


def _credentials() -> dict[str, Any]:
    """The tenant's Secret; only the container that fetches the model mounts it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "model-store", "namespace": NAMESPACE},
        "stringData": {
            "AWS_ACCESS_KEY_ID": store.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": store.SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://store.model-store.svc:{store.PORT}",
            "AWS_REGION": "us-east-1",
        },
    }
