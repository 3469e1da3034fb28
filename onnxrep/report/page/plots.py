"""Kernels as heat maps, errors of both models, and times: plots of figures that records hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from onnxrep.report.page import canvas
from onnxrep.report.page.canvas import picture
from onnxrep.report.records import Comparison, Emitted, OutputCheck

_SIDE, _GAP, _ACROSS = 58.0, 14.0, 4
_MOST_KERNELS = 24
_MOST_ROWS = 30
_ROW = 26.0


def kernels(nodes: Sequence[Emitted]) -> Markup:
    """Return the taps of kernels as heat maps, numbered; empty if there is nothing to see."""
    shown = [(n, node) for n, node in enumerate(nodes, 1) if len(node.taps) > 1 and _grid(node)][:_MOST_KERNELS]
    if not shown:
        return Markup("")
    across = min(_ACROSS, len(shown))
    rows = math.ceil(len(shown) / across)
    names = len(nodes) > 1
    step = _SIDE + _GAP + (14 if names else 0)
    with picture(across * (_SIDE + _GAP) + 2, rows * step + 2) as page:
        for place, (number, node) in enumerate(shown):
            x, y = 1 + place % across * (_SIDE + _GAP), 1 + place // across * step
            _kernel(page, node, x, y)
            if names:
                page.text(x + _SIDE / 2, y + _SIDE + 9, str(number), 11, color=canvas.MUTED)
        strongest = max(range(len(shown[0][1].taps)), key=shown[0][1].taps.__getitem__)
        return page.svg(
            "Taps of the merged kernels" if names else "Taps of the merged kernel",
            f"Root mean square of the weights at each tap; the stronger, the more intense. The strongest tap of the "
            f"first is number {strongest + 1} of {len(shown[0][1].taps)}.",
        )


def _grid(node: Emitted) -> tuple[int, int] | None:
    """Return rows and columns in which the taps are shown: slices of more than two axes stand side by side."""
    shape = node.kernel_shape
    if not shape or math.prod(shape) != len(node.taps):
        return None
    return (shape[-2] if len(shape) > 1 else 1, math.prod(shape) // (shape[-2] if len(shape) > 1 else 1))


def _kernel(page: canvas.Picture, node: Emitted, x: float, y: float) -> None:
    """Draw one kernel into a square."""
    import numpy as np
    from matplotlib.patches import Rectangle

    grid = _grid(node)
    assert grid is not None
    taps = np.nan_to_num(np.array(node.taps).reshape(-1, *node.kernel_shape[-2:]), posinf=0.0, neginf=0.0)
    values = np.concatenate(list(taps), axis=-1).reshape(grid)
    pixels = np.zeros((*grid, 4))
    pixels[..., :3] = canvas.HEAT
    pixels[..., 3] = 0.06 + 0.94 * values / (values.max() or 1.0)
    scale = _SIDE / max(grid)
    high, wide = (max(n * scale, 3.0) for n in grid)
    top, left = y + (_SIDE - high) / 2, x + (_SIDE - wide) / 2
    page.axes.imshow(pixels, extent=(left, left + wide, top + high, top), interpolation="none", aspect="auto")
    page.axes.add_patch(Rectangle((left, top), wide, high, fill=False, edgecolor=canvas.LINE, linewidth=1))
    page.axes.set_xlim(0, page.width)
    page.axes.set_ylim(page.height, 0)


def errors(checks: Sequence[OutputCheck]) -> Markup:
    """Return the errors of both models against the reference, one row per output and input set, the worst first."""
    measured = [(c, found) for c in checks if (found := _relative(c)) is not None]
    rows = sorted(measured, key=lambda row: -_strain(row[0]))[:_MOST_ROWS]
    if not rows:
        return Markup("")
    left, width = 250.0, 760.0
    height = len(rows) * _ROW + 66
    every = [math.log10(value) for _, values in rows for value in values if value > 0] or [-7.0]
    low, high = math.floor(min(every) - 0.2), math.ceil(max(every) + 0.2)
    with picture(width, height) as page:
        plot = page.plot(left, 34, width - left - 24, len(rows) * _ROW)
        plot.set_xlim(low, high)
        plot.set_ylim(len(rows) - 0.5, -0.5)
        step = max(1, (high - low) // 8)
        plot.set_xticks(range(low, high + 1, step), [_power(e) for e in range(low, high + 1, step)])
        plot.set_yticks([])
        for row, (check, figures) in enumerate(rows):
            before, after, limit = (max(math.log10(v), low) if v > 0 else low for v in figures)
            bad = check.status == "different"
            plot.plot([min(before, after), max(before, after)], [row, row], color=canvas.LINE, linewidth=3)
            plot.plot([limit], [row], marker="|", markersize=15, color=canvas.BAD, markeredgewidth=2.2)
            plot.plot(
                [before],
                [row],
                marker="o",
                markersize=9,
                color=canvas.MUTED,
                markerfacecolor="none",
                markeredgewidth=1.6,
            )
            plot.plot([after], [row], marker="o", markersize=6, color=canvas.BAD if bad else canvas.ACCENT)
            label = f"{_short(check.output, 18)} · {_short(check.inputs, 22)}"
            page.text(left - 10, 34 + (row + 0.5) * _ROW, label, 11, ha="right")
        _legend(page, left)
        page.text(
            left + (width - left) / 2,
            height - 10,
            "error against float64, as a share of the output",
            11,
            color=canvas.MUTED,
        )
        return page.svg(
            "Error of both models against the reference",
            f"{len(rows)} rows, one per output and input set: the error of the original, that of the optimized model, "
            "and the limit. The same figures are in the table below.",
        )


def _legend(page: canvas.Picture, left: float) -> None:
    """Say what the marks are."""
    for x, mark, word in ((0, "open", "original"), (90, "full", "optimized"), (192, "limit", "limit")):
        at = left + x + 6
        if mark == "limit":
            page.axes.plot([at], [14], marker="|", markersize=13, color=canvas.BAD, markeredgewidth=2.2)
        else:
            style = {"color": canvas.MUTED, "markerfacecolor": "none"} if mark == "open" else {"color": canvas.ACCENT}
            page.axes.plot([at], [14], marker="o", markersize=7, **style)  # type: ignore[arg-type]
        page.text(at + 10, 14, word, 11, ha="left")


def _relative(check: OutputCheck) -> tuple[float, float, float] | None:
    """Return both errors and the limit relative to the output's size, or None where nothing was measured."""
    if check.status not in ("same", "different") or not check.rms > 0:
        return None
    before, after = check.error_before / check.rms, check.error_after / check.rms
    limit = after * check.limit / check.ratio if check.ratio > 0 and check.limit < math.inf else before * check.limit
    values = before, after, limit
    return values if all(map(math.isfinite, values)) else None


def _strain(check: OutputCheck) -> float:
    """Return how near to its limit an output is."""
    return check.ratio / check.limit if check.limit > 0 else 0.0


def latency(found: Comparison) -> Markup:
    """Return the times of both models: median, and the middle half of all rounds."""
    width, left = 760.0, 110.0
    with picture(width, 122) as page:
        plot = page.plot(left, 6, width - left - 90, 76)
        both = (("original", found.before, canvas.MUTED), ("optimized", found.after, canvas.ACCENT))
        longest = max(t.high for _, t, _ in both) * 1e3
        plot.set_xlim(0, longest * 1.05)
        plot.set_ylim(1.6, -0.6)
        plot.set_yticks([])
        for row, (word, times, colour) in enumerate(both):
            median, low, high = (1e3 * v for v in (times.median, times.low, times.high))
            plot.barh([row], [median], height=0.5, color=colour)
            plot.plot([low, high], [row, row], color=canvas.INK, linewidth=1.6)
            for end in (low, high):
                plot.plot([end], [row], marker="|", markersize=9, color=canvas.INK, markeredgewidth=1.6)
            page.text(left - 10, 6 + (row + 0.6) / 2.2 * 76, word, 12, ha="right")
            page.text(width - 82, 6 + (row + 0.6) / 2.2 * 76, f"{median:.3g} ms", 12, ha="left")
        page.text(
            left + (width - left - 90) / 2,
            112,
            "milliseconds for one inference; the line is the middle half of all rounds",
            11,
            color=canvas.MUTED,
        )
        return page.svg(
            "Time for one inference",
            "; ".join(
                f"{word}: median {1e3 * t.median:.3g} ms, middle half {1e3 * t.low:.3g} to {1e3 * t.high:.3g} ms"
                for word, t, _ in both
            ),
        )


def _power(exponent: int) -> str:
    """Return a power of ten."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _short(text: str, most: int) -> str:
    """Return the end of a text, where names differ."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
