"""Threads come from the container's quota, in both versions of cgroups."""

import os
from pathlib import Path

import pytest

from pilotage_runtime import cpu


@pytest.mark.parametrize(
    ("content", "quota"), [("250000 100000", 2.5), ("50000 100000", 0.5), ("max 100000", None), ("odd", None)]
)
def test_version_2(tmp_path: Path, content: str, quota: float | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert cpu.quota(tmp_path) == quota


@pytest.mark.parametrize(("limit", "quota"), [("300000", 3.0), ("-1", None)])
def test_version_1(tmp_path: Path, limit: str, quota: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(limit)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpu.quota(tmp_path) == quota


def test_no_cgroups_is_no_limit(tmp_path: Path) -> None:
    assert cpu.quota(tmp_path) is None
    assert cpu.threads(1, tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"), [(4, 1, 4), (4, 2, 2), (4, 3, 1), (0.25, 1, 1), (1.9, 1, 1)]
)
def test_workers_share_the_quota_and_have_at_least_one_thread(
    tmp_path: Path, cpus: float, workers: int, threads: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{int(cpus * 100_000)} 100000")
    assert cpu.threads(workers, tmp_path) == threads
