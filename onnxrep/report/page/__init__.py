"""Pages for a browser: one file each, without network, made of records. Needs the extra ``onnxrep[html]``."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from onnxrep.errors import UsageError
from onnxrep.escape import printable
from onnxrep.report.records import Report, Verification


@dataclass(frozen=True)
class Row:
    """One model of a batch.

    Attributes:
        model, status, reason: see :class:`onnxrep.batch.records.Outcome`.
        seconds: what it took.
        link: relative address of its own page, or empty.
        report: everything about it, if its record holds it.

    """

    model: str
    status: str
    reason: str
    seconds: float
    link: str = ""
    report: Report | None = None


def check() -> None:
    """Check that pages can be made.

    Raises:
        UsageError: a package is missing.

    """
    if any(importlib.util.find_spec(name) is None for name in ("jinja2", "matplotlib")):
        raise UsageError("pages need the extra: pip install 'onnxrep[html]'")


def model(report: Report, *, planned: bool = False, home: str = "") -> str:
    """Return the page of one model.

    Args:
        report: of its run.
        planned: it was only inspected.
        home: relative address of the page of the batch, or empty.

    """
    from onnxrep.report.page import plots, view

    return _page(
        "model.html",
        report=report,
        summary=view.summary(report, planned=planned),
        planned=planned,
        home=home,
        counts=view.counts(report),
        groups=view.groups(report),
        left=view.left(report),
        errors=plots.errors(report.verification.outputs) if report.verification else "",
        latency=plots.latency(report.latency) if report.latency else "",
    )


def verification(found: Verification, before: str, after: str, versions: Mapping[str, str]) -> str:
    """Return the page of a comparison of two models, whose files are ``before`` and ``after``."""
    from onnxrep.report.page import plots

    errors = plots.errors(found.outputs)
    return _page("verify.html", found=found, before=before, after=after, errors=errors, versions=versions)


def zoo(rows: Sequence[Row]) -> str:
    """Return the page of a batch."""
    script = files(__package__).joinpath("templates/zoo.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    statuses = dict(Counter(row.status for row in rows).most_common())
    return _page("zoo.html", rows=rows, statuses=statuses, script=script, digest=digest)


def _page(name: str, **values: Any) -> str:
    """Return a page by its template; what no file could hold is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxrep.report.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_Shown(),
    )
    environment.filters |= {"size": _size, "count": _count, "figure": _figure, "short": _short}
    text: str = environment.get_template(name).render(**values)
    return text


class _Shown:
    """What a page does to every value that it shows: pictures get their number, and control characters are escaped."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self, value: Any) -> Any:
        from markupsafe import Markup

        from onnxrep.report.page.canvas import PREFIX

        if isinstance(value, Markup):
            return value.replace(PREFIX, f"picture-{next(self._numbers)}") if value.startswith("<svg") else value
        return printable(value) if isinstance(value, str) else value


def _size(count: float) -> str:
    """Return a size in the unit that fits."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _count(number: float | None) -> str:
    """Return a large number in a few digits."""
    if number is None:
        return "unknown"
    for unit, word in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 10 * unit or (unit > 1e3 and number >= unit):
            return f"{number / unit:.3g}{word}"
    return f"{number:.0f}"


def _figure(value: float) -> str:
    """Return a figure in three digits; those that JSON cannot hold are named."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def _short(path: str) -> str:
    """Return the last part of a path."""
    return path.replace("\\", "/").rpartition("/")[2] or path
