"""What became of each model: one line of JSON per model and run, appended whole, never changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from onnxrep.errors import OutputError

SCHEMA = 1
"""Version of a record. It grows when a field changes its meaning or goes; new fields alone do not change it."""

NAME = "onnxrep-batch.jsonl"

Record = dict[str, Any]


class Journal:
    """The journal of an output folder, open for appending.

    Every record is a single write, followed by fsync: a run that is killed leaves at most one torn line at the end,
    which readers ignore and the next run closes off. What is written is ASCII, so no name can disturb a terminal.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal at ``path``; it is created if it is missing.

        Raises:
            OutputError: it cannot be opened.

        """
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._handle = os.open(path, flags, 0o666)
            size = os.fstat(self._handle).st_size
            os.lseek(self._handle, max(size - 1, 0), os.SEEK_SET)
            if size and os.read(self._handle, 1) != b"\n":
                os.write(self._handle, b"\n")  # the last run died in the middle of a line
        except OSError as error:
            raise OutputError(f"{path}: cannot be opened ({error.strerror})") from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record and bring it to the disk.

        Raises:
            OutputError: the disk is full, or the journal is gone.

        """
        data = line(record)
        try:
            if os.write(self._handle, data) != len(data):
                raise OutputError(f"{self.path}: a record was not written whole; is the disk full?")
            os.fsync(self._handle)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self.path}: not written ({error.strerror})") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def line(record: Mapping[str, Any]) -> bytes:
    """Return a record as it is written."""
    return json.dumps({"schema": SCHEMA, **record}, allow_nan=False).encode("ascii") + b"\n"


def parsed(data: bytes) -> Record | None:
    """Return the record that a line holds, or None if it is torn or of another schema."""
    try:
        record: Any = json.loads(data)
    except ValueError:  # torn: a run was killed while it wrote
        return None
    known = isinstance(record, dict) and record.get("schema") == SCHEMA and isinstance(record.get("model"), str)
    return record if known else None


def placed(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield the records of a journal in order, each with the offset of its line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        place = 0
        for data in file:
            record = parsed(data)
            if record is not None:
                yield place, record
            place += len(data)


def at(path: Path, place: int) -> Record:
    """Return the record whose line starts at an offset that :func:`placed` found."""
    with path.open("rb") as file:
        file.seek(place)
        record = parsed(file.readline())
    assert record is not None
    return record


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a journal in order; torn lines and records of another schema are left out."""
    yield from (record for _, record in placed(path))


def newest(path: Path) -> dict[str, Record]:
    """Return the newest record of each model, without the details of its folds."""
    return {record["model"]: {**record, "report": None} for record in read(path)}
