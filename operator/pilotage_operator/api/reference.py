"""Renders the reference of a ModelDeployment's fields, from the same schema that the cluster gets.

Usage: `python -m pilotage_operator.api.reference` prints it; `--write` renews the checked-in pages, and `--check`
fails when one differs from the models.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pilotage_operator.api import crd, rendered, rules

FOLDER = rendered.ROOT / "docs/reference"

Schema = dict[str, Any]

_HEAD = """\
<!-- Rendered by `make docs` from operator/pilotage_operator/api/. -->
# Reference: ModelDeployment

`pilotage.dev/v1alpha1`, short name `mdep`; its [status](modeldeployment-status.md) has a page of its own.
`kubectl explain mdep.spec` says the same on a cluster. `[]` stands for each item of a list. A field marked *needed*
must be there if what it stands in is there. A default in this page is filled in by the API server; where a
description says "Absent:", the operator decides.
"""
_STATUS_HEAD = """\
<!-- Rendered by `make docs` from operator/pilotage_operator/api/. -->
# Reference: the status of a ModelDeployment

{description} Of each `reason` [one table](../runbooks/conditions.md) tells the meaning and what to do; the
[spec](modeldeployment.md) has a page of its own. Fields marked *always* are there if what they stand in is there.
"""
_TABLE = "| field | type | default | bounds | meaning |\n|---|---|---|---|---|"
_STATUS_TABLE = "| field | type | there | values | meaning |\n|---|---|---|---|---|"
_RULES = """\
## Rules that span fields

The API server refuses an object that breaks one of these, with this message. A rule is tried where its field is.

| field | message | rule in CEL |
|---|---|---|"""
_RANGES = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
    ("minProperties", "maxProperties", " keys"),
)


def pages() -> dict[Path, str]:
    """Render the pages of spec and status."""
    properties = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    spec, status = properties["spec"], properties["status"]
    parts = [_HEAD]
    for name, section in spec["properties"].items():
        path = f"spec.{name}"
        needed = " Needed." if name in spec["required"] else ""
        parts += [f"## {path}\n", f"{section['description']}{needed}\n", _TABLE]
        parts += [*_rows(section, path, "*needed*"), ""]
    parts += [_RULES, *_rule_rows()]
    told = [_STATUS_HEAD.format(description=status["description"]), _STATUS_TABLE]
    told += _rows(status, "status", "*always*")
    return {
        FOLDER / "modeldeployment.md": "\n".join(parts) + "\n",
        FOLDER / "modeldeployment-status.md": "\n".join(told) + "\n",
    }


def _rows(schema: Schema, path: str, required: str) -> Iterator[str]:
    """A row for each field below, those of lists' items included."""
    for name, field in schema.get("properties", {}).items():
        below = f"{path}.{name}"
        default = required if name in schema.get("required", []) else _default(field)
        yield _row(f"`{below}`", _type(field), default, _bounds(field), field["description"])
        yield from _rows(field, below, required)
        if "items" in field:
            yield from _rows(field["items"], f"{below}[]", required)


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}s"
    if "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}s".replace("quantitys", "quantities")
    return "time" if field.get("format") == "date-time" else field["type"]


def _default(field: Schema) -> str:
    # A section's default is what its fields' defaults give.
    if "default" not in field or field["type"] == "object":
        return ""
    return f"`{json.dumps(field['default'])}`"


def _bounds(field: Schema) -> str:
    """Say what may stand there, that of a list's items or a map's values included."""
    spanning = {rule.message for rule in rules.RULES}
    checks = [check["message"] for check in field.get("x-kubernetes-validations", [])]
    said = [f"one of {', '.join(f'`{value}`' for value in field['enum'])}"] if "enum" in field else []
    for least, most, unit in _RANGES:
        if most in field:
            below = "below " if field.get("exclusiveMaximum") else ""
            until = f"{below}{field[most]}{unit}"
            said.append(f"{field[least]} to {until}" if least in field else f"at most {until}")
    if field.get("x-kubernetes-list-type") == "set":
        said.append("no two alike")
    said += [f"no two with the same `{key}`" for key in field.get("x-kubernetes-list-map-keys", [])]
    said += [message for message in checks if message not in spanning]
    inner = field.get("items", field.get("additionalProperties", {}))
    return "; ".join([*said, *([f"each: {each}"] if (each := _bounds(inner) if inner else "") else [])])


def _rule_rows() -> Iterator[str]:
    for rule in rules.RULES:
        yield _row(f"`{rule.path or 'metadata.name'}`", rule.message, f"`{rule.cel}`")
    for change in rules.CHANGE_RULES:
        yield _row("on a change", change.message, f"`{change.cel}`")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Print, write or check the pages."""
    run = "python -m pilotage_operator.api.reference"
    return rendered.command(arguments, run=run, what="the reference of all fields", files=pages())


if __name__ == "__main__":
    raise SystemExit(main())
