"""The cluster where a Docker engine is at hand: kind, with mesh, monitoring and metrics from their charts.

It gives the same names and addresses as the local stack. It is not run on machines without Docker, so not
where the local stack is tested.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import yaml

from pilotage_dev import gobuild, images, paths
from pilotage_dev.errors import StackError
from pilotage_dev.kubectl import FOLDER

NAME = "pilotage"
ISTIO = "https://istio-release.storage.googleapis.com/charts"
PROMETHEUS = "https://prometheus-community.github.io/helm-charts"
METRICS_SERVER = "https://kubernetes-sigs.github.io/metrics-server"
# Ports of this machine that lead to node ports.
CONFIGURATION = {
    "kind": "Cluster",
    "apiVersion": "kind.x-k8s.io/v1alpha4",
    "nodes": [
        {
            "role": "control-plane",
            "extraPortMappings": [
                {"listenAddress": "127.0.0.1", "hostPort": 8088, "containerPort": 30088},
                {"listenAddress": "127.0.0.1", "hostPort": 7070, "containerPort": 30070},
            ],
        }
    ],
}
INGRESS: dict[str, object] = {
    "service": {"type": "NodePort", "ports": [{"name": "http", "port": 8088, "nodePort": 30088}]}
}
# As on the local stack: every monitor and every rule is selected, figures come every five seconds.
MONITORING: dict[str, object] = {
    "grafana": {"enabled": False},
    "prometheus": {
        "prometheusSpec": {
            "scrapeInterval": "5s",
            "evaluationInterval": "5s",
            "ruleSelectorNilUsesHelmValues": False,
            "podMonitorSelectorNilUsesHelmValues": False,
            "serviceMonitorSelectorNilUsesHelmValues": False,
        }
    },
}


class Kind:
    """A cluster in Docker."""

    gateway_url = "http://127.0.0.1:8088"
    store_url = "http://127.0.0.1:7070"

    @property
    def kubeconfig(self) -> Path:
        return paths.cache() / "kind-kubeconfig"

    def up(self) -> Path:
        """Create the cluster if it is not there; install what it lacks."""
        gobuild.build(["helm", "kubectl", "versitygw"])
        if NAME not in _run("kind", "get", "clusters").split():
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                yaml.safe_dump(CONFIGURATION, file)
                file.flush()
                _run("kind", "create", "cluster", f"--name={NAME}", f"--config={file.name}",
                     f"--kubeconfig={self.kubeconfig}", "--wait=3m")  # fmt: skip
        self._install("istio-base", "base", ISTIO, "istio-system", {})
        self._install("istiod", "istiod", ISTIO, "istio-system", {})
        self._install("istio-ingressgateway", "gateway", ISTIO, "istio-system", INGRESS)
        self._install("monitoring", "kube-prometheus-stack", PROMETHEUS, "monitoring", MONITORING)
        self._install("metrics-server", "metrics-server", METRICS_SERVER, "kube-system",
                      {"args": ["--kubelet-insecure-tls"]})  # fmt: skip
        for image in (images.RUNTIME, images.STORE):
            self.load_image(image)
        kubectl = str(gobuild.binary("kubectl"))
        _run(kubectl, f"--kubeconfig={self.kubeconfig}", "apply", f"--filename={FOLDER / 'kind.yaml'}")
        return self.kubeconfig

    def load_image(self, image: images.Image) -> None:
        """Build an image with Docker and load it into the node."""
        with tempfile.TemporaryDirectory() as folder:
            image.lay_out(Path(folder))
            (Path(folder) / "Dockerfile").write_text(image.dockerfile())
            _run("docker", "build", f"--tag={image.reference}", folder)
        _run("kind", "load", "docker-image", image.reference, f"--name={NAME}")

    def down(self) -> None:
        """Delete the cluster."""
        _run("kind", "delete", "cluster", f"--name={NAME}")
        self.kubeconfig.unlink(missing_ok=True)

    def _install(
        self, release: str, chart: str, repository: str, namespace: str, values: dict[str, object]
    ) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            _run(str(gobuild.binary("helm")), "upgrade", "--install", release, chart, f"--repo={repository}",
                 f"--namespace={namespace}", "--create-namespace", f"--kubeconfig={self.kubeconfig}",
                 f"--values={file.name}", "--wait")  # fmt: skip


def _run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StackError(f"{' '.join(arguments)} failed:\n{done.stderr.strip()}")
    return done.stdout
