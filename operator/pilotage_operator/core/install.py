"""What the install decides for every ModelDeployment: the chart's values, as decisions see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Install:
    """The chart's values that shape children and routes."""

    runtime_image: str
    runtime_image_pull_policy: str = "IfNotPresent"
    scrape_interval_seconds: int = 15
    monitoring_labels: Mapping[str, str] = field(default_factory=dict[str, str])
    service_monitors: bool = False
    domain: str = ""
    default_gateways: tuple[str, ...] = ()
    allowed_gateways: tuple[str, ...] = ()
    allowed_hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    allow_private_addresses: bool = False
    max_model_bytes: int = 10 * 2**30
    cache_host_path: str = ""
    cache_max_bytes: int = 50 * 2**30

    def host_allowed(self, host: str, namespace: str) -> bool:
        globs = (*self.allowed_hosts.get(namespace, ()), *self.allowed_hosts.get("*", ()))
        return any(fnmatchcase(host, glob) for glob in globs)

    def gateway_allowed(self, gateway: str) -> bool:
        return gateway in self.allowed_gateways or gateway in self.default_gateways


@dataclass(frozen=True)
class Features:
    """Which optional APIs the cluster serves."""

    istio: bool = True
    prometheus_rules: bool = True
    service_monitors: bool = True
