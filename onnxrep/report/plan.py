"""What would happen to a model, as a person reads it in a terminal."""

from __future__ import annotations

from statistics import median

from rich.console import Console

from onnxrep.ranges import RISK
from onnxrep.rates import RATES
from onnxrep.report.lines import counted, say, shown
from onnxrep.report.records import Fold, Ranges, Report
from onnxrep.report.text import counts, folds, refusals, title

_RISKS_SHOWN = 3


def show(report: Report, console: Console, verbose: bool = False) -> None:
    """Print what would happen to a model."""
    title(report.input, console)
    counts(report, console)
    folds(report, console, verbose, places=True)
    _per_position(report, console)
    _time(report, console)
    risks(report, console, verbose)
    refusals(report, console, verbose)
    if report.folds:
        count = counted(len(report.folds), "region")
        say(console, f"[bold]{count} would fold[/]; 'onnxrep optimize' does it, and checks the result")
    elif report.refusals:
        say(console, "nothing folds in this model; see above for what came close")
    else:
        say(console, "nothing folds in this model: it has no parallel branches or chains of linear ops left to merge")


def _per_position(report: Report, console: Console) -> None:
    """Print what folding saves per position, where totals are not known."""
    before = report.totals_before
    shares = [1.0 - f.macs[1] / f.macs[0] for f in report.folds if f.macs[0]]
    if before is None or before.macs is not None or not shares:
        return
    least, typical, most = (100 * abs(f(shares)) for f in (min, median, max))
    say(
        console,
        f"within the folded regions, {least:.0f} to {most:.0f} % (typically {typical:.0f} %) fewer multiply-adds",
    )


def _time(report: Report, console: Console) -> None:
    """Print how much less time the folded regions are estimated to take, where the provider's rates are known."""
    provider = str(report.options.get("provider", "cpu"))
    last = {node.name: fold.round for fold in report.folds for node in fold.removed}  # rounds are in order
    between = sum(f.seconds[1] for f in report.folds if any(last.get(n.name, 0) > f.round for n in f.emitted))
    before, after = (sum(fold.seconds[i] for fold in report.folds) - between for i in (0, 1))
    if before <= 0 or not RATES[provider].measured:
        return
    say(
        console,
        f"within the folded regions, {100 * (1 - after / before):.0f} % less time by estimate (one {provider.upper()} "
        "thread of a server; 'onnxrep bench' measures the whole)",
    )


def risks(report: Report, console: Console, verbose: bool) -> None:
    """Print which kernels one scale per tensor is too coarse for."""
    kernels = [(fold, found) for fold in report.folds for found in fold.ranges]
    risky = sorted(((f, r) for f, r in kernels if r.at_risk), key=lambda pair: pair[1].sqnr)
    if not risky:
        return
    say(
        console,
        f"[bold]if you quantize to int8:[/] {len(risky)} of {counted(len(kernels), 'new kernel')} would lose precision "
        "with one scale per tensor",
    )
    for fold, found in risky if verbose else risky[:_RISKS_SHOWN]:
        say(console, _risk(fold, found), 6, "dim")
    if not verbose and len(risky) > _RISKS_SHOWN:
        say(console, f"and {len(risky) - _RISKS_SHOWN} more (-v shows all)", 6, "dim")
    per_channel = [found for _, found in risky if found.sqnr_per_channel < RISK]
    say(
        console,
        "what to do: quantize weights per channel (per_channel=True in ONNX Runtime's quantize_static), equalize the "
        "channels before, or train with quantization in the loop"
        + (
            f"; for {counted(len(per_channel), 'kernel')} of these, one scale per channel is too coarse as well"
            if per_channel
            else ""
        ),
        4,
    )


def _risk(fold: Fold, found: Ranges) -> str:
    """Return one kernel's figures."""
    apart = f", its branches apart {found.sqnr_apart:.0f} dB" if len(found.branches) > 1 else ""
    return (
        f"{shown(fold.output)}: {found.sqnr:.0f} dB with one scale per tensor{apart}, {found.sqnr_per_channel:.0f} dB "
        f"with one per channel; range {found.largest:.3g}, that of the median channel {found.median:.3g}"
    )
