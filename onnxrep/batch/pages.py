"""The pages of a batch, made of its journal: one over all models, and one for each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from onnxrep import files
from onnxrep.batch import journal
from onnxrep.errors import OutputError
from onnxrep.report import page, reading
from onnxrep.report.records import Report

NAME = "onnxrep-batch.html"
FOLDER = "onnxrep-reports"

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 60


def write(root: Path, models: Collection[str] | None = None) -> Path:
    """Write the pages of an output folder; return the one over all models.

    Args:
        root: the folder, with the journal of a batch in it.
        models: which to show; None for all that the journal knows.

    Raises:
        OutputError: a page cannot be written.

    """
    places: dict[str, int] = {}
    path = root / journal.NAME
    for place, record in journal.placed(path):
        places[record["model"]] = place
    rows = []
    for name in sorted(places if models is None else set(models) & places.keys()):
        record = journal.at(path, places[name])
        report = _report(record)
        link = ""
        if report is not None:
            link = f"{FOLDER}/{_address(name)}"
            _write(root / link, page.model(report, home=f"../{NAME}"))
        rows.append(page.Row(name, record["status"], record["reason"], float(record["seconds"]), link, report))
    target = root / NAME
    _write(target, page.zoo(rows))
    return target


def _report(record: dict[str, Any]) -> Report | None:
    """Return the report that a record holds, if it is one of this version."""
    try:
        return reading.report(record["report"]) if record.get("report") else None
    except (TypeError, ValueError, AttributeError, KeyError):
        return None


def _address(model: str) -> str:
    """Return a file name that any file system and any browser can hold, and that is the model's only."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_UNSAFE.sub('_', model.rpartition('/')[2].removesuffix('.onnx'))[:_LONGEST]}-{digest}.html"


def _write(path: Path, text: str) -> None:
    """Write a page.

    Raises:
        OutputError: it cannot be written.

    """
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made ({error.strerror})") from None
    files.write_bytes(path, text.encode("utf-8", "backslashreplace"))
