"""What is being done, on stderr: only on a terminal, only for what takes longer than a second, and gone afterwards."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_QUIET_SECONDS = 1.0


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Yield what is told the stages of the work."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda stage: None
        return
    status = console.status("starting")
    timer = threading.Timer(_QUIET_SECONDS, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda stage: status.update(f"{stage} ...")
    finally:
        timer.cancel()
        timer.join()
        status.stop()
