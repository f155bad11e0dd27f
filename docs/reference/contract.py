"""Renders the page of contract.json from the models that read it; `--write` renews it, `--check` compares."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pilotage_operator.api import rendered
from pilotage_runtime.contract_file import ContractFile

HERE = Path(__file__).parent
EXAMPLE = {
    "features": [
        {"name": "age", "minimum": 0, "maximum": 120, "unit": "years"},
        {"name": "accounts", "categories": [0, 1, 2, 3]},
    ],
    "outputs": [{"name": "probabilities", "parameters": {"labels": ["honest", "fraud"]}}],
    "sample": {
        "request": {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [41, 2]}]},
        "response": {"outputs": [{"name": "probabilities", "data": [0.98, 0.02]}]},
    },
}
_HEAD = f"""\
<!-- Rendered by `make docs` from the models that read contract.json. -->
# Reference: contract.json

A file beside the model that says what the model itself does not. Every part is optional where the model speaks for
itself (ONNX, exported PyTorch, SavedModels, XGBoost, LightGBM, CatBoost, scikit-learn); TorchScript and Python classes
need inputs and outputs. It may narrow what the model says, and not contradict it: that stops the start.

```json
{json.dumps(EXAMPLE, indent=1)}
```

A value outside a feature's range is answered with 400 and a sentence such as `feature 'age': 140 came, 0 to 120 years is
expected`; the model does not see it. With one input the features are its columns, in order; with several each feature is
the input of its name. NaN is outside every range, unless the input has `allow_non_finite`.

| member | type | meaning |
|---|---|---|
"""


def page() -> str:
    """Render the page."""
    schema = ContractFile.model_json_schema()
    return _HEAD + "\n".join(_rows(schema, schema, "")) + "\n"


def _rows(schema: dict[str, Any], part: dict[str, Any], path: str) -> Iterator[str]:
    for name, field in part["properties"].items():
        shown = next((kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"), field)
        inner = _resolved(schema, shown.get("items", shown))
        is_list = shown.get("type") == "array"
        below = f"{path}{name}{'[]' if is_list and 'properties' in inner else ''}"
        yield f"| `{below}` | {_type(shown, inner)} | {field.get('description', '')} |"
        if "properties" in inner:
            yield from _rows(schema, inner, f"{below}.")


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else part


def _type(shown: dict[str, Any], inner: dict[str, Any]) -> str:
    if "enum" in shown:
        return ", ".join(f"`{value}`" for value in shown["enum"])
    if shown.get("type") != "array":
        return str(inner.get("type", "object"))
    kinds = [kind["type"] for kind in inner.get("anyOf", ())] or [inner.get("type", "object")]
    return f"list of {' or '.join(kinds)}"


if __name__ == "__main__":
    raise SystemExit(
        rendered.command(
            None,
            run="python docs/reference/contract.py",
            what="contract.json",
            files={HERE / "contract.md": page()},
        )
    )
