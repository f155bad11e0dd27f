"""The images that pods run, put into the node's containerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotage_dev import images
from pilotage_dev.part import Part, Tier
from pilotage_dev.parts import containerd

if TYPE_CHECKING:
    from pilotage_dev.stack import Stack


def _prepare(stack: Stack) -> None:
    for image in images.IMAGES:
        images.load_built(stack, image)


def _ready(stack: Stack) -> bool:
    there = containerd.ctr(stack, "images", "list", "--quiet").split()
    return all(image.reference in there for image in images.IMAGES)


IMAGES = Part(
    name="images",
    tier=Tier.ALL,
    after=("containerd",),
    prepare=_prepare,
    ready=_ready,
    within=180,
)
