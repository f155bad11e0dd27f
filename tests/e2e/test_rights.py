"""The operator's rights against what it did in all the tests before: none missing, none to spare."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from demo.site import OPERATOR_NAMESPACE, Site
from pilotage_dev.cluster import Choice, choose_cluster
from pilotage_dev.whole import STACK

Right = tuple[str, str, str]
"""API group, resource, verb."""
ACCOUNT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:pilotage"


@pytest.fixture
def audit_log() -> Path:
    if choose_cluster().choice is not Choice.LOCAL:
        pytest.skip("kind's API server writes no audit log; the local stack's does")
    return STACK.audit_log


def test_the_role_holds_exactly_what_the_operator_did(site: Site, audit_log: Path) -> None:
    entries = [entry for entry in _of_operator(audit_log) if entry["responseStatus"]["code"] != 403]
    done = set(map(_right, entries))
    # An apply that made its object is a patch in the log, and asks for the right to create as well.
    done |= {
        (*_right(e)[:2], "create")
        for e in entries
        if (e["verb"], e["responseStatus"]["code"]) == ("patch", 201)
    }
    granted = set(_granted(site))
    assert done - granted == set(), "done without a right of its own"
    assert granted - done == set(), "granted and never used"


def test_nothing_was_refused_to_the_operator(audit_log: Path, site: Site) -> None:
    refused = {_right(e) for e in _of_operator(audit_log) if e["responseStatus"]["code"] == 403}
    assert refused == set()


def _of_operator(audit_log: Path) -> Iterable[dict[str, Any]]:
    for path in sorted(audit_log.parent.glob("audit*.log")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            # Nobody's: what a pod deleted by force still sends with the token that died with it.
            mine = entry["user"].get("username") == ACCOUNT and "objectRef" in entry
            # A watch is told when it begins and when it ends; the rest once.
            if mine and entry["stage"] in {"ResponseStarted", "ResponseComplete"}:
                yield entry


def _right(entry: dict[str, Any]) -> Right:
    target = entry["objectRef"]
    resource = target["resource"] + (f"/{target['subresource']}" if "subresource" in target else "")
    return target.get("apiGroup", ""), resource, entry["verb"]


def _granted(site: Site) -> Iterable[Right]:
    """What roles bound to the operator's account say."""
    for kind, role_kind in (("clusterrolebindings", "clusterroles"), ("rolebindings", "roles")):
        for binding in json.loads(site.kubectl("get", kind, "-A", "-o", "json"))["items"]:
            subjects = {(s.get("namespace"), s["name"]) for s in binding.get("subjects", [])}
            if (OPERATOR_NAMESPACE, "pilotage") not in subjects:
                continue
            where = [] if role_kind == "clusterroles" else ["-n", binding["metadata"]["namespace"]]
            role = json.loads(
                site.kubectl("get", role_kind, binding["roleRef"]["name"], *where, "-o", "json")
            )
            for rule in role["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for verb in rule["verbs"]:
                            yield group, resource, verb
