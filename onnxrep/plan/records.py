"""What a plan consists of."""

from __future__ import annotations

from dataclasses import dataclass

from onnxrep.grouping import Span
from onnxrep.lattice import Array, Map
from onnxrep.lift import FIRST, Layout
from onnxrep.price import Price
from onnxrep.ranges import Part, Ranges, ranges

Attributes = tuple[tuple[str, int | str | tuple[int, ...]], ...]
"""Attributes of a node, by name."""


@dataclass(frozen=True)
class Refusal:
    """A node that was left alone although it is close to something that folds.

    ``code`` is one of :data:`onnxrep.reasons.REASONS`; ``detail`` says what was met here.
    """

    position: int
    code: str
    detail: str


@dataclass(frozen=True)
class Step:
    """What is done to a source before it is read: a movement, an AveragePool that what is pointwise passes, or a shift.

    Attributes:
        order: of the Transpose.
        shape: of the Reshape (0 copies a size, -1 takes what is left).
        pool: the attributes of the AveragePool.
        shift: what is added, one number or one per channel.
    """

    order: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    pool: Attributes = ()
    shift: tuple[float, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether it can be written."""
        return bool(self.order or self.shape or self.pool or self.shift)

    @property
    def price(self) -> Price:
        """What it costs; a pool costs what it did before, which is not counted either."""
        return Price(0.0, float(bool(self.order or self.shift)), 0.0 if self.pool else 1.0)


@dataclass(frozen=True)
class Outlet:
    """How the sum of a region's maps becomes its output: by movements, mostly none.

    Attributes:
        layout: in which the sum is made.
        rank: of the sum.
        views: results of the movements that all ways to the output pass, from the output down.
        steps: the same in normal form, from the sum up.
    """

    layout: Layout
    rank: int
    views: tuple[tuple[str, Layout], ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def axes(self) -> int:
        """The number of spatial axes of the sum."""
        return self.rank - 2 if self.layout.kind == "first" else 0


@dataclass(frozen=True)
class Origin:
    """What a kernel reads: a value, after some movements, or a Concat of several such.

    Attributes:
        value: its name; of a Concat, that of the first.
        steps: the movements.
        after: position behind which the movements can be made.
        parts: what is concatenated, each with the indices of its maps; empty for a single value.
    """

    value: str
    steps: tuple[Step, ...] = ()
    after: int = -1
    parts: tuple[tuple[Origin, tuple[int, ...]], ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """The values read."""
        return tuple(v for origin, _ in self.parts for v in origin.values) or (self.value,)


@dataclass(frozen=True)
class Summand:
    """One kernel's worth of a region: the sum of some maps of one source, with its numbers.

    Attributes:
        origin: what it reads.
        map: with numbers; all rows of the region's output, though only ``map.geometry.rows`` may be non-zero.
        anchors: op types of the convolutions or products in it, empty if there is none.
        unit: 1 or -1 if this is the source itself or its negative.
        members: positions of the ops that read the source.
        parts: the ranges of the maps in it.
    """

    origin: Origin
    map: Map
    anchors: frozenset[str]
    unit: float | None
    members: tuple[int, ...]
    parts: tuple[Part, ...] = ()

    @property
    def ranges(self) -> Ranges | None:
        """The range of the kernel that it becomes; None if it becomes none."""
        first = self.map.geometry.blocks.rows[0]
        return ranges(self.map.weight, first, self.parts) if self.anchors else None


@dataclass(frozen=True)
class Region:
    """Nodes to be replaced together.

    Attributes:
        root: position of the node that makes the region's output.
        output: the value that it makes.
        layout: in which the output was looked at.
        outlet: in which layout the maps are meant, and how the output is made of their sum.
        removed: positions of the nodes that nothing else needs, root included, ascending.
        covered: positions of all nodes whose work the region takes over; more than ``removed`` where others share them.
        shared: of those, the ones that must go with all who share them, or the region is not worth it.
        segments: rows of the output, and the summands that make them; stacked in this order.
        bias: ``[channels]``, or None for zero.
        kind: ``merge`` if parallel branches become one, else ``fuse``.
        before, after: price per position of the output.
        rounded: whether a border counts as one of a bias that differs from it by rounding.
    """

    root: int
    output: str
    layout: Layout
    outlet: Outlet
    removed: tuple[int, ...]
    covered: tuple[int, ...]
    shared: tuple[int, ...]
    segments: tuple[tuple[Span, tuple[Summand, ...]], ...]
    bias: Array | None
    kind: str
    before: Price
    after: Price
    rounded: bool = False

    @property
    def spatial(self) -> bool:
        """Whether the sources are read as images, channels on axis 1."""
        turned = any(step.order or step.shape or step.pool for s in self.summands for step in s.origin.steps)
        return self.outlet.layout == FIRST and not turned

    @property
    def sources(self) -> tuple[str, ...]:
        """The values read, each once."""
        return tuple(dict.fromkeys(v for s in self.summands for v in s.origin.values))

    @property
    def summands(self) -> tuple[Summand, ...]:
        """All summands of all segments."""
        return tuple(s for _, summands in self.segments for s in summands)
