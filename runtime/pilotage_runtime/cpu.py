"""How many CPUs this container may use: its cgroup quota, which onnxruntime's own sizing does not see."""

import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def quota(root: Path = CGROUP_ROOT) -> float | None:
    """Read the CPU quota in CPUs from cgroup v2 or v1; None where there is no limit."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    for folder in ("cpu", "cpu,cpuacct", "cpuacct,cpu"):
        try:
            limit_us = int((root / folder / "cpu.cfs_quota_us").read_text())
            period_us = int((root / folder / "cpu.cfs_period_us").read_text())
        except (OSError, ValueError):
            continue
        return None if limit_us <= 0 else limit_us / period_us
    return None


def threads(workers: int, root: Path = CGROUP_ROOT) -> int:
    """Give each worker its whole share of the quota, at least one thread."""
    available = quota(root) or len(os.sched_getaffinity(0))
    return max(1, int(available / workers))
