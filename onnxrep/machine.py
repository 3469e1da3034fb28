"""What the machine has."""

from __future__ import annotations

import os
from pathlib import Path

_UNKNOWN = 8 << 30


def memory() -> float:
    """Return the bytes of main memory, or of the control group if that is less (8 GiB where neither is known)."""
    limits = [float(_UNKNOWN)]
    try:
        limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (AttributeError, OSError, ValueError):
        pass
    return min(limits)


def alive(process: int) -> bool:
    """Whether a process of this host still runs (or cannot be asked)."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def share() -> float:
    """Return the bytes that a batch takes if it is told nothing."""
    return memory() / 2


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
