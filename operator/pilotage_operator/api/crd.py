"""Renders the CustomResourceDefinition from the models' fields.

Usage: `python -m pilotage_operator.api.crd` prints it; `--write` renews the checked-in copies, and `--check`
fails when they differ from the models.

Not from `model_json_schema()`: what pydantic emits there (`$ref`, `const`, `anyOf` with null) is refused by
the API server. A construct that this module does not know is an error, never left out in silence.
"""

import inspect
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from annotated_types import Ge, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pilotage_operator.api import rendered, rules
from pilotage_operator.api.modeldeployment import ModelDeployment
from pilotage_operator.api.schema import DateTime, ListMap, ListSet, Matches, QuantityFormat, api_name, whole

Schema = dict[str, Any]

COPIES = (
    rendered.ROOT / "crds/pilotage.dev_modeldeployments.yaml",
    rendered.ROOT / "charts/pilotage/files/modeldeployments.yaml",
)
"""The chart has its own copy, since Helm reads no file outside a chart."""

_SCALARS: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}
_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}
_COLUMNS = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether the model serves."),
    ("Phase", "string", ".status.phase", "Where the ModelDeployment stands."),
    ("Stable", "string", ".status.stable.revision", "The revision that serves."),
    ("Canary", "string", ".status.canary.revision", "The revision that is rolling out."),
    ("Weight", "integer", ".status.canary.weight", "The share of traffic of the latter, in percent."),
    ("Replicas", "integer", ".status.replicas", "Pods of all revisions."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was made."),
)


def crd() -> dict[str, Any]:
    """Render the CustomResourceDefinition as a dictionary."""
    names = {
        "kind": "ModelDeployment",
        "listKind": "ModelDeploymentList",
        "plural": "modeldeployments",
        "singular": "modeldeployment",
        "shortNames": ["mdep"],
        "categories": ["ml"],
    }
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.scaling.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": text}
            for name, kind, path, text in _COLUMNS
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "modeldeployments.pilotage.dev"},
        "spec": {"group": "pilotage.dev", "names": names, "scope": "Namespaced", "versions": [version]},
    }


def text() -> str:
    """Render the CustomResourceDefinition as the file that is checked in."""
    head = (
        "# Rendered from operator/pilotage_operator/api/ by `python -m pilotage_operator.api.crd --write`.\n"
    )
    return head + yaml.dump(crd(), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """YAML without anchors: the API server's own tools do not write them either."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True


def _root() -> Schema:
    root = object_schema(ModelDeployment)
    # The API server owns these three, and of metadata allows no schema but the type.
    for name in ("apiVersion", "kind"):
        del root["properties"][name]["enum"]
    root["properties"]["metadata"] = {"type": "object"}
    root["required"] = ["spec"]
    del root["properties"]["status"]["default"]
    for change in rules.CHANGE_RULES:
        root.setdefault("x-kubernetes-validations", []).append(
            {"rule": change.cel, "message": change.message}
        )
    for path in {rule.path for rule in rules.RULES}:
        _require(root, path)
    return root


def object_schema(model: type[BaseModel], path: str = "") -> Schema:
    """Render one section; `path` is where it stands, as in the table of rules."""
    properties: Schema = {}
    required: list[str] = []
    for attribute, field in model.model_fields.items():
        name = api_name(attribute)
        below = f"{path}.{name}".lstrip(".")
        # The metadata of a ModelDeployment is read, not declared.
        known = path or name != "metadata"
        schema = _typed(field.annotation, field.metadata, below) if known else {"type": "object"}
        properties[name] = {"description": _described(model, attribute, field), **schema, **_default(field)}
        if field.is_required():
            required.append(name)
    rendered: Schema = {"description": _one_line(model.__doc__ or ""), "type": "object"}
    if required:
        rendered["required"] = required
    rendered["properties"] = properties
    return rendered | _validations(path)


def _described(model: type[BaseModel], attribute: str, field: FieldInfo) -> str:
    if not field.description:
        raise TypeError(f"{model.__name__}.{attribute} has no description: write one below the field")
    return _one_line(field.description)


def _one_line(docstring: str) -> str:
    return " ".join(inspect.cleandoc(docstring).split())


def _default(field: FieldInfo) -> Schema:
    """Give what the API server fills in where the field is absent."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None or value == []:
        return {}
    if isinstance(value, BaseModel):
        if value != type(value)():
            raise TypeError(f"the default of {type(value).__name__} must be the one that its fields give")
        # In full, though the fields below have the same defaults: the API server checks a section's default
        # against the rules before it fills the section's fields.
        return {"default": _plain(value)}
    if isinstance(value, list):
        return {"default": [_plain(item) for item in cast("list[Any]", value)]}
    return {"default": value}


def _plain(value: Any) -> Any:
    return value.model_dump(by_alias=True, exclude_none=True) if isinstance(value, BaseModel) else value


def _typed(annotation: Any, metadata: Iterable[Any], path: str) -> Schema:
    """Render a type with what is said beside it; an unknown construct is an error."""
    said = list(metadata)
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            said += more
        elif get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
            annotation = Union[tuple(kind for kind in get_args(annotation) if kind is not NoneType)]  # noqa: UP007
        else:
            break
    schema = _bare(annotation, path)
    checks: list[Schema] = schema.pop("x-kubernetes-validations", [])
    for what in said:
        _say(schema, checks, what, path)
    if schema.get("type") == "array":
        schema.setdefault("x-kubernetes-list-type", "atomic")
    if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
        checks += _validations(path).get("x-kubernetes-validations", [])
    return schema | ({"x-kubernetes-validations": checks} if checks else {})


def _bare(annotation: Any, path: str) -> Schema:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        section = object_schema(annotation, path)
        del section["description"]  # the field's own says more
        return section
    if annotation in _SCALARS:
        return dict(_SCALARS[annotation])
    if origin is Literal:
        kinds = {type(value) for value in arguments}
        if len(kinds) == 1 and kinds <= {str, int}:
            return {**_SCALARS[kinds.pop()], "enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _typed(arguments[0], (), f"{path}[]")}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _typed(arguments[1], (), f"{path}{{}}")}
    if origin in (Union, UnionType) and set(arguments) == {int, str}:
        return {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    raise TypeError(f"{path}: the CRD has no schema for {annotation!r}; teach crd.py, or use another type")


def _say(schema: Schema, checks: list[Schema], what: Any, path: str) -> None:
    """Add one piece of metadata to a schema."""
    kind = schema.get("type", "")
    match what:
        case Ge(ge=bound) if kind in ("integer", "number"):
            schema["minimum"] = bound
        case Le(le=bound) if kind in ("integer", "number"):
            schema["maximum"] = bound
        case Lt(lt=bound) if kind in ("integer", "number"):
            schema |= {"maximum": bound, "exclusiveMaximum": True}
        case MinLen(min_length=length) if kind in _LENGTHS:
            schema[f"min{_LENGTHS[kind]}"] = length
        case MaxLen(max_length=length) if kind in _LENGTHS:
            schema[f"max{_LENGTHS[kind]}"] = length
        case QuantityFormat():
            schema["maxLength"] = what.longest  # bounds the cost of the expression
            checks.append({"rule": what.cel, "message": what.message})
        case Matches():
            checks.append({"rule": what.cel, "message": what.message})
        case ListSet():
            schema["x-kubernetes-list-type"] = "set"
        case ListMap(key=key):
            schema["x-kubernetes-list-type"] = "map"
            schema["x-kubernetes-list-map-keys"] = [key]
        case DateTime():
            schema["format"] = "date-time"
        case BeforeValidator(func=func) if func is whole:
            pass  # what it allows, the API server allows by itself
        case _:
            raise TypeError(f"{path}: the CRD cannot say {what!r}; teach crd.py, or say it otherwise")


def _validations(path: str) -> Schema:
    checks = [{"rule": rule.cel, "message": rule.message} for rule in rules.RULES if rule.path == path]
    return {"x-kubernetes-validations": checks} if checks else {}


def _require(root: Schema, path: str) -> None:
    """Fail where the models have no such field: a rule with a misspelt path would be lost."""
    schema = root
    for part in path.split(".") if path else []:
        name, each = part.removesuffix("[]"), part.endswith("[]")
        if name not in schema.get("properties", {}):
            raise LookupError(f"rules.py has a rule for {path}, but the models have no such field")
        schema = schema["properties"][name]
        schema = schema["items"] if each else schema


def main(arguments: list[str] | None = None) -> int:
    """Print, write or check the CRD."""
    run = "python -m pilotage_operator.api.crd"
    return rendered.command(arguments, run=run, what="the CRD", files=dict.fromkeys(COPIES, text()))


if __name__ == "__main__":
    raise SystemExit(main())
