"""The CRD that is checked in: the same as the models, described, bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pytest
import yaml
from annotated_types import Gt

from pilotage_operator.api import crd
from pilotage_operator.api.schema import ApiModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}", below
        yield from _fields(below, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield f"{path}[]", schema[inner]
            yield from _fields(schema[inner], f"{path}[]")


def test_the_copies_that_are_checked_in_are_what_the_models_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--check"]) == 0, capsys.readouterr().out


def test_a_copy_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "folder" / "crd.yaml"
    monkeypatch.setattr(crd, "COPIES", (copy,))
    assert crd.main(["--check"]) == 1
    assert crd.main(["--write"]) == 0
    assert crd.main(["--check"]) == 0
    copy.write_text(copy.read_text() + "# by hand\n")
    assert crd.main(["--check"]) == 1
    assert f"{copy} differs from the code: run" in capsys.readouterr().out


def test_what_is_printed_is_the_crd(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main([]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == crd.crd()


def test_every_field_is_described() -> None:
    bare = [
        path
        for path, schema in _fields(SCHEMA, "")
        if not path.endswith("[]") and path != ".metadata" and not schema.get("description")
    ]
    assert bare == []


def test_everything_that_users_write_is_bounded() -> None:
    bounds = {
        "string": lambda s: "maxLength" in s or "enum" in s,
        "array": lambda s: "maxItems" in s,
        "integer": lambda s: {"minimum", "maximum"} <= set(s) or "enum" in s,
        "number": lambda s: {"minimum", "maximum"} <= set(s),
        "object": lambda s: "properties" in s or "maxProperties" in s,
        "boolean": lambda s: True,
    }
    spec = list(_fields(SCHEMA["properties"]["spec"], "spec"))
    assert len(spec) > 50
    free = [path for path, s in spec if "type" in s and not bounds[s["type"]](s)]
    assert free == []


def test_only_scaling_routing_rollout_and_slo_have_defaults_within() -> None:
    sections = SCHEMA["properties"]["spec"]["properties"]
    within = {
        name: [path for path, below in _fields(section, name) if "default" in below]
        for name, section in sections.items()
    }
    assert within["model"] == within["runtime"] == within["scaling"] == []
    assert within["rollout"]
    assert within["routing"]
    assert within["slo"]


def test_the_resource_is_presented_as_the_blueprint_says() -> None:
    spec = crd.crd()["spec"]
    version = spec["versions"][0]
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns == ["Ready", "Phase", "Stable", "Canary", "Weight", "Replicas", "Age"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.scaling.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    assert (spec["names"]["shortNames"], spec["names"]["categories"]) == (["mdep"], ["ml"])


def test_lists_say_how_they_are_merged() -> None:
    kinds = {path: s["x-kubernetes-list-type"] for path, s in _fields(SCHEMA, "") if s.get("type") == "array"}
    assert kinds[".spec.runtime.env"] == kinds[".status.conditions"] == "map"
    assert kinds[".spec.routing.hosts"] == "set"
    assert kinds[".spec.rollout.steps"] == kinds[".spec.runtime.tolerations"] == "atomic"


class _UnknownType(ApiModel):
    amount: complex
    """A type without a schema."""


class _UnknownBound(ApiModel):
    amount: Annotated[int, Gt(3)]
    """A bound that the API server takes in another form."""


class _NoDescription(ApiModel):
    amount: int


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_UnknownType, "amount: the CRD has no schema for <class 'complex'>"),
        (_UnknownBound, r"amount: the CRD cannot say Gt\(gt=3\)"),
        (_NoDescription, r"_NoDescription\.amount has no description"),
    ],
)
def test_a_construct_that_is_not_known_is_an_error(model: type[ApiModel], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        crd.object_schema(model)
