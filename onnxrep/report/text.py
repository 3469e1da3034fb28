"""A report as a person reads it in a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from onnxrep.reasons import REMEDIES
from onnxrep.report import latency
from onnxrep.report.lines import amount, change, counted, say, shown, size
from onnxrep.report.records import Emitted, Fold, RegionNode, Report, Totals, Verification

_COUNTED = ("Conv", "ConvTranspose", "BatchNormalization", "Add", "Mul")
_GROUPS_SHOWN = 4
_PLACES_SHOWN = 3
_STYLE = {"verified": "green", "rejected": "red", "unverified": "yellow", "folded": "green", "unchanged": "cyan"}


def show(report: Report, console: Console, verbose: bool = False) -> None:
    """Print what happened to one model."""
    title(report.input, console)
    counts(report, console)
    folds(report, console, verbose)
    refusals(report, console, verbose)
    if report.verification is not None:
        show_verification(report.verification, console, verbose)
    elif report.status == "folded":
        console.print("not verified end to end (--no-verify)", style="yellow")
    if report.tuning is not None:
        latency.show_tuning(report.tuning, console, verbose)
    if report.latency is not None:
        latency.show(report.latency, console, verbose)
    _outcome(report, console)


def title(name: str, console: Console) -> None:
    """Print which model this is about."""
    console.print(f"[bold]{shown(name or 'model in memory')}[/bold]", highlight=False, soft_wrap=True)


def counts(report: Report, console: Console) -> None:
    """Print op counts before and after, the convolution's kin first, then whatever else changed, and the sizes."""
    before, after = report.counts_before, report.counts_after
    changed = [k for k in before.keys() | after.keys() if before.get(k, 0) != after.get(k, 0) and k not in _COUNTED]
    rows = [k for k in _COUNTED if before.get(k, 0) or after.get(k, 0)] + sorted(changed)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ops")
    for name in ("before", "after", ""):
        table.add_column(name, justify="right")
    for op in rows:
        old, new = before.get(op, 0), after.get(op, 0)
        table.add_row(shown(op), str(old), f"[green]{new}[/green]" if new < old else str(new))
    table.add_row("all nodes", str(sum(before.values())), str(sum(after.values())))
    old_size, new_size = report.totals_before, report.totals_after
    if old_size is not None and new_size is not None:
        both = old_size.parameters, new_size.parameters
        table.add_row("parameters", *map(amount, both), change(*both))
        if old_size.macs is not None and new_size.macs is not None:
            macs = old_size.macs, new_size.macs
            table.add_row("multiply-adds", *map(amount, macs), change(*macs))
    sizes = report.bytes_before, report.bytes_after
    table.add_row("weights", *map(size, sizes), change(*sizes))
    console.print(table)
    if old_size is not None and new_size is not None:
        _circumstances(old_size, new_size, console)


def _circumstances(before: Totals, after: Totals, console: Console) -> None:
    """Print at which sizes arithmetic was counted, or why it was not."""
    if before.macs is not None and after.macs is not None:
        if before.macs:
            shapes = ", ".join(f"{shown(n)} {'x'.join(map(str, dims))}" for n, dims in before.shapes.items())
            assumed = " (batch size taken as 1; --input-shape takes others)" if before.assumed else ""
            say(console, f"multiply-adds of one run at {shapes or 'fixed sizes'}{assumed}", style="dim")
    else:
        say(
            console,
            f"multiply-adds are not known: {counted(max(before.unknown, after.unknown), 'op')} of dynamic size or in a "
            "body; --input-shape NAME:1,3,224,224 fixes sizes",
            style="dim",
        )


def folds(report: Report, console: Console, verbose: bool, *, places: bool = False) -> None:
    """Print folds by kind and by what became of what; with ``places`` where the first are, or with ``verbose`` all."""
    kinds = Counter(f.kind for f in report.folds)
    words = {"merge": "parallel branches merged into one", "fuse": "nodes in sequence fused into one"}
    words["move"] = "nodes in another order"
    for kind, count in sorted(kinds.items(), reverse=True):
        say(console, f"[bold]{count} x {kind}[/]: {words[kind]}")
        groups: dict[str, list[Fold]] = {}
        for fold in report.folds:
            if fold.kind == kind:
                groups.setdefault(_recipe(fold), []).append(fold)
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        for recipe, mine in ordered if verbose or places else ordered[:_GROUPS_SHOWN]:
            say(console, f"{len(mine)} x {recipe}", 2)
            if verbose or places:
                _places([fold.output for fold in mine], console, verbose)
        if not (verbose or places) and len(ordered) > _GROUPS_SHOWN:
            say(console, f"and {len(ordered) - _GROUPS_SHOWN} more forms (-v shows all)", 2, "dim")
    if report.folds:
        worst = max(fold.certificate.error for fold in report.folds)
        bound = max(fold.certificate.bound for fold in report.folds)
        say(
            console,
            f"each proven in float64: off by {worst:.1g} of the magnitude of its terms at most (bound {bound:.0g})",
        )


def _recipe(fold: Fold) -> str:
    """Return what a fold makes of what."""
    found = Counter(_ingredient(node) for node in fold.removed)
    old = " + ".join(f"{n} {shown(words)}" for (_, words), n in sorted(found.items()))
    return f"{old} -> {' + '.join(_emitted(e) for e in fold.emitted)}"


def _ingredient(node: RegionNode) -> tuple[tuple[int, int], str]:
    """Return a node that went in in a few words, behind what sorts it: convolutions first, the largest in front."""
    rank = _COUNTED.index(node.op) if node.op in _COUNTED else len(_COUNTED)
    kernel = node.constants[0][2:] if node.op in ("Conv", "ConvTranspose") and node.constants else ()
    words = f"{node.op} {'x'.join(map(str, kernel))}".rstrip()
    return (rank, -math.prod(kernel)), words


def _places(names: Sequence[str], console: Console, verbose: bool) -> None:
    """Print the first of some names, or all."""
    for name in names if verbose else names[:_PLACES_SHOWN]:
        console.print(f"      {shown(name)}", highlight=False, style="dim", soft_wrap=True)
    if not verbose and len(names) > _PLACES_SHOWN:
        say(console, f"and {len(names) - _PLACES_SHOWN} more (-v shows all)", 6, "dim")


def _emitted(node: Emitted) -> str:
    """Return a new node in a few words."""
    if not node.kernel_shape:
        return node.op
    group = " in groups" if node.group > 1 else ""
    if node.channels is not None and node.group == node.channels[0] > 1:
        group = " depthwise"
    return f"{node.op} {'x'.join(map(str, node.kernel_shape))}{group}"


def refusals(report: Report, console: Console, verbose: bool) -> None:
    """Print what was left alone, grouped by reason, and what can be done about it."""
    if not report.refusals:
        return
    say(console, "[bold]left alone:[/]")
    by_code: dict[str, list[str]] = {}
    meaning = {}
    for refusal in report.refusals:
        place = f"{refusal.scope}: " if refusal.scope else ""
        by_code.setdefault(refusal.code, []).append(f"{place}{refusal.node.name}: {refusal.detail}")
        meaning[refusal.code] = refusal.meaning
    for code, lines in sorted(by_code.items(), key=lambda item: -len(item[1])):
        say(console, f"{len(lines)} x [yellow]{code}[/]: {meaning[code]}", 2)
        for line in lines if verbose else lines[:1]:
            say(console, shown(line), 6, "dim")
        if not verbose and len(lines) > 1:
            say(console, f"and {len(lines) - 1} more (-v shows all)", 6, "dim")
        if code in REMEDIES:
            say(console, f"what to do: {REMEDIES[code]}", 6)


def show_verification(verification: Verification, console: Console, verbose: bool = False) -> None:
    """Print the verdict with its worst figure, or all figures."""
    style = _STYLE[verification.verdict]
    line = f"[{style}]{verification.verdict}[/{style}]"
    if verification.reason:
        line += f": {shown(verification.reason)}"
    say(console, line)
    judged = [o for o in verification.outputs if o.status in ("same", "different")]
    worst = max(judged, key=lambda o: o.ratio / o.limit if o.limit else 0.0, default=None)
    if worst is not None:
        own = worst.error_before / worst.rms if worst.rms else 0.0
        if own:
            judged_by = f"{worst.ratio:.2f} times the original's own rounding error (limit {worst.limit:.2f})"
            judged_by += f", which is {own:.1g} of the output"
        else:
            judged_by = f"off by {worst.error_after / worst.rms if worst.rms else 0.0:.1g} of the output"
        say(
            console,
            f"worst output {shown(worst.output)} on {shown(worst.inputs)}: {judged_by};"
            f" largest difference {worst.max_difference:.3g} at values up to {worst.largest:.3g}",
            2,
        )
    sets, levels = len(verification.inputs), " and ".join(verification.levels)
    if sets:
        say(
            console,
            f"{sets} input sets, ONNX Runtime on {verification.provider} with optimizations {levels},"
            " reference in float64",
            2,
        )
    if verbose:
        _figures(verification, console)
    if verification.unobserved:
        say(
            console,
            f"{verification.unobserved} of {verification.channels} channels of folded regions were zero on every"
            " input: their own proofs cover them",
            2,
        )
    for note in verification.notes:
        say(console, shown(note), 2)


def _figures(verification: Verification, console: Console) -> None:
    """Print the figures of every output on every input set."""
    table = Table(box=None, pad_edge=True, header_style="bold")
    for title in ("output", "inputs", "", "error before", "error after", "ratio", "limit", "max difference"):
        table.add_column(title, overflow="fold")
    for o in verification.outputs:
        errors = (f"{o.error_before:.3g}", f"{o.error_after:.3g}", f"{o.ratio:.2f}", f"{o.limit:.2f}")
        table.add_row(shown(o.output), shown(o.inputs), o.status, *errors, f"{o.max_difference:.3g}")
    console.print(table)


def _outcome(report: Report, console: Console) -> None:
    """Print where the file went, or why there is none."""
    if report.output:
        what = "written unchanged to" if report.status == "unchanged" else "written to"
        console.print(f"{what} {shown(report.output)}", highlight=False, soft_wrap=True)
        for extra in report.written[:-1]:
            console.print(f"  with its data in {shown(extra)}", highlight=False, soft_wrap=True)
    elif report.status == "unchanged":
        console.print("nothing folds in this model; no file was written", highlight=False)
    elif report.status == "rejected":
        say(console, "no file was written: please report it with the model; the original is as good as it was")
    elif report.status == "unverified":
        say(console, "no file was written: mend what kept the check from deciding, or take it with --allow-unverified")
