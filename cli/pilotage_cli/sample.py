"""A request that a model takes, and the curl line that sends it."""

import json
import shlex
import tempfile
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pilotage_cli.server_api import ServerApi

# A longer line is none that a person pastes.
_LONGEST_LINE = 4000


def request(server: ServerApi, metadata: dict[str, Any]) -> dict[str, Any]:
    """Take the example of the server's documentation, whole: its long tensors are cut short there."""
    example = server.example(metadata["name"])
    if example is not None and all(_whole(tensor) for tensor in example.get("inputs", [])):
        return example
    return {"inputs": [_zeros(tensor) for tensor in metadata["inputs"]]}


def curl(server: ServerApi, model: str, body: dict[str, Any]) -> str:
    """Write the line that asks for an inference as it can be pasted into a shell; a long body goes into a file."""
    text = json.dumps(body, ensure_ascii=False)
    data = shlex.quote(text)
    if len(text) > _LONGEST_LINE:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"pilotage-{Path(model).name}-", suffix=".json", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        data = shlex.quote(f"@{file.name}")
    url = shlex.quote(f"{server.address.url}/v2/models/{quote(model, safe='')}/infer")
    return f"curl -s {url} -H 'content-type: application/json' -d {data}"


def _whole(tensor: dict[str, Any]) -> bool:
    data: Any = tensor.get("data", [])
    nested = bool(data) and isinstance(data[0], list)
    return nested or len(data) == prod(tensor.get("shape", []))


def _zeros(tensor: dict[str, Any]) -> dict[str, Any]:
    shape = [1 if size == -1 else size for size in tensor["shape"]]
    element: Any = {"BOOL": False, "BYTES": ""}.get(tensor["datatype"], 0)
    data = [element] * prod(shape)
    return {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": data}
