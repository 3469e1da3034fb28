"""The pictures of the documentation, drawn with matplotlib from real folds; one version for each colour scheme."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch
from onnx import numpy_helper

from models.net import Net
from onnxrep import Options, optimize

mpl.use("Agg")

INK = {"light": "#263238", "dark": "#eceff1"}
TINT = {
    "light": {"data": "#eceff1", "conv": "#b2dfdb", "norm": "#ffe0b2", "sum": "#e1bee7", "gate": "#ffcdd2"},
    "dark": {"data": "#37474f", "conv": "#00695c", "norm": "#8d5a14", "sum": "#6a3a78", "gate": "#8c3b41"},
}

Box = tuple[str, float, float, str]


def _boxes(axes: Any, scheme: str, boxes: Sequence[Box], arrows: Sequence[tuple[int, int]], width: float = 1.3) -> None:
    """Draw labelled boxes ``(text, x, y, tint)`` and arrows between them, downwards."""
    half = 0.19
    for text, x, y, tint in boxes:
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - half),
                width,
                2 * half,
                boxstyle="round,pad=0.02,rounding_size=0.08",
                facecolor=TINT[scheme][tint],
                edgecolor=INK[scheme],
                linewidth=0.8,
            )
        )
        axes.text(x, y, text, ha="center", va="center", fontsize=9)
    for start, end in arrows:
        (_, x0, y0, _), (_, x1, y1, _) = boxes[start], boxes[end]
        axes.annotate(
            "",
            (x1, y1 + half + 0.03),
            (x0, y0 - half - 0.03),
            arrowprops={"arrowstyle": "-|>", "color": INK[scheme], "linewidth": 1, "shrinkA": 0, "shrinkB": 0},
        )
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.axis("off")


def block(scheme: str) -> plt.Figure:
    """Draw a RepVGG block as it is exported, and what becomes of it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.9), width_ratios=(3, 1))
    _boxes(
        left,
        scheme,
        [
            ("x", 0, 5, "data"),
            ("Conv 3x3", -1.7, 4, "conv"),
            ("Conv 1x1", 0, 4, "conv"),
            ("BatchNorm", -1.7, 3.2, "norm"),
            ("BatchNorm", 0, 3.2, "norm"),
            ("BatchNorm", 1.7, 3.2, "norm"),
            ("Add", -0.85, 2.2, "sum"),
            ("Add", 0.4, 1.4, "sum"),
            ("Relu", 0.4, 0.6, "gate"),
        ],
        [(0, 1), (0, 2), (0, 5), (1, 3), (2, 4), (3, 6), (4, 6), (6, 7), (5, 7), (7, 8)],
    )
    left.set_title("as exported: 8 nodes", fontsize=10)
    _boxes(
        right,
        scheme,
        [("x", 0, 5, "data"), ("Conv 3x3", 0, 2.8, "conv"), ("Relu", 0, 0.6, "gate")],
        [(0, 1), (1, 2)],
    )
    right.set_title("folded: 2 nodes", fontsize=10)
    return figure


def _kernels() -> tuple[list[np.ndarray], np.ndarray]:
    """Return the three branches' kernels of channel 0 on channel 0, and the one that onnxrep made of them."""
    net = Net(3)
    x = net.input((1, 4, 8, 8))
    branches = [net.bn(net.conv(x, 4, 3)), net.bn(net.conv(x, 4, 1)), net.bn(x)]
    model = net.model(net.relu(net.add(*branches)))
    values = {t.name: numpy_helper.to_array(t).astype(float) for t in model.graph.initializer}
    gains, weights = [], []
    for node in model.graph.node:
        if node.op_type == "Conv":
            weights.append(values[node.input[1]][0, 0])
        elif node.op_type == "BatchNormalization":
            gamma, variance = values[node.input[1]][0], values[node.input[4]][0]
            gains.append(gamma / np.sqrt(variance + 1e-5))
    three, one, idle = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    three[:] = weights[0] * gains[0]
    one[1, 1] = weights[1][0, 0] * gains[1]
    idle[1, 1] = gains[2]
    folded = optimize(model, options=Options(verify=False)).model
    made = {t.name: numpy_helper.to_array(t).astype(float) for t in folded.graph.initializer}
    (conv,) = [n for n in folded.graph.node if n.op_type == "Conv"]
    kernel = made[conv.input[1]][0, 0]
    if not np.allclose(three + one + idle, kernel, atol=1e-6):
        raise AssertionError("the picture says something else than the fold")
    return [three, one, idle], kernel


def taps(scheme: str) -> plt.Figure:
    """Draw the taps of the branches of a block, and their sum."""
    parts, kernel = _kernels()
    limit = max(float(np.abs(k).max()) for k in [*parts, kernel])
    figure, places = plt.subplots(1, 4, figsize=(7.6, 2.5))
    titles = (
        "3x3, times its\nBatchNorm's gain",
        "+ 1x1: one tap\nin the middle",
        "+ identity: a 1x1\nof its gain",
        "= one 3x3",
    )
    for axes, image, title in zip(places, [*parts, kernel], titles, strict=True):
        axes.imshow(image, cmap="RdBu", vmin=-1.3 * limit, vmax=1.3 * limit)
        for (row, column), value in np.ndenumerate(image):
            axes.text(
                column, row, f"{value:.2f}" if value else "0", ha="center", va="center", fontsize=9, color="#000000"
            )
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.tight_layout()
    return figure


def border(scheme: str) -> plt.Figure:
    """Draw by how much two padded convolutions differ from their composition where the first has a bias."""
    net = Net(5)
    x = net.input((1, 1, 9, 9))
    rng = np.random.default_rng(0)
    one, three = rng.normal(size=(1, 1, 1, 1)), rng.normal(size=(1, 1, 3, 3))
    bias = net.constant([0.5])
    inner = net.op("Conv", x, net.constant(one), bias, channels=1, kernel_shape=[1, 1])
    honest = net.op("Conv", inner, net.constant(three), channels=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    wrong_bias = net.constant([0.5 * three.sum()])
    wrong = net.op("Conv", x, net.constant(three * one), wrong_bias, channels=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    model = net.model(honest, wrong)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first, second = session.run(None, {"x": rng.normal(size=(1, 1, 9, 9)).astype(np.float32)})
    gap = (second - first)[0, 0]
    figure, axes = plt.subplots(figsize=(4.6, 3.5))
    image = axes.imshow(gap, cmap="RdBu", vmin=-np.abs(gap).max(), vmax=np.abs(gap).max())
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("composed, minus the two in a row", fontsize=9)
    bar = figure.colorbar(image)
    bar.ax.tick_params(colors=INK[scheme])
    return figure


def way(scheme: str) -> plt.Figure:
    """Draw the way of one model."""
    figure, axes = plt.subplots(figsize=(7.6, 2.3))
    steps = [
        ("load", "file to message", "data"),
        ("lift", "op to map", "conv"),
        ("plan", "what to replace,\nat what price", "sum"),
        ("emit", "map to nodes", "conv"),
        ("prove", "each fold,\nin float64", "norm"),
        ("commit", "the only step that\nchanges the graph", "gate"),
        ("verify", "the whole model,\nagainst float64", "norm"),
        ("write", "all or nothing", "data"),
    ]
    for index, (name, text, tint) in enumerate(steps):
        x, y = (index % 4) * 2.4, -(index // 4) * 1.3
        _boxes(axes, scheme, [(name, x, y, tint)], [])
        axes.text(x, y - 0.32, text, ha="center", va="top", fontsize=7.5)
        if index % 4 < 3:
            axes.annotate(
                "", (x + 1.72, y), (x + 0.7, y), arrowprops={"arrowstyle": "-|>", "color": INK[scheme], "linewidth": 1}
            )
    axes.text(8.15, 0, "next row", fontsize=7.5, va="center")
    axes.set_xlim(-0.9, 9.0)
    axes.set_ylim(-2.2, 0.35)
    return figure


PICTURES: dict[str, Callable[[str], plt.Figure]] = {"block": block, "taps": taps, "border": border, "way": way}


def draw(name: str, scheme: str) -> bytes:
    """Return a picture as SVG in the ``light`` or ``dark`` scheme; the same bytes each time."""
    ink = INK[scheme]
    settings = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
        "text.color": ink,
        "axes.edgecolor": ink,
        "axes.titlecolor": ink,
    }
    with mpl.rc_context(settings):
        figure = PICTURES[name](scheme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue()
