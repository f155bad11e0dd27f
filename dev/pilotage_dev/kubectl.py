"""Objects that the stack puts into its own cluster, by server-side apply."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pilotage_dev import api
from pilotage_dev.errors import StackError

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack

FOLDER = Path(__file__).parent / "manifests"
SERVED_WITHIN = 30.0


def apply(stack: Stack, name: str) -> None:
    """Apply one of the files beside this module."""
    apply_text(stack, (FOLDER / name).read_text())


def apply_text(stack: Stack, text: str) -> None:
    """Apply objects written as YAML."""
    _kubectl(stack, "-f", "-", text=text)


def apply_path(stack: Stack, path: Path) -> None:
    """Apply a file or all files of a folder."""
    _kubectl(stack, "-f", str(path))


def apply_definitions(stack: Stack, path: Path) -> None:
    """Apply CRDs and wait until the API server serves all their kinds: who starts before overlooks them."""
    apply_path(stack, path)
    deadline = time.monotonic() + SERVED_WITHIN
    while unserved := _unserved(stack):
        if time.monotonic() > deadline:
            raise StackError(
                f"the API server does not serve {', '.join(unserved)} although their CRDs are there"
            )
        time.sleep(0.1)


def _unserved(stack: Stack) -> list[str]:
    definitions = api.get(stack.kubeconfig, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions") or {}
    wanted = {
        (definition["spec"]["group"], version["name"], definition["spec"]["names"]["plural"])
        for definition in definitions.get("items", [])
        for version in definition["spec"]["versions"]
        if version["served"]
    }
    served: set[tuple[str, str, str]] = set()
    for group, version in {(group, version) for group, version, _ in wanted}:
        listed = api.get(stack.kubeconfig, f"/apis/{group}/{version}") or {}
        served |= {(group, version, resource["name"]) for resource in listed.get("resources", [])}
    return sorted(f"{plural}.{version}.{group}" for group, version, plural in wanted - served)


def _kubectl(stack: Stack, *arguments: str, text: str | None = None) -> None:
    done = subprocess.run(
        [
            stack.binary("kubectl"),
            f"--kubeconfig={stack.kubeconfig}",
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=pilotage-dev",
            # Its own discovery cache would tell of the cluster before this one, at the same address.
            f"--cache-dir={stack.folder_of('kubectl')}",
            *arguments,
        ],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"kubectl apply {' '.join(arguments)} failed:\n{done.stderr.strip()}")
