"""Times of two models as a person reads them in a terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from onnxrep.escape import printable
from onnxrep.report.records import Comparison, Timing, Tuning

_STYLE = {"faster": "green", "slower": "red", "same": "cyan"}
_MOST_OPS = 12


def sentence(found: Comparison) -> str:
    """Return the result in one line of plain words."""
    low, high = found.interval
    between = f"({found.confidence:.0%} interval {low:.2f} to {high:.2f})".replace("%", " %")
    if found.verdict == "same":
        return f"no difference beyond noise: {found.ratio:.2f}x as fast {between}"
    slower = ": slower" if found.verdict == "slower" else ""
    return f"{found.ratio:.2f}x as fast {between}{slower}"


def show(found: Comparison, console: Console, verbose: bool = False) -> None:
    """Print times, their ratio, and where the time goes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("latency, ms", "left"), ("before", "right"), ("after", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    table.add_row("median", *(_ms(t.median) for t in (found.before, found.after)))
    table.add_row("quartiles", *(f"{_ms(t.low)} to {_ms(t.high)}" for t in (found.before, found.after)))
    console.print(table)
    console.print(f"[{_STYLE[found.verdict]}]{sentence(found)}[/]", highlight=False, soft_wrap=True)
    console.print(f"  {_circumstances(found)}", highlight=False, soft_wrap=True)
    if found.chosen:
        console.print(
            "  the sizes were chosen, as the inputs are dynamic; --input-shape NAME:1,3,224,224 takes others",
            highlight=False,
            soft_wrap=True,
        )
    for note in found.notes:
        console.print(f"  {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _ops(found.before, found.after, console, verbose)


def show_tuning(found: Tuning, console: Console, verbose: bool = False) -> None:
    """Print what was timed to decide what to fold, and what was decided."""
    if found.note:
        console.print(f"nothing was timed, the price decided: {printable(found.note)}", style="yellow", markup=False)
        return
    counts = Counter(d.choice for d in found.decisions)
    words = {"folded": "folded", "partial": "folded in part", "left": "left as they were"}
    parts = [f"{counts[choice]} {word}" for choice, word in words.items() if counts[choice]]
    known = sum(d.cached for d in found.decisions)
    line = f"timed {len(found.decisions)} regions: {', '.join(parts) or 'the price had no doubt'}"
    line += f" ({known} known from former runs)" if known else ""
    console.print(line, highlight=False, soft_wrap=True)
    for decision in found.decisions:
        if verbose or decision.choice != "folded":
            times = ", ".join(f"{form} {_ms(s)} ms" for form, s in decision.seconds.items())
            text = f"  {printable(decision.output)}: {words[decision.choice]}: {times}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    if found.dropped:
        console.print("all folds were given up: the model as a whole was slower than the original", style="yellow")


def _ms(seconds: float) -> str:
    """Return milliseconds with three digits or so."""
    return (
        f"{seconds * 1e3:.3f}" if seconds < 0.01 else f"{seconds * 1e3:.2f}" if seconds < 1 else f"{seconds * 1e3:.0f}"
    )


def _circumstances(found: Comparison) -> str:
    """Return on what the times rest."""
    shapes = ", ".join(f"{n} {'x'.join(map(str, s)) or 'scalar'}" for n, s in found.inputs.items()) or "no inputs"
    threads = {0: "ONNX Runtime's own number of threads", 1: "1 thread"}.get(found.threads, f"{found.threads} threads")
    each = f" of {found.repeats} runs each" if found.repeats > 1 else ""
    return f"{found.rounds} rounds{each} in random order; {shapes}; ONNX Runtime on {found.provider}, {threads}"


def _ops(before: Timing, after: Timing, console: Console, verbose: bool) -> None:
    """Print the time per op type of both models, where it differs most first."""
    every = sorted(before.ops.keys() | after.ops.keys(), key=lambda op: (-_most(op, before, after), op))
    if not every:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("op as it ran", "nodes", "ms", "nodes", "ms"):
        table.add_column(title, justify="left" if title.startswith("op") else "right")
    for op in every if verbose else every[:_MOST_OPS]:
        cells = (c for t in (before, after) for c in (str(t.kernels.get(op, 0)), _ms(t.ops.get(op, 0.0))))
        table.add_row(printable(op).replace("[", "\\["), *cells)
    console.print(table)
    if not verbose and len(every) > _MOST_OPS:
        console.print(f"  and {len(every) - _MOST_OPS} more op types (-v shows all)", style="dim", highlight=False)


def _most(op: str, before: Timing, after: Timing) -> float:
    """Return the larger time of an op type."""
    return max(before.ops.get(op, 0.0), after.ops.get(op, 0.0))
