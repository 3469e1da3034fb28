"""The GPU that a model is checked on: its name, and its turn."""

from __future__ import annotations

import ctypes
import functools
import sys


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
