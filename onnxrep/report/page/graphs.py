"""The little graph of a fold: where its nodes stand, and the picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from markupsafe import Markup

from onnxrep.report.page import canvas
from onnxrep.report.page.canvas import picture

_WIDE, _HIGH, _ACROSS, _DOWN = 104.0, 38.0, 14.0, 24.0
_MOST = 48
"""Nodes of a graph that is still drawn."""

_ANCHORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Box:
    """A node of a graph: two lines of text, and the numbers of those that it reads (negative: a source)."""

    title: str
    note: str
    reads: tuple[int, ...]


@dataclass
class _Spot:
    """A place in the layout: of a box, of a source, or of an edge that passes a layer."""

    layer: int
    box: int | None
    above: list[int] = field(default_factory=list)
    x: float = 0.0


@lru_cache(256)
def draw(boxes: tuple[Box, ...], sources: int, title: str, description: str) -> Markup:
    """Return the picture of a graph, from its sources at the top to its last node; empty if it is too large."""
    if len(boxes) + sources > _MOST:
        return Markup("")
    spots = _spots(boxes, sources)
    _spread(spots)
    layers = max(s.layer for s in spots) + 1
    left = min(s.x for s in spots)
    width = max(s.x for s in spots) - left + _WIDE + 8
    height = layers * (_HIGH + _DOWN) + _HIGH + 4
    with picture(width, height) as page:

        def middle(spot: _Spot) -> tuple[float, float]:
            return spot.x - left + width / 2 - (width - _WIDE - 8) / 2, 4 + spot.layer * (_HIGH + _DOWN) + _HIGH / 2

        for spot in spots:
            x, y = middle(spot)
            for index in spot.above:
                above = spots[index]
                fx, fy = middle(above)
                start = fy + (_HIGH / 2 if above.box is not None else 0)
                _edge(page, (fx, start), (x, y - _HIGH / 2 if spot.box is not None else y), arrow=spot.box is not None)
        for spot in spots:
            if spot.box is not None:
                _box(page, boxes[spot.box] if spot.box >= 0 else None, *middle(spot))
        x, y = middle(spots[sources + len(boxes) - 1])
        _edge(page, (x, y + _HIGH / 2), (x, y + _HIGH / 2 + _DOWN), arrow=True)
        page.text(x, y + _HIGH / 2 + _DOWN + 12, "output", 11, color=canvas.MUTED)
        return page.svg(title, description)


def _spots(boxes: Sequence[Box], sources: int) -> list[_Spot]:
    """Return sources, boxes (in this order), and a spot per layer that an edge passes."""
    spots = [_Spot(0, -1) for _ in range(sources)]
    for number, box in enumerate(boxes):
        above = [sources + r if r >= 0 else -1 - r for r in box.reads]
        spots.append(_Spot(max((spots[a].layer + 1 for a in above), default=0), number, above))
    for spot in spots[:]:
        for position, index in enumerate(spot.above):
            last = index
            for layer in range(spots[index].layer + 1, spot.layer):
                spots.append(_Spot(layer, None, [last]))
                last = len(spots) - 1
            spot.above[position] = last
    return spots


def _spread(spots: list[_Spot]) -> None:
    """Give every spot its place across: near those that it is joined with, and apart from its neighbours."""
    layers: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for index, spot in enumerate(spots):
        layers.setdefault(spot.layer, []).append(index)
        for above in spot.above:
            below.setdefault(above, []).append(index)
    step = _WIDE + _ACROSS
    for row in layers.values():
        for place, index in enumerate(row):
            spots[index].x = (place - (len(row) - 1) / 2) * step
    for turn in range(12):
        for layer in sorted(layers, reverse=bool(turn % 2)):
            row = layers[layer]
            joined = {i: below.get(i, []) if turn % 2 else spots[i].above for i in row}
            wish = {i: sum(spots[j].x for j in near) / len(near) if near else spots[i].x for i, near in joined.items()}
            row.sort(key=lambda i: (wish[i], spots[i].x))
            places = [wish[i] for i in row]
            for k in range(1, len(places)):
                places[k] = max(places[k], places[k - 1] + step)
            shift = sum(wish[i] - p for i, p in zip(row, places, strict=True)) / len(row)
            for i, p in zip(row, places, strict=True):
                spots[i].x = p + shift


def _box(page: canvas.Picture, box: Box | None, x: float, y: float) -> None:
    """Draw a node, or a source where there is none."""
    from matplotlib.patches import FancyBboxPatch

    if box is None:
        page.text(x, y + 6, "input", 11, color=canvas.MUTED)
        return
    strong = box.title in _ANCHORS
    page.axes.add_patch(
        FancyBboxPatch(
            (x - _WIDE / 2 + 4, y - _HIGH / 2 + 4),
            _WIDE - 8,
            _HIGH - 8,
            boxstyle="round,pad=4,rounding_size=6",
            facecolor=canvas.SOFT if strong else canvas.SURFACE,
            edgecolor=canvas.ACCENT if strong else canvas.LINE,
            linewidth=1.3,
        )
    )
    title = _SHORT.get(box.title, box.title)
    title = title if len(title) <= 15 else f"{title[:14]}…"
    page.text(x, y - (7 if box.note else 0), title, 12, weight="bold" if strong else "normal")
    if box.note:
        page.text(x, y + 9, box.note, 10, color=canvas.MUTED)


_SHORT = {"BatchNormalization": "BatchNorm", "ConvTranspose": "ConvTranspose"}


def _edge(page: canvas.Picture, start: tuple[float, float], end: tuple[float, float], *, arrow: bool) -> None:
    """Draw an edge as a gentle curve."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    half = (end[1] - start[1]) / 2
    points = [start, (start[0], start[1] + half), (end[0], end[1] - half), end]
    path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    style = "-|>,head_length=4,head_width=2.5" if arrow else "-"
    page.axes.add_patch(
        FancyArrowPatch(
            path=path, arrowstyle=style, fill=arrow, edgecolor=canvas.MUTED, facecolor=canvas.MUTED, linewidth=1.1
        )
    )
