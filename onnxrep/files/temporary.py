"""One file that is written whole or not at all, beside its target; what dead runs left goes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from onnxrep import machine
from onnxrep.errors import OutputError, UsageError

PREFIX = ".onnxrep-"
"""How the names of temporary files begin."""


def check_target(target: Path, follow_symlinks: bool = False) -> None:
    """Check, before any work is done, that a file could be written at ``target``.

    Raises:
        UsageError: its folder is missing, or it is a folder, a device or a link.
        OutputError: its folder is not writable.

    """
    try:
        is_folder = target.is_dir()
        exists = target.exists()
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror}") from None
    if is_folder:
        raise UsageError(f"{target}: is a folder; name the output file")
    if exists and not target.is_file():
        raise UsageError(f"{target}: is no regular file")
    if target.is_symlink() and not follow_symlinks:
        raise UsageError(f"{target}: is a symbolic link; --follow-symlinks writes through it")
    folder = target.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{target}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{target}: the folder {folder} is not writable")


def write_bytes(target: Path, data: bytes) -> None:
    """Write a small file (a report) with the same protocol as a model.

    Raises:
        OutputError: it could not be written; what was there is untouched.

    """
    target = target.resolve()
    with not_written(target), temporary(target.parent) as (file, name):
        file.write(data)
        settle(file)
        os.replace(name, target)
        settle_folder(target.parent)


@contextlib.contextmanager
def not_written(target: Path) -> Iterator[None]:
    """Turn what the system says against writing into an OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: not written ({error.strerror or error}); nothing there was changed") from None


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Yield a new file in ``folder`` and its name; it is gone afterwards unless it was moved away."""
    for attempt in range(1000):
        name = str(folder / f"{PREFIX}{socket.gethostname()}-{os.getpid()}-{attempt}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(name, flags, 0o666)
            break
        except FileExistsError:
            continue
    else:
        raise OutputError(f"{folder}: cannot make a temporary file")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def settle(file: IO[bytes]) -> None:
    """Bring a file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def settle_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the platform allows it."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove temporary files that dead runs of this host left in ``folder``."""
    for path in folder.glob(f"{PREFIX}*"):
        if machine.left_by_dead(path.name.removeprefix(PREFIX)):
            with contextlib.suppress(OSError):
                path.unlink()
