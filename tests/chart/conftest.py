"""The real Helm."""

from __future__ import annotations

import pytest

from tests.chart.helm import Helm
from tests.cluster.parts import helm_binary


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Helm, built from its pinned source where it is not there yet."""
    return Helm(helm_binary())
