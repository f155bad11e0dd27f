"""What the pages show can be used as it stands: examples, queries, fields, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from pilotage_operator.adapters import telemetry
from pilotage_operator.api.crd import crd
from pilotage_operator.api.modeldeployment import validate
from pilotage_operator.api.slo import LatencySLO, SLOSpec
from pilotage_operator.core.children.rules import prometheus_rule
from pilotage_runtime.telemetry import ModelCollector, ModelLabels, Sheet
from tests.docs import pages
from tests.docs.pages import PAGES, ROOT

EXAMPLES = [
    pytest.param(document, id=f"{pages.name(page)}-{at}")
    for page in PAGES
    for at, block in enumerate(pages.blocks(page, "yaml"))
    for document in yaml.safe_load_all(block)
]
SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
FIELD = re.compile(r"(?<![\w/-])((?:spec|status)\.[a-z][A-Za-z0-9]*(?:\.[a-z][A-Za-z0-9]*)*)")


def test_there_are_examples() -> None:
    assert sum(example.values[0].get("kind") == "ModelDeployment" for example in EXAMPLES) >= 7


@pytest.mark.parametrize("document", EXAMPLES)
def test_an_example_is_accepted(document: dict[str, Any]) -> None:
    """A ModelDeployment by the strict models; what has no kind is a file of the chart's values."""
    if document.get("kind") == "ModelDeployment":
        validate(document)
        return
    assert "kind" not in document, f"nothing checks examples of a {document['kind']}"
    _known(document, yaml.safe_load((ROOT / "charts/pilotage/values.yaml").read_text()), "values")


def _known(given: dict[str, Any], values: dict[str, Any], path: str) -> None:
    for name, value in given.items():
        assert name in values, f"the chart has no {path}.{name}"
        # An empty map in values.yaml takes any key.
        if isinstance(value, dict) and values[name]:
            _known(value, values[name], f"{path}.{name}")


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in pages.links(page) if not link.startswith("http") and not _leads(page, link)]
    assert broken == []


def _leads(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in pages.anchors(target))


def test_every_page_is_on_the_map() -> None:
    table = pages.DOCS / "README.md"
    shown = {(table.parent / link.partition("#")[0]).resolve() for link in pages.links(table)}
    assert set(pages.DOCS.rglob("*.md")) - {table} <= shown


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_fields_that_are_named_exist(page: Path) -> None:
    """Also in commands: `.status.rollback.evidence` and the like."""
    unknown = {path for path in FIELD.findall(page.read_text()) if not _is_field(path)}
    # Of other objects: a Deployment's template, a Prometheus' selectors.
    assert {
        path for path in unknown if not path.startswith(("spec.template.", "spec.podMonitor", "spec.ruleS"))
    } == set()


def _is_field(path: str) -> bool:
    schema = SCHEMA
    for part in path.split("."):
        schema = schema.get("items", schema)
        if "additionalProperties" in schema:
            return True
        if part not in schema.get("properties", {}):
            return False
        schema = schema["properties"][part]
    return True


def test_queries_ask_for_metrics_that_exist() -> None:
    known = _metrics()
    asked = {
        metric
        for page in PAGES
        for query in pages.blocks(page, "promql")
        for metric in re.findall(r"([a-z][a-z0-9_:]*)(?=\{)", query)
    }
    assert asked
    assert asked - known == set()


def _metrics() -> set[str]:
    sheet = Sheet()
    sheet.slot(1).start(load_seconds=0)
    collector = ModelCollector(lambda: {1: ModelLabels("m", "1")}, [sheet])
    runtime = {sample.name for family in collector.collect() for sample in family.samples}
    slo = SLOSpec(latency=LatencySLO(threshold_milliseconds=500))
    groups = prometheus_rule("m", "n", slo=slo, interval_seconds=15, labels={})["spec"]["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    own = {m.describe()[0].name for m in vars(telemetry).values() if isinstance(m, MetricWrapperBase)}
    return runtime | recorded | own | {"up"}
