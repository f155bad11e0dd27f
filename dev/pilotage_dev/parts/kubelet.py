"""kubelet: the node."""

from __future__ import annotations

import yaml

from pilotage_dev import api, cgroups, images
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.parts import containerd
from pilotage_dev.process import Command
from pilotage_dev.stack import NODE, Stack


def _prepare(stack: Stack) -> None:
    images.load_built(stack, images.PAUSE)
    folder = stack.folder_of("kubelet")
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": stack.address,
        "containerRuntimeEndpoint": f"unix://{containerd.socket(stack)}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroups.NAME}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{stack.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{stack.pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{stack.pki}/kubelet-server.key",
        "clusterDNS": [stack.address],
        "clusterDomain": "cluster.local",
        "podLogsDir": f"{stack.folder}/pod-logs",
        "volumePluginDir": f"{folder}/volume-plugins",
        # A developer's disk may be nearly full; the images loaded into the node must stay even so.
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,
        # How late a changed Secret or ConfigMap reaches its pod: with the default minute a new
        # PrometheusRule took as long to be loaded.
        "syncFrequency": "2s",
        "maxPods": 250,
        "registryPullQPS": 0,
        "shutdownGracePeriod": "0s",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))


def _command(stack: Stack) -> Command:
    folder = stack.folder_of("kubelet")
    return Command(
        (
            stack.binary("kubelet"),
            f"--config={folder}/config.yaml",
            f"--kubeconfig={stack.kubeconfig_of('kubelet')}",
            f"--root-dir={folder}/root",
            f"--cert-dir={folder}/pki",
            f"--hostname-override={NODE}",
            f"--node-ip={stack.address}",
        )
    )


def _ports(stack: Stack) -> tuple[Address, ...]:
    return ((stack.address, 10250), ("127.0.0.1", 10248))


def _ready(stack: Stack) -> bool:
    node = api.get(stack.kubeconfig, f"/api/v1/nodes/{NODE}")
    if node is None:
        return False
    conditions = {item["type"]: item["status"] for item in node["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


KUBELET = Part(
    name="kubelet",
    tier=Tier.NODE,
    after=("containerd", "kube-apiserver"),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
)
