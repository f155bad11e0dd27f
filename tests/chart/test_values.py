"""Values that are refused, each with words that lead to it, and values that reach the operator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pilotage_operator.settings import Settings
from tests.chart.helm import CHART, IMAGES, Refused, the

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chart.helm import Helm


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_the_chart_has_no_complaint_of_lint(helm: Helm) -> None:
    said = helm.run("lint", "--strict", str(CHART), *helm.flags())
    assert "0 chart(s) failed" in said


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("imagee={}", "additional properties 'imagee' not allowed"),
        ('monitoring.label={"a":"b"}', "additional properties 'label' not allowed"),
        ('monitoring.scrapeInterval="0s"', "/monitoring/scrapeInterval"),
        ('monitoring.scrapeInterval="301s"', "/monitoring/scrapeInterval"),
        ('monitoring.scrapeInterval="1m"', "/monitoring/scrapeInterval"),
        ("monitoring.labels.release=1", "/monitoring/labels/release"),
        ('image.digest="latest"', "/image/digest"),
        ('image.pullPolicy="Sometimes"', "/image/pullPolicy"),
        ('watchNamespaces="shop"', "/watchNamespaces"),
        ('watchNamespaces=["Shop"]', "/watchNamespaces/0"),
        ('watchNamespaces=["shop","shop"]', "/watchNamespaces"),
        ('prometheus.url="prometheus:9090"', "/prometheus/url"),
        ('prometheus.url="http://me:secret@prometheus"', "/prometheus/url"),
        ('routing.defaultGateways=["public"]', "/routing/defaultGateways/0"),
        ('routing.allowedHosts.shop="*"', "/routing/allowedHosts/shop"),
        (
            'routing.allowedHosts={"a b":[]}',
            "'/routing/allowedHosts': additional properties 'a b' not allowed",
        ),
        ('routing.domain=".example.com"', "/routing/domain"),
        ("models.maxBytes=0", "/models/maxBytes"),
        ('models.cache.hostPath="var/cache"', "/models/cache/hostPath"),
        ('models.allowPrivateAddresses="yes"', "/models/allowPrivateAddresses"),
        ('crds.keep="no"', "/crds/keep"),
        ('logLevel="LOUD"', "/logLevel"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(helm: Helm, value: str, message: str) -> None:
    with pytest.raises(Refused) as refusal:
        helm.render(value)
    assert message in refusal.value.message


@pytest.mark.parametrize("missing", [0, 1])
def test_an_image_that_is_not_named_is_asked_for(helm: Helm, missing: int) -> None:
    name = IMAGES[missing].partition("=")[0]
    with pytest.raises(Refused, match=rf"{name} is empty: say where the image is, for example --set {name}"):
        helm.run("template", "pilotage", str(CHART), "--set", IMAGES[1 - missing])


def test_every_value_is_in_the_schema_and_in_the_readme() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    told = [path for path in _leaves(values) if path not in readme]
    # Told in one cell with their first: `.digest`, `resources.requests` and the like.
    parts = [
        p for p in told if f".{p.rpartition('.')[2]}`" not in readme and p.partition(".")[0] != "resources"
    ]
    assert parts == []


def test_the_operator_is_told_what_the_values_say(helm: Helm) -> None:
    manifests = helm.render(
        'image={"digest":"sha256:' + "a" * 64 + '"}',
        'runtime.image={"tag":"2","pullPolicy":"Never"}',
        'watchNamespaces=["shop","bank"]',
        'prometheus.url="http://p:9090"',
        'monitoring={"labels":{"release":"kps"},"scrapeInterval":"5s","serviceMonitors":true}',
        'routing={"domain":"models.example.com","defaultGateways":["a/b"],"allowedGateways":["c/d"],'
        '"allowedHosts":{"*":["*.example.com"]}}',
        'models={"allowPrivateAddresses":true,"maxBytes":123456789012,'
        '"cache":{"hostPath":"/var/cache/models","maxBytes":9}}',
        'logLevel="DEBUG"',
    )
    (container,) = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/operator@sha256:" + "a" * 64
    assert {variable["name"]: variable.get("value") for variable in container["env"]} == {
        "PILOTAGE_NAMESPACE": None,
        "PILOTAGE_HEALTH_PORT": "8080",
        "PILOTAGE_METRICS_PORT": "9090",
        "PILOTAGE_POD_NAME": None,
        "PILOTAGE_RUNTIME_IMAGE": "registry.example/runtime:2",
        "PILOTAGE_RUNTIME_IMAGE_PULL_POLICY": "Never",
        "PILOTAGE_PROMETHEUS_URL": "http://p:9090",
        "PILOTAGE_SCRAPE_INTERVAL_SECONDS": "5",
        "PILOTAGE_MONITORING_LABELS": '{"release":"kps"}',
        "PILOTAGE_SERVICE_MONITORS": "true",
        "PILOTAGE_WATCH_NAMESPACES": '["shop","bank"]',
        "PILOTAGE_DOMAIN": "models.example.com",
        "PILOTAGE_DEFAULT_GATEWAYS": '["a/b"]',
        "PILOTAGE_ALLOWED_GATEWAYS": '["c/d"]',
        "PILOTAGE_ALLOWED_HOSTS": '{"*":["*.example.com"]}',
        "PILOTAGE_ALLOW_PRIVATE_ADDRESSES": "true",
        "PILOTAGE_MAX_MODEL_BYTES": "123456789012",
        "PILOTAGE_CACHE_HOST_PATH": "/var/cache/models",
        "PILOTAGE_CACHE_MAX_BYTES": "9",
        "PILOTAGE_LOG_LEVEL": "DEBUG",
    }


@pytest.mark.parametrize("values", [(), ('routing.allowedHosts={"shop":["*"]}', 'watchNamespaces=["a"]')])
def test_the_operator_understands_what_the_chart_tells_it(
    helm: Helm, values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variable is a setting, and every setting is a variable."""
    (container,) = the(helm.render(*values), "Deployment")["spec"]["template"]["spec"]["containers"]
    told = {variable["name"]: variable.get("value", "from the pod") for variable in container["env"]}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = Settings()  # type: ignore[call-arg]
    assert {f"PILOTAGE_{name.upper()}" for name in Settings.model_fields} == set(told)
    assert settings.runtime_image == "registry.example/runtime:0.1.0"
    assert settings.watch_namespaces == (["a"] if values else [])
