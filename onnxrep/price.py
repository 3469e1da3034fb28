"""What a region costs before and after: the first, device-independent price.

A replacement must not start more kernels nor do more arithmetic, and must be strictly better in one of the two. Scales
and shifts cost a kernel and no arithmetic; a term without any convolution is never turned into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxrep.lattice import Geometry, NotAligned


@dataclass(frozen=True)
class Price:
    """Multiply-accumulates per position of the region's output, and kernels started."""

    macs: float = 0.0
    kernels: int = 0

    def __add__(self, other: Price) -> Price:
        return Price(self.macs + other.macs, self.kernels + other.kernels)

    def at(self, positions: float) -> Price:
        """Return the price of the same work on ``positions`` times as many positions."""
        return Price(self.macs * positions, self.kernels)

    def beats(self, other: Price) -> bool:
        """Whether this is strictly cheaper in one respect and no dearer in the other (rounding aside)."""
        slack = 1e-9 * other.macs
        no_dearer = self.macs <= other.macs + slack and self.kernels <= other.kernels
        return no_dearer and (self.macs < other.macs - slack or self.kernels < other.kernels)


@dataclass(frozen=True)
class Part:
    """What is summed into one kernel: some of the maps that a region applies to one source.

    Attributes:
        geometry: of their sum.
        anchored: whether a convolution is among them.
        unit: the factor if the sum is a multiple of the identity by construction, else None.
        members: indices of the maps in the order in which the region lists them.
        macs_unmerged: arithmetic of the original nodes where no convolution is among them (pools, pads).

    """

    geometry: Geometry
    anchored: bool
    unit: float | None
    members: tuple[int, ...]
    macs_unmerged: float = 0.0

    @property
    def can_stand_alone(self) -> bool:
        """Whether the part can be emitted: no convolution is put where there was none."""
        return self.anchored or self.geometry.is_diagonal

    @property
    def price(self) -> Price:
        """The price of one kernel for this part."""
        if self.anchored:
            return Price(self.geometry.macs, 1)
        return Price(self.macs_unmerged, 0 if self.unit in (1.0, -1.0) else 1)

    def joined(self, other: Part, lengths: Sequence[int] | None) -> Part | None:
        """Return the sum of two parts if it can be formed and is cheaper than the two and the Add between them."""
        try:
            geometry = self.geometry.plus(other.geometry, lengths)
        except NotAligned:
            return None
        unit = None if self.unit is None or other.unit is None else self.unit + other.unit
        both = Part(
            geometry,
            self.anchored or other.anchored,
            unit,
            tuple(sorted(self.members + other.members)),
            self.macs_unmerged + other.macs_unmerged,
        )
        return both if both.price.beats(self.price + other.price + Price(kernels=1)) else None


_PAIRWISE = 32


def _host_order(part: Part) -> tuple[bool, int, float, tuple[int, ...]]:
    """Order parts by how well others fit into them: convolutions, many taps, much work, no dilation."""
    kernel = part.geometry.kernel
    return (not part.anchored, -kernel.taps, -part.geometry.macs, kernel.dilations)


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


def total(parts: Sequence[Part]) -> Price:
    """Return the price of a sum of parts, the Adds between them included."""
    return sum((p.price for p in parts), Price(kernels=max(len(parts) - 1, 0)))
