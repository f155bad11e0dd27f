"""Renders the pages of the two programs' settings; `--write` renews them, `--check` compares them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from pilotage_operator.api import rendered
from pilotage_operator.api.modeldeployment import parse
from pilotage_operator.core.children.pod_template import pod_template
from pilotage_operator.core.install import Install
from pilotage_operator.settings import Settings
from pilotage_runtime.settings import FetchSettings, ServeSettings

HERE = Path(__file__).parent
_TEMPLATE = rendered.ROOT / "charts/pilotage/templates/deployment.yaml"
_PREFIX = "PILOTAGE_"
_HEAD = "<!-- Rendered by `make docs` from the settings in the code. -->\n"

_RUNTIME = """\
# Reference: settings of the runtime

`pilotage-runtime` reads them from its environment; `pilotage-runtime serve --help` shows them too. In a pod the
operator sets those marked so, and `spec.runtime.env` may name none of them: the rest have their defaults there.
"""
_OPERATOR = """\
# Reference: settings of the operator

The chart sets all of them; [its README](../../charts/pilotage/README.md) tells what each value means.

| variable | chart value | type | default without the chart | bounds |
|---|---|---|---|---|
"""
_COMMANDS = (
    ("fetch", FetchSettings, "the init container, which downloads and verifies the model", "initContainers"),
    ("serve", ServeSettings, "the container `inference`, which answers requests", "containers"),
)
# Every part that makes the operator set a variable.
_FULL = {
    "apiVersion": "pilotage.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "m"},
    "spec": {
        "model": {
            "uri": "s3://bucket/key",
            "digest": "sha256:" + "0" * 64,
            "format": "ONNX",
            "trusted": True,
            "trustedTypes": ["a.B"],
            "credentialsSecretRef": {"name": "s"},
            "signature": {
                "publicKey": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            },
            "decryptionSecretRef": {"name": "k"},
        },
        "runtime": {"threads": 1, "device": "GPU", "precision": "Float16"},
    },
}


def runtime() -> str:
    """Render the page of the runtime's settings."""
    pod = pod_template(parse(_FULL), "m-1", Install(runtime_image="i", cache_host_path="/c"))["spec"]
    parts = [_HEAD + _RUNTIME]
    for command, settings, purpose, kind in _COMMANDS:
        given = {variable["name"] for variable in pod[kind][0]["env"]}
        parts.append(f"## `pilotage-runtime {command}`\n\nFor {purpose}.\n")
        parts.append(
            "| variable | type | default | bounds | set in a pod | meaning |\n|---|---|---|---|---|---|"
        )
        for name, field in _fields(settings):
            by_operator = "by the operator" if name in given else ""
            parts.append(_row(f"`{name}`", *_shape(field), by_operator, field["description"]))
        parts.append("")
    return "\n".join(parts)


def operator() -> str:
    """Render the page of the operator's settings."""
    values = dict(_chart_values())
    rows = [_row(f"`{name}`", values[name], *_shape(field)) for name, field in _fields(Settings)]
    return _HEAD + _OPERATOR + "\n".join(rows) + "\n"


def _fields(settings: type[BaseSettings]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Variable and JSON schema of each setting, required or not."""
    schema = settings.model_json_schema()
    for name, field in schema["properties"].items():
        given = {"required": name in schema.get("required", [])}
        yield name if name.startswith(_PREFIX) else f"{_PREFIX}{name.upper()}", {**field, **given}


def _shape(field: dict[str, Any]) -> tuple[str, str, str]:
    """Type, default and bounds."""
    given = next((kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"), field)
    kind = "path" if given.get("format") == "path" else given["type"]
    default = "*needed*" if field["required"] else ""
    if field.get("default") is not None:
        default = f"`{field['default'] if kind == 'path' else json.dumps(field['default'])}`"
    bounds = [f"`{value}`" for value in given.get("enum", [given["const"]] if "const" in given else [])]
    bounds += [f"{sign} {given[key]}" for key, sign in _SIGNS if key in given]
    bounds += [f"`{given['pattern']}`"] if "pattern" in given else []
    return {"array": "JSON list", "object": "JSON object"}.get(kind, kind), default, "; ".join(bounds)


_SIGNS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))


def _chart_values() -> Iterator[tuple[str, str]]:
    """Variable and chart value, as the chart's template pairs them."""
    entries = re.split(r"\n\s*- \{?name: ", _TEMPLATE.read_text())
    for entry in entries:
        name = re.match(rf"{_PREFIX}\w+", entry)
        if name:
            yield name[0], _chart_value(entry)


def _chart_value(entry: str) -> str:
    if "pilotage.runtimeImage" in entry:
        return "`runtime.image`"
    if value := re.search(r"\.Values\.([\w.]+)", entry):
        return f"`{value[1]}`"
    fixed = re.search(r'value: "(\d+)"', entry)
    return f"always {fixed[1]}" if fixed else "from the pod"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    pages = {HERE / "runtime-settings.md": runtime(), HERE / "operator-settings.md": operator()}
    raise SystemExit(
        rendered.command(None, run="python docs/reference/settings.py", what="the settings", files=pages)
    )
