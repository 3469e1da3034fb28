"""How many threads a matrix product of numpy takes: one, as several products run side by side.

The products here are small. The library's own threads wait for work by spinning, so that on a busy machine, or one of
many cores, they take several times as long as a single one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by the libraries when numpy is loaded."""


def set_default() -> None:
    """Have one thread from the start, unless the environment says how many; to be called before numpy is loaded."""
    for name in VARIABLES:
        os.environ.setdefault(name, "1")


_limited = threading.Lock()
"""Held by the thread that has set a limit: it alone can lift it."""


@contextlib.contextmanager
def single() -> Iterator[None]:
    """Let products of the process take one thread inside, unless the environment says how many.

    Where several threads are inside, this ends with the first of them.
    """
    if any(name in os.environ for name in VARIABLES) or not _limited.acquire(blocking=False):
        yield
        return
    try:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _limited.release()
