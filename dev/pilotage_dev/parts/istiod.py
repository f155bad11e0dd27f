"""istiod: reads routes from the cluster and tells Envoy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from pilotage_dev import api, gobuild, kubectl
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

XDS_PORT = 15010
HTTP_PORT = 15085

MESH = {
    "defaultConfig": {"discoveryAddress": "localhost:15012"},
    "accessLogFile": "",
    "enablePrometheusMerge": False,
    # A plain Envoy has no certificates: with this on it waits for them for ever.
    "enableAutoMtls": False,
}


def _prepare(stack: Stack) -> None:
    (stack.folder_of("istiod") / "mesh.yaml").write_text(yaml.safe_dump(MESH))
    kubectl.apply_definitions(stack, gobuild.source_file("istio-crds.yaml"))
    kubectl.apply_text(stack, yaml.safe_dump(_namespace("istio-system")))


def _namespace(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _command(stack: Stack) -> Command:
    return Command(
        (
            stack.binary("pilot-discovery"),
            "discovery",
            f"--meshConfig={stack.folder_of('istiod')}/mesh.yaml",
            f"--kubeconfig={stack.kubeconfig_of('istiod')}",
            f"--grpcAddr=127.0.0.1:{XDS_PORT}",
            "--secureGRPCAddr=127.0.0.1:15012",
            "--monitoringAddr=127.0.0.1:15014",
            "--httpsAddr=127.0.0.1:15017",
            f"--httpAddr=127.0.0.1:{HTTP_PORT}",
            "--ctrlz_port=0",
        ),
        {
            # What Istio's own build of Envoy has and this one lacks.
            "PILOT_ENABLE_METADATA_EXCHANGE": "false",
            "PILOT_ENABLE_ALPN_FILTER": "false",
            "PILOT_DISABLE_MX_ALPN": "true",
            "XDS_AUTH": "false",
            "PILOT_CERT_PROVIDER": "istiod",
            "PILOT_ENABLE_GATEWAY_API": "false",
            # One istiod, no injection, no validation: nothing to elect, no webhook to look after.
            "ENABLE_LEADER_ELECTION": "false",
            "INJECTION_WEBHOOK_CONFIG_NAME": "",
            "VALIDATION_WEBHOOK_CONFIG_NAME": "",
            "POD_NAME": "istiod",
            "POD_NAMESPACE": "istio-system",
            "CLUSTER_ID": "Kubernetes",
        },
    )


def _ports(_: Stack) -> tuple[Address, ...]:
    return tuple(("127.0.0.1", port) for port in (XDS_PORT, 15012, 15014, 15017, HTTP_PORT))


def _ready(_: Stack) -> bool:
    return api.answers(f"http://127.0.0.1:{HTTP_PORT}/ready")


ISTIOD = Part(
    name="istiod",
    tier=Tier.ALL,
    after=("kube-apiserver",),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
)
