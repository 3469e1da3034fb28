"""How the C library hands out memory to a process that is ours alone.

A model's weights are copied a few times on their way: parsed, folded, serialized, loaded by a runtime. By default much
of what is freed between goes back to the system, and each page that is taken again costs a fault.
"""

from __future__ import annotations

import os

_PARAMETERS = (
    (-3, 32 << 20),  # M_MMAP_THRESHOLD: bytes from which on memory goes back at once; the largest that is allowed
    (-1, 256 << 20),  # M_TRIM_THRESHOLD: free bytes at the end of the heap from which on they go back
    (-8, 1),  # M_ARENA_MAX: one heap for all threads, so that each can use what another has freed
)


def keep_freed() -> bool:
    """Let the process use memory again that it has freed; return whether that can be said.

    glibc alone has these parameters (mallopt(3)). What the environment says of them stays.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    said = [mallopt(parameter, value) for parameter, value in _PARAMETERS]
    return all(said)
