"""The memory that models are let into comes from the container's limit, in both versions of cgroups."""

from pathlib import Path

import pytest

from pilotage_runtime import memory


@pytest.mark.parametrize(("content", "limit"), [("536870912\n", 2**29), ("max\n", None), ("odd", None)])
def test_version_2(tmp_path: Path, content: str, limit: int | None) -> None:
    (tmp_path / "memory.max").write_text(content)
    assert memory.limit(tmp_path) == limit


@pytest.mark.parametrize(("content", "limit"), [("536870912\n", 2**29), (f"{2**63 - 4096}\n", None)])
def test_version_1(tmp_path: Path, content: str, limit: int | None) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(content)
    assert memory.limit(tmp_path) == limit


def test_no_cgroups_is_no_limit(tmp_path: Path) -> None:
    assert memory.limit(tmp_path) is None
    assert 0 < memory.resident() < memory.total()
