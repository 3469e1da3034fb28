"""One run at a time per output folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from onnxrep.errors import OutputError
from onnxrep.escape import printable

NAME = ".onnxrep-batch.lock"
_FAR = 1 << 30
"""Where Windows locks a byte: those at the start must stay readable."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder.

    The operating system gives the lock back when its owner dies, however it dies, so there are no stale locks; the file
    stays, and says for people who has the lock or had it last.

    Raises:
        OutputError: another run holds it, or the folder cannot be written.

    """
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise OutputError(f"{printable(str(path))}: cannot be opened ({error.strerror})") from None
    try:
        if not _taken(handle):
            owner = printable(os.read(handle, 200).decode(errors="replace").strip())
            where = printable(str(folder))
            raise OutputError(f"{where}: another batch works on this folder ({owner}); wait for it or choose another")
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            _give_back(handle)
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    """Take the lock; say whether it was free."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _give_back(handle: int) -> None:
    """Give the lock back, also where a process that was forked meanwhile has the file open still."""
    if os.name != "nt":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)
