"""A batch in processes of its own, and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from onnxrep.batch import journal, lock


def files(folder: Path) -> dict[str, str]:
    """Relative path -> hash of all files but the journal and the lock."""
    ours = (journal.NAME, lock.NAME)
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name not in ours]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


class Started:
    """``onnxrep batch``, with a mark in the environment of all processes that it starts; killed at the end."""

    def __init__(self, zoo: Path, out: Path, *options: str) -> None:
        self._mark = f"ONNXREP_TEST={out}".encode()
        command = [sys.executable, "-m", "onnxrep", "batch", str(zoo), "-o", str(out), *options]
        environment = os.environ | {"ONNXREP_TEST": str(out)}
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, none is
        try:
            self.process = subprocess.Popen(
                command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        finally:
            signal.signal(signal.SIGINT, heard)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds while the batch runs."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def alive(self) -> list[int]:
        """Processes of this batch."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
            except OSError:  # it ended meanwhile
                continue
        return found

    def gone(self) -> bool:
        """Whether all its processes end within some seconds."""
        end = time.monotonic() + 20
        while self.alive() and time.monotonic() < end:
            time.sleep(0.05)
        return not self.alive()
