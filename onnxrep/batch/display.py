"""A batch as people watch it and read its result."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from onnxrep.batch.records import GOOD, Outcome, Summary
from onnxrep.escape import printable

_STYLE = {"folded": "green", "unchanged": "cyan"}


class Watch:
    """Progress on a console: a bar for people, a line per model where nobody looks."""

    def __init__(self, console: Console) -> None:
        """``console`` is that of stderr: results go to stdout."""
        self._console = console
        self._bar: Progress | None = None
        self._folds = self._failures = 0

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            numbers = TextColumn("{task.fields[folds]} folds, {task.fields[failures]} failed")
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                numbers,
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("models", total=None, folds=0, failures=0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, outcome: Outcome, done: int, total: int) -> None:
        """Show that a model is done."""
        self._folds += outcome.folds
        self._failures += outcome.status not in GOOD
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, folds=self._folds, failures=self._failures)
        if self._bar is None or outcome.status not in GOOD:
            line = f"[{done}/{total}] {_state(outcome)} {printable(outcome.model)} {_details(outcome)}"
            self._console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _state(outcome: Outcome) -> str:
    """Return a status as it is shown."""
    return f"{outcome.status} (as before)" if outcome.resumed else outcome.status


def _details(outcome: Outcome) -> str:
    """Return what is worth a word about a model."""
    if outcome.status not in GOOD:
        return printable(outcome.reason)
    folds = f"{outcome.folds} fold{'s' * (outcome.folds != 1)}, " if outcome.folds else ""
    return f"{folds}{outcome.seconds:.2f} s"


def show(summary: Summary, console: Console, *, dry: bool = False) -> None:
    """Print how many models ended how, and every failure with its reason."""
    if summary.failures:
        failures = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("failed", "model", "reason"):
            failures.add_column(title, overflow="fold")
        for outcome in summary.failures:
            cells = (outcome.status, printable(outcome.model), printable(outcome.reason))
            failures.add_row(*map(escape, cells))
        console.print(failures)
        console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("status")
    table.add_column("models", justify="right")
    for status, number in summary.counts.items():
        table.add_row(status, str(number), style=_STYLE.get(status, "red"))
    table.add_row("all", str(len(summary.outcomes)), style="bold")
    console.print(table)
    folds = sum(outcome.folds for outcome in summary.outcomes)
    resumed = sum(outcome.resumed for outcome in summary.outcomes)
    console.print(f"{folds} regions {'would fold' if dry else 'folded'}", highlight=False)
    if resumed:
        console.print(f"{resumed} models were done in a former run", highlight=False)
