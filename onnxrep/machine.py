"""What the machine has, and what processes of it left behind."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
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


def resident(process: int) -> int | None:
    """Return the bytes of memory that a process holds, or None where that cannot be seen or it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def share() -> float:
    """Return the bytes that a batch takes if it is told nothing."""
    return memory() / 2


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the name of the processor, as well as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


@functools.cache
def device_name() -> str:
    """Return the name of CUDA's first device, as its driver tells it; empty without a driver or a device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), 0):
        return ""
    return "" if driver.cuDeviceGetName(name, len(name), handle) else name.value.decode(errors="replace")


def left_by_dead(name: str) -> bool:
    """Whether a name ``HOST-PID-ANYTHING`` is that of a process of this host that is gone; hosts may have dashes."""
    parts = name.rsplit("-", 2)
    return len(parts) == 3 and parts[0] == socket.gethostname() and parts[1].isdigit() and not alive(int(parts[1]))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder for temporary files, removed afterwards; those of dead processes are removed first."""
    prefix = "onnxrep-"
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if left_by_dead(old.name.removeprefix(prefix)):
            shutil.rmtree(old, ignore_errors=True)
    start = f"{prefix}{socket.gethostname()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=start, ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()
