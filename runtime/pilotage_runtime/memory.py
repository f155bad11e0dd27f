"""How much memory this container may use, and how much this process does."""

import ctypes
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60  # cgroup v1 writes a number near 2^63 for none


def limit(root: Path = CGROUP_ROOT) -> int | None:
    """Read the memory limit in bytes from cgroup v2 or v1; None where there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            value = int((root / name).read_text())
        except (OSError, ValueError):  # v2 writes "max" for none
            continue
        return value if value < _NO_LIMIT else None
    return None


def total() -> int:
    """Read the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident() -> int:
    """Read how many bytes of this process are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Give freed memory back to the system: C libraries keep what an unloaded model took."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not glibc
        return
