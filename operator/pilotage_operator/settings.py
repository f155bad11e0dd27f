"""What the chart tells the operator, by environment variables with the prefix PILOTAGE_."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pilotage_operator.core.install import Install


class Settings(BaseSettings):
    """The operator's settings; docs/reference names each with its chart value."""

    model_config = SettingsConfigDict(env_prefix="PILOTAGE_", frozen=True)

    runtime_image: str
    runtime_image_pull_policy: str = "IfNotPresent"
    prometheus_url: str = "http://prometheus-operated.monitoring.svc:9090"
    scrape_interval_seconds: int = Field(default=15, ge=1, le=300)
    monitoring_labels: dict[str, str] = Field(default_factory=dict[str, str])
    service_monitors: bool = False
    watch_namespaces: list[str] = Field(default_factory=list[str])
    domain: str = ""
    default_gateways: list[str] = Field(default_factory=list[str])
    allowed_gateways: list[str] = Field(default_factory=list[str])
    allowed_hosts: dict[str, list[str]] = Field(default_factory=dict[str, list[str]])
    allow_private_addresses: bool = False
    max_model_bytes: int = Field(default=10 * 2**30, ge=1)
    cache_host_path: str = Field(default="", pattern=r"^(/[^/]+)*$")
    cache_max_bytes: int = Field(default=50 * 2**30, ge=1)
    namespace: str = "pilotage-system"
    pod_name: str = "pilotage-operator"
    health_port: int = 8080
    metrics_port: int = 9090
    log_level: str = "INFO"

    @property
    def install(self) -> Install:
        return Install(
            runtime_image=self.runtime_image,
            runtime_image_pull_policy=self.runtime_image_pull_policy,
            scrape_interval_seconds=self.scrape_interval_seconds,
            monitoring_labels=self.monitoring_labels,
            service_monitors=self.service_monitors,
            domain=self.domain,
            default_gateways=tuple(self.default_gateways),
            allowed_gateways=tuple(self.allowed_gateways),
            allowed_hosts={name: tuple(globs) for name, globs in self.allowed_hosts.items()},
            allow_private_addresses=self.allow_private_addresses,
            max_model_bytes=self.max_model_bytes,
            cache_host_path=self.cache_host_path,
            cache_max_bytes=self.cache_max_bytes,
        )
