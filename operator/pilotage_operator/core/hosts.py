"""Which hosts and gateways a ModelDeployment may use: the install's allow-lists, and first come, first served."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pilotage_operator.core.snapshot import Snapshot


@dataclass(frozen=True)
class Exposure:
    """What the VirtualService may name, and what was refused and why."""

    hosts: tuple[str, ...]
    gateways: tuple[str, ...]
    refusals: tuple[tuple[str, str], ...] = ()
    """(reason, message)."""


def rival_owners(
    virtual_services: Iterable[Mapping[str, Any]], wanted: Collection[str], *, own: str
) -> dict[str, str]:
    """Host → NAMESPACE/NAME of the other one that holds it; of several that do, the oldest, by name in a tie."""
    owners: dict[str, str] = {}
    for held in sorted(virtual_services, key=_age):
        for host in set(wanted).intersection(held["spec"].get("hosts", [])):
            owners.setdefault(host, _age(held)[1])
    return {host: owner for host, owner in owners.items() if owner != own}


def _age(manifest: Mapping[str, Any]) -> tuple[str, str]:
    metadata = manifest["metadata"]
    return metadata["creationTimestamp"], f"{metadata['namespace']}/{metadata['name']}"


def exposure(snapshot: Snapshot) -> Exposure:
    deployment, install = snapshot.deployment, snapshot.install
    routing, namespace = deployment.spec.routing, deployment.namespace
    hosts: list[str] = [f"{deployment.name}.{namespace}.{install.domain}"] if install.domain else []
    gateways: list[str] = []
    refusals: list[tuple[str, str]] = []
    for host in routing.hosts or ():
        owner = snapshot.host_owners.get(host)
        if install.domain and host.endswith(f".{install.domain}") and host not in hosts:
            refusals.append(
                (
                    "HostNotAllowed",
                    (
                        f"spec.routing.hosts: {host} is kept for the ModelDeployment of that name and namespace;"
                        f" this one's own is {hosts[0]}."
                    ),
                )
            )
        elif not install.host_allowed(host, namespace):
            refusals.append(
                (
                    "HostNotAllowed",
                    (
                        f"spec.routing.hosts: {host} is not allowed in namespace {namespace}; the install's"
                        " routing.allowedHosts would have to list it."
                    ),
                )
            )
        elif owner is not None:
            refusals.append(
                (
                    "HostConflict",
                    (
                        f"spec.routing.hosts: {host} belongs to ModelDeployment {owner}; it is free once that one's"
                        " VirtualService is gone."
                    ),
                )
            )
        elif host not in hosts:  # the install's own host may be written out
            hosts.append(host)
    for gateway in routing.gateways or install.default_gateways:
        if install.gateway_allowed(gateway):
            gateways.append(gateway)
        else:
            refusals.append(
                (
                    "GatewayNotAllowed",
                    (
                        f"spec.routing.gateways: {gateway} is not among the install's routing.allowedGateways"
                        f" ({', '.join(install.allowed_gateways) or 'none'})."
                    ),
                )
            )
    return Exposure(tuple(hosts), tuple(gateways), tuple(refusals))
