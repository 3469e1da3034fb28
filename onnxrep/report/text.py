"""A report as a person reads it in a terminal."""

from __future__ import annotations

from collections import Counter

from rich import markup
from rich.console import Console
from rich.table import Table

from onnxrep.escape import printable
from onnxrep.report import latency
from onnxrep.report.records import Emitted, Report, Verification

_COUNTED = ("Conv", "ConvTranspose", "BatchNormalization", "Add", "Mul")
_STYLE = {"verified": "green", "rejected": "red", "unverified": "yellow", "folded": "green", "unchanged": "cyan"}


def _shown(text: str) -> str:
    """Return text of others as it may go to a terminal: no control characters, and no markup."""
    return markup.escape(printable(text))


def show(report: Report, console: Console, verbose: bool = False) -> None:
    """Print what happened to one model."""
    _title(report.input, console)
    _counts(report, console)
    _folds(report, console, verbose)
    _refusals(report, console, verbose)
    if report.verification is not None:
        show_verification(report.verification, console, verbose)
    elif report.status == "folded":
        console.print("not verified end to end (--no-verify)", style="yellow")
    if report.tuning is not None:
        latency.show_tuning(report.tuning, console, verbose)
    if report.latency is not None:
        latency.show(report.latency, console, verbose)
    _outcome(report, console)


def show_plan(report: Report, console: Console, verbose: bool = False) -> None:
    """Print what would happen to a model."""
    _title(report.input, console)
    _counts(report, console)
    _folds(report, console, verbose)
    _refusals(report, console, verbose)
    if report.folds:
        count = "1 region" if len(report.folds) == 1 else f"{len(report.folds)} regions"
        console.print(f"{count} would fold; 'onnxrep optimize' does it", highlight=False)
    else:
        console.print("nothing folds in this model", highlight=False)


def _title(name: str, console: Console) -> None:
    """Print which model this is about."""
    console.print(f"[bold]{_shown(name or 'model in memory')}[/bold]", highlight=False, soft_wrap=True)


def _counts(report: Report, console: Console) -> None:
    """Print op counts before and after, the convolution's kin first, then whatever else changed."""
    before, after = report.counts_before, report.counts_after
    changed = [k for k in before.keys() | after.keys() if before.get(k, 0) != after.get(k, 0) and k not in _COUNTED]
    rows = [k for k in _COUNTED if before.get(k, 0) or after.get(k, 0)] + sorted(changed)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("ops", "left"), ("before", "right"), ("after", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for op in rows:
        old, new = before.get(op, 0), after.get(op, 0)
        table.add_row(_shown(op), str(old), f"[green]{new}[/green]" if new < old else str(new))
    table.add_row("all nodes", str(sum(before.values())), str(sum(after.values())))
    table.add_row("weights", _size(report.bytes_before), _size(report.bytes_after))
    console.print(table)


def _size(count: int) -> str:
    """Return a size in the unit that fits."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _folds(report: Report, console: Console, verbose: bool) -> None:
    """Print folds by kind; each one if asked for."""
    kinds = Counter(f.kind for f in report.folds)
    words = {"merge": "parallel branches merged into one", "fuse": "nodes in sequence fused into one"}
    for kind, count in sorted(kinds.items(), reverse=True):
        console.print(f"{count} x {kind}: {words[kind]}", highlight=False)
    if report.folds:
        worst = max(fold.certificate.error for fold in report.folds)
        bound = max(fold.certificate.bound for fold in report.folds)
        line = f"each proven in float64: off by {worst:.1g} of the magnitude of its terms at most (bound {bound:.0g})"
        console.print(line, highlight=False, soft_wrap=True)
    if verbose:
        for fold in report.folds:
            old = " + ".join(f"{n} {op}" for op, n in Counter(r.op for r in fold.removed).items())
            new = " + ".join(_emitted(e) for e in fold.emitted)
            console.print(f"  {_shown(fold.output)}: {old} -> {new}", highlight=False, soft_wrap=True)


def _emitted(node: Emitted) -> str:
    """Return a new node in a few words."""
    if not node.kernel_shape:
        return node.op
    group = f" in {node.group} groups" if node.group > 1 else ""
    return f"{node.op} {'x'.join(map(str, node.kernel_shape))}{group}"


def _refusals(report: Report, console: Console, verbose: bool) -> None:
    """Print what was left alone, grouped by reason."""
    if not report.refusals:
        return
    console.print("left alone:", style="bold")
    by_code: dict[str, list[str]] = {}
    meaning = {}
    for refusal in report.refusals:
        place = f"{refusal.scope}: " if refusal.scope else ""
        by_code.setdefault(refusal.code, []).append(f"{place}{refusal.node.name}: {refusal.detail}")
        meaning[refusal.code] = refusal.meaning
    for code, lines in sorted(by_code.items(), key=lambda item: -len(item[1])):
        console.print(f"  {len(lines)} x {code}: {meaning[code]}", highlight=False, soft_wrap=True)
        for line in lines if verbose else lines[:1]:
            console.print(f"      {_shown(line)}", highlight=False, style="dim", soft_wrap=True)
        if not verbose and len(lines) > 1:
            console.print(f"      and {len(lines) - 1} more (-v shows all)", highlight=False, style="dim")


def show_verification(verification: Verification, console: Console, verbose: bool = False) -> None:
    """Print the verdict with its worst figure, or all figures."""
    style = _STYLE[verification.verdict]
    line = f"[{style}]{verification.verdict}[/{style}]"
    if verification.reason:
        line += f": {_shown(verification.reason)}"
    console.print(line, highlight=False, soft_wrap=True)
    judged = [o for o in verification.outputs if o.status in ("same", "different")]
    worst = max(judged, key=lambda o: o.ratio / o.limit if o.limit else 0.0, default=None)
    if worst is not None:
        own = worst.error_before / worst.rms if worst.rms else 0.0
        if own:
            judged_by = f"{worst.ratio:.2f} times the original's own rounding error (limit {worst.limit:.2f})"
            judged_by += f", which is {own:.1g} of the output"
        else:
            judged_by = f"off by {worst.error_after / worst.rms if worst.rms else 0.0:.1g} of the output"
        console.print(
            f"  worst output {_shown(worst.output)} on {_shown(worst.inputs)}: {judged_by};"
            f" largest difference {worst.max_difference:.3g} at values up to {worst.largest:.3g}",
            highlight=False,
            soft_wrap=True,
        )
    sets, levels = len(verification.inputs), " and ".join(verification.levels)
    if sets:
        console.print(
            f"  {sets} input sets, ONNX Runtime on {verification.provider} with optimizations {levels},"
            " reference in float64",
            highlight=False,
            soft_wrap=True,
        )
    if verbose:
        _figures(verification, console)
    if verification.unobserved:
        console.print(
            f"  {verification.unobserved} of {verification.channels} channels of folded regions were zero on every"
            " input: their own proofs cover them",
            highlight=False,
            soft_wrap=True,
        )
    for note in verification.notes:
        console.print(f"  {_shown(note)}", highlight=False, soft_wrap=True)


def _figures(verification: Verification, console: Console) -> None:
    """Print the figures of every output on every input set."""
    table = Table(box=None, pad_edge=True, header_style="bold")
    for title in ("output", "inputs", "", "error before", "error after", "ratio", "limit", "max difference"):
        table.add_column(title, overflow="fold")
    for o in verification.outputs:
        errors = (f"{o.error_before:.3g}", f"{o.error_after:.3g}", f"{o.ratio:.2f}", f"{o.limit:.2f}")
        table.add_row(_shown(o.output), _shown(o.inputs), o.status, *errors, f"{o.max_difference:.3g}")
    console.print(table)


def _outcome(report: Report, console: Console) -> None:
    """Print where the file went, or why there is none."""
    if report.output:
        what = "written unchanged to" if report.status == "unchanged" else "written to"
        console.print(f"{what} {_shown(report.output)}", highlight=False, soft_wrap=True)
        for extra in report.written[:-1]:
            console.print(f"  with its data in {_shown(extra)}", highlight=False, soft_wrap=True)
    elif report.status == "unchanged":
        console.print("nothing folds in this model; no file was written", highlight=False)
    elif report.status in ("rejected", "unverified"):
        console.print("no file was written", highlight=False)
