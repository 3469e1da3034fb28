"""The tables and the plot of :mod:`benchmarks.latency`, and whether its promises hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from benchmarks.peers import TOOLS
from onnxrep.timing.statistics import Ratio, ratio

LEAST, LEAST_MEAN = 0.98, 1.02
"""How fast our output must be beside the faster of export and deploy form, and beside the deploy form on average."""

Result = Mapping[str, Any]


def beside(result: Result, other: str, form: str = "ours") -> Ratio | None:
    """Return how many times as fast as ``other`` a form is."""
    times = result["times"]
    return ratio(times[other], times[form]) if other in times and form in times else None


def show(results: Sequence[Result], plot: Path | None, setting: str = "") -> int:
    """Print both tables and what they come to; return how many promises do not hold."""
    if setting:
        print(f"Setting: {setting}.\n")
    if not results:
        print("nothing measured yet")
        return 1
    _onnxruntime(results)
    _openvino(results)
    faults = _promises(results)
    if plot is not None:
        draw(results, plot, setting)
    return faults


def _onnxruntime(results: Sequence[Result]) -> None:
    """Print the table of ONNX Runtime."""
    print(
        "| model | export, ms | deploy | **ours** | "
        + " | ".join(TOOLS)
        + " | ours beside the best of export, deploy |"
    )
    print("|---|---|---|---|" + "---|" * len(TOOLS) + "---|")
    for result in results:
        cells = [f"{median(result['times']['export']) * 1e3:.1f}"]
        for form in ("deploy", "ours", *TOOLS):
            found = beside(result, "export", form)
            cell = f"{found.median:.2f}" if found else "-"
            cells.append(f"**{cell}**" if form == "ours" else cell)
        least = _beside_best(result)
        cells.append(f"{least.median:.2f} ({least.low:.2f} to {least.high:.2f})")
        print(f"| {result['name']} | " + " | ".join(cells) + " |")
    print()


def _beside_best(result: Result) -> Ratio:
    """Return how fast our output is beside the faster of export and deploy form."""
    found = [r for other in ("export", "deploy") if (r := beside(result, other)) is not None]
    return min(found, key=lambda r: r.median)


def _openvino(results: Sequence[Result]) -> None:
    """Print the table of OpenVINO, where it was measured."""
    mine = [r for r in results if "OpenVINO ours" in r["times"]]
    if not mine:
        return
    print("| OpenVINO | export, ms | deploy | **ours** | ours beside the best of export, deploy |")
    print("|---|---|---|---|---|")
    for result in mine:
        renamed = {"times": {k.removeprefix("OpenVINO "): v for k, v in result["times"].items() if "OpenVINO" in k}}
        deploy, ours = beside(renamed, "export", "deploy"), beside(renamed, "export")
        least = _beside_best(renamed)
        print(
            f"| {result['name']} | {median(renamed['times']['export']) * 1e3:.1f} | "
            f"{f'{deploy.median:.2f}' if deploy else '-'} | **{ours.median if ours else math.nan:.2f}** | "
            f"{least.median:.2f} ({least.low:.2f} to {least.high:.2f}) |"
        )
    print()


def _promises(results: Sequence[Result]) -> int:
    """Print what the figures come to, and how many promises do not hold; return their number."""
    faults = []
    pairs = [r for r in results if r["deploy"]]
    for result in results:
        least = _beside_best(result)
        if least.median < LEAST:
            faults.append(f"{result['name']}: {least.median:.3f} of the best of export and deploy form")
        for tool in TOOLS:
            found = beside(result, tool)
            if found is not None and found.verdict == "slower":
                faults.append(f"{result['name']}: {found.median:.3f} ({found.low:.3f} to {found.high:.3f}) of {tool}")
        for form, note in result["notes"].items():
            faults.append(f"{result['name']}: {form}: {note}")
        for tool, reason in result["missing"].items():
            print(f"{result['name']}: {tool} made nothing: {reason}")
    for title, other in (("export", "export"), ("deploy form", "deploy")):
        medians = [r.median for result in pairs if (r := beside(result, other)) is not None]
        if medians:
            mean = geometric_mean(medians)
            print(f"geometric mean over {len(medians)} pairs: {mean:.3f} times as fast as the {title}")
            if other == "deploy" and mean < LEAST_MEAN:
                faults.append(f"the geometric mean is below {LEAST_MEAN}")
    print("\n".join(faults) or "no model loses: at least 0.98 of the best everywhere, no tool's output is faster")
    return len(faults)


def draw(results: Sequence[Result], path: Path, setting: str = "") -> None:
    """Draw how many times as fast as the export each form is."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    styles = {"deploy": ("o", "#888888"), "ours": ("D", "#1f6feb"), "best other tool": ("x", "#d1702b")}
    figure, axes = pyplot.subplots(figsize=(8, 0.28 * len(results) + 1.2))
    rows = sorted(results, key=lambda r: r["name"], reverse=True)
    for row, result in enumerate(rows):
        values = {f: beside(result, "export", f) for f in ("deploy", "ours")}
        tools = [r for tool in TOOLS if (r := beside(result, "export", tool)) is not None]
        values["best other tool"] = max(tools, key=lambda r: r.median) if tools else None
        for form, found in values.items():
            if found is not None:
                marker, colour = styles[form]
                axes.plot(found.median, row, marker, color=colour, label=None if row else form, markersize=6)
                axes.plot((found.low, found.high), (row, row), color=colour, linewidth=1)
    axes.axvline(1.0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(rows)), [r["name"] for r in rows], fontsize=8)
    axes.set_xlabel(f"times as fast as the export (ONNX Runtime, {setting or 'CPU, one thread'})")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
