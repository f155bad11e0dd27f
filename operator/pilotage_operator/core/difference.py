"""Does a live object still say what was applied? At rest the answer must be yes, or the operator writes for ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pilotage_operator.core import names, quantity


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """Names what was rendered: a field that is no longer rendered must be taken back as well."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def stamped(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own fingerprint as an annotation."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_APPLIED: fingerprint(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


_SELECTORS = frozenset({"selector", "nodeSelector"})
"""Server-side apply replaces these as a whole, so here another's addition is gone after the next write."""


def differs(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether a wanted (stamped) manifest says anything that the live object does not.

    What somebody adds beside our fields stays theirs, save where it would bend traffic: in a selector, and in
    the rules of a VirtualService, to which the API server adds no defaults.
    """
    return not _contains(live, wanted, whole_items=wanted.get("kind") == "VirtualService")


def _contains(live: Any, wanted: Any, *, whole_items: bool) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            _contains(live.get(key, _ABSENT.get(type(item))), item, whole_items=whole_items)
            and (key not in _SELECTORS or _contains(item, live.get(key) or {}, whole_items=False))
            for key, item in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(
                _contains(mine, theirs, whole_items=whole_items)
                and (not whole_items or _contains(theirs, mine, whole_items=True))
                for mine, theirs in zip(live, wanted, strict=True)
            )
        )
    return live == wanted or quantity.same(live, wanted)


_ABSENT: dict[type, Any] = {dict: {}, list: [], bool: False, str: "", int: 0}
"""What the API server leaves out when it is empty."""
