"""The real Helm, and what it makes of the chart."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "pilotage"
IMAGES = ("image.repository=registry.example/operator", "runtime.image.repository=registry.example/runtime")
MONITORING = ("monitoring.coreos.com/v1", "monitoring.coreos.com/v1/PodMonitor")


@dataclass
class Refused(Exception):  # noqa: N818 - it says what happened
    """What Helm said when it would not."""

    message: str


@dataclass(frozen=True)
class Helm:
    """A Helm binary."""

    binary: str

    def run(self, *arguments: str) -> str:
        answer = subprocess.run([self.binary, *arguments], capture_output=True, text=True, check=False)
        if answer.returncode:
            raise Refused(answer.stdout + answer.stderr)
        return answer.stdout

    def render(self, *values: str, apis: tuple[str, ...] = MONITORING) -> list[dict[str, Any]]:
        """Render the chart with the two images and these `--set-json` values."""
        known = [part for api in apis for part in ("--api-versions", api)]
        text = self.run(
            "template", "pilotage", str(CHART), "-n", "pilotage-system", *self.flags(*values), *known
        )
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]

    @staticmethod
    def flags(*values: str) -> list[str]:
        images = [part for image in IMAGES for part in ("--set", image)]
        return images + [part for value in values for part in ("--set-json", value)]


def of_kind(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def the(manifests: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """The one manifest of a kind, or of a kind and name."""
    (found,) = (m for m in of_kind(manifests, kind) if name in (None, m["metadata"]["name"]))
    return found
