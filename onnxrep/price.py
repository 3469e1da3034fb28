"""What a region costs before and after: the first, device-independent price.

A replacement must not do more arithmetic, start more kernels or need more nodes, and must be strictly better in one of
the three. Scales and shifts cost a kernel and no arithmetic; a term without any convolution is never turned into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnxrep.lattice import Geometry, NotAligned
from onnxrep.rates import Rates

_SLACK = 1e-9


@dataclass(frozen=True)
class Price:
    """Multiply-accumulates per position of the region's output, kernels started, and nodes."""

    macs: float = 0.0
    kernels: float = 0.0
    nodes: float = 0.0

    def __add__(self, other: Price) -> Price:
        return Price(self.macs + other.macs, self.kernels + other.kernels, self.nodes + other.nodes)

    def __mul__(self, share: float) -> Price:
        return Price(self.macs * share, self.kernels * share, self.nodes * share)

    def at(self, positions: float) -> Price:
        """Return the price of the same work on ``positions`` times as many positions."""
        return Price(self.macs * positions, self.kernels, self.nodes)

    def beats(self, other: Price) -> bool:
        """Whether this is strictly cheaper in one respect and no dearer in the others (rounding aside)."""
        slack = _SLACK * other.macs
        no_dearer = self.macs <= other.macs + slack and self.kernels <= other.kernels + _SLACK
        if not no_dearer or self.nodes > other.nodes + _SLACK:
            return False
        fewer = self.kernels < other.kernels - _SLACK or self.nodes < other.nodes - _SLACK
        return fewer or self.macs < other.macs - slack


@dataclass(frozen=True)
class Work:
    """What some kernels without neighbours do per position: multiply-accumulates, elements moved; and their number."""

    macs: float
    elements: float
    kernels: float = 0.0

    def seconds(self, rates: Rates, positions: float = 1.0) -> float:
        """Estimate the time for some positions."""
        return positions * (self.macs / rates.pointwise + self.elements / rates.elements) + self.kernels * rates.launch


KERNEL = Price(0.0, 1.0, 1.0)
"""An element-wise node."""

Emitted = Literal["", "Conv", "ConvTranspose", "MatMul", "Gemm", "MatMulFromLeft", "FlatConv", "FlatProduct"]
"""What a part is written as; empty for none of them."""

BIASED = frozenset(("Conv", "ConvTranspose", "FlatConv", "FlatProduct"))
"""What takes a bias at no cost, whatever its rank."""


_EMITTED_IN = {
    "first": frozenset(("Conv", "ConvTranspose", "MatMulFromLeft")),
    "last": frozenset(("MatMul", "Gemm")),
    "flat": frozenset(("Conv", "MatMul", "Gemm")),
}


def can_emit(layout: str, anchors: frozenset[str]) -> bool:
    """Whether convolutions and products of these op types can be written in a layout."""
    return anchors <= _EMITTED_IN[layout]


@dataclass(frozen=True)
class Part:
    """What is summed into one kernel: some of the maps that a region applies to one source.

    Attributes:
        geometry: of their sum.
        anchors: op types of the convolutions and products among them.
        unit: the factor if the sum copies channels times a factor by construction, else None.
        members: indices of the maps in the order in which the region lists them.
        grids: Concats that all of them pass: their sizes agree wherever the graph runs.
        macs_unmerged: arithmetic of the original nodes where no convolution is among them (pools, pads).
        stacks: Concats between a convolution and the source that all of them pass.
    """

    geometry: Geometry
    anchors: frozenset[str]
    unit: float | None
    members: tuple[int, ...]
    grids: frozenset[int] = frozenset()
    macs_unmerged: float = 0.0
    stacks: frozenset[int] = frozenset()

    def emitted(self, layout: str) -> Emitted:
        """Return the op that realises the part in a layout: no convolution is put where there was none."""
        if layout == "flat":
            product = self.anchors & {"MatMul", "Gemm"}
            return "FlatProduct" if product else "FlatConv" if "Conv" in self.anchors else ""
        if layout == "last":
            return "Gemm" if "Gemm" in self.anchors else "MatMul" if "MatMul" in self.anchors else ""
        if self.geometry.mode == "transpose":
            return "ConvTranspose"
        if self.anchors & {"Conv", "ConvTranspose"}:
            return "Conv"
        fits = self.geometry.is_pointwise and self.geometry.axes == 1
        return "MatMulFromLeft" if "MatMulFromLeft" in self.anchors and fits else ""

    def can_stand_alone(self, layout: str) -> bool:
        """Whether the part can be emitted: as a convolution or product, a scale, or the source itself."""
        if self.emitted(layout):
            return True
        return not self.anchors and self.geometry.is_channelwise and self.geometry.cols is None

    @property
    def price(self) -> Price:
        """The price of one kernel for this part."""
        if self.anchors:
            return Price(self.geometry.macs, 1.0, 1.0)
        idle = 0.0 if self.unit in (1.0, -1.0) else 1.0
        return Price(self.macs_unmerged, idle, idle)

    def joined(self, other: Part, lengths: Sequence[int] | None) -> Part | None:
        """Return the sum of two parts if it can be formed and is cheaper than the two and what joins them."""
        own, theirs = self.geometry.rows, other.geometry.rows
        stacked = own != theirs
        if stacked and not (self.anchors and other.anchors and own and theirs and _adjacent(own, theirs)):
            return None
        try:
            geometry = self.geometry.plus(other.geometry, lengths, bool(self.grids & other.grids))
        except NotAligned:
            return None
        both = Part(
            geometry,
            self.anchors | other.anchors,
            None if stacked or self.unit is None or other.unit is None else self.unit + other.unit,
            tuple(sorted(self.members + other.members)),
            self.grids & other.grids,
            self.macs_unmerged + other.macs_unmerged,
            self.stacks & other.stacks,
        )
        apart = self.price + other.price + (Price() if stacked else KERNEL)
        return both if both.price.beats(apart) else None


def _adjacent(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two ranges of channels touch without overlapping."""
    return first[1] == second[0] or second[1] == first[0]


_PAIRWISE = 32


def _host_order(part: Part) -> tuple[bool, int, float, tuple[int, ...]]:
    """Order parts by how well others fit into them: convolutions, many taps, much work, no dilation."""
    kernel = part.geometry.kernel
    return (not part.anchors, -kernel.taps, -part.geometry.macs, kernel.dilations)


def cover(parts: Sequence[Part], lengths: Sequence[int] | None) -> list[Part]:
    """Return the cheapest parts found by joining maps of one source: first into large hosts, then pairwise.

    ``lengths``: the source's sizes where they are static.
    """
    hosts: list[Part] = []
    for part in sorted(parts, key=_host_order):
        for index, host in enumerate(hosts):
            both = host.joined(part, lengths)
            if both is not None:
                hosts[index] = both
                break
        else:
            hosts.append(part)
    while 1 < len(hosts) <= _PAIRWISE:
        best: tuple[float, int, int, Part] | None = None
        for i, first in enumerate(hosts):
            for j in range(i + 1, len(hosts)):
                both = first.joined(hosts[j], lengths)
                if both is not None:
                    saved = first.price.macs + hosts[j].price.macs - both.price.macs
                    if best is None or saved > best[0]:
                        best = (saved, i, j, both)
        if best is None:
            break
        _, i, j, both = best
        hosts = [h for k, h in enumerate(hosts) if k not in (i, j)] + [both]
    return sorted(hosts, key=lambda p: p.members)
