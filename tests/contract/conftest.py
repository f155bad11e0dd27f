"""The real tools that judge what the operator renders; where one cannot be had, one line says why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pilotage_dev import paths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' own judge of rule files, as the local stack built it."""
    binary = paths.cache() / "bin" / "promtool"
    if not binary.exists():
        reason = f"no promtool at {binary}: `./dev/dev build` builds it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return binary
