"""Does a live object still say what was applied? At rest the answer must be yes, or the operator writes for ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from pilotage_operator.core import names

_SUFFIXES = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** (n + 1) for n, unit in enumerate("kMGT")},
    **{f"{unit}i": Decimal(1024) ** (n + 1) for n, unit in enumerate("KMGT")},
}


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """Names what was rendered: a field that is no longer rendered must be taken back as well."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def stamped(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own fingerprint as an annotation."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_APPLIED: fingerprint(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def differs(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether a wanted (stamped) manifest says anything that the live object does not."""
    return not _contains(live, wanted)


def _contains(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            _contains(live.get(key, _ABSENT.get(type(item))), item) for key, item in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(_contains(mine, theirs) for mine, theirs in zip(live, wanted, strict=True))
        )
    if live == wanted:
        return True
    return _quantity(live) is not None and _quantity(live) == _quantity(wanted)


_ABSENT: dict[type, Any] = {dict: {}, list: [], bool: False, str: ""}
"""What the API server leaves out when it is empty."""


def _quantity(value: Any) -> Decimal | None:
    """A Kubernetes quantity as a number, since the API server rewrites 0.5 as 500m; None for other texts."""
    text = str(value)
    number = text.rstrip("KMGTkmi")
    factor = _SUFFIXES.get(text[len(number) :])
    if factor is None or not number or not number[0].isdigit():
        return None
    try:
        return Decimal(number) * factor
    except InvalidOperation:
        return None
