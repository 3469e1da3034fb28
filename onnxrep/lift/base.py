"""What a lift is given and what it returns.

A lift reads one node and states its output as a form over the node's data inputs: first without numbers
(:class:`Lifted`), then, only for regions that are worth it, with them. It understands a set of attributes and declines
on any other.

The same value can be looked at in several *layouts*: an image ``[N, C, ...]`` has its channels on axis 1, the tokens of
a transformer have them last, and a partition of a RepMLP counts every pixel of every channel as one. A lift is asked
for a value in one layout; sums and scales exist in all of them, a Conv in the first only, a MatMul in the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.constants import Constant, Constants
from onnxrep.graph import Scope
from onnxrep.lattice import Array, Form, Geometry
from onnxrep.shapes import Dim, Shape, Shapes


@dataclass(frozen=True, order=True)
class Layout:
    """Where a value's channels are.

    ``kind`` is ``first`` (axis 1, the axes behind it are spatial), ``last`` (the last axis, all others are batch) or
    ``flat`` (the last axes that together have ``size`` elements, flattened; all others are batch).
    """

    kind: str
    size: int = 0


FIRST = Layout("first")
LAST = Layout("last")


class Decline(Exception):
    """A documented refusal to lift a node.

    ``code`` is stable and listed in :data:`onnxrep.reasons.REASONS`; ``detail`` says what was met here.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Branch:
    """How a value depends on one of the data inputs of the node that makes it.

    Attributes:
        source: the value read.
        geometry: of the map.
        unit: the factor if the map copies channels times a factor by construction (an Add's operand is 1, the second
            operand of Sub is -1), else None.
        layout: in which the source is read; None for that of the output.
    """

    source: str
    geometry: Geometry
    unit: float | None = None
    layout: Layout | None = None

    def view(self, layout: Layout) -> tuple[str, Layout]:
        """Return the source with the layout in which it is read; ``layout`` is that of the output."""
        return self.source, self.layout or layout


@dataclass(frozen=True)
class Lifted:
    """A node's output as a form over the node's data inputs.

    Attributes:
        branches: one per data input, in order.
        numbers: reads the weights and returns the maps, in the order of ``branches``, and the bias; may decline.
        anchor: the op type of a convolution or matrix product, empty for any other op.
        macs: multiply-accumulates per position of the output.
        kernels: how many kernels a runtime starts for the node.
        nodes: 1, or 0 for a node that only renames its input.
        biased: whether there may be a bias.
        within: positions of other nodes that go with the node, where it stands for a whole chain.
        moves: whether the node only moves positions about (Reshape, Transpose): what is pointwise passes it.
        averages: whether each position is an average of some of the input's: what is pointwise passes it as well.
    """

    branches: tuple[Branch, ...]
    numbers: Callable[[], Form]
    anchor: str = ""
    macs: float = 0.0
    kernels: float = 1.0
    nodes: int = 1
    biased: bool = False
    moves: bool = False
    averages: bool = False
    within: tuple[int, ...] = ()

    def lets_pass(self, chain: Sequence[object]) -> bool:
        """Whether what is pointwise passes the node; an average only in front of the movements in ``chain``."""
        return self.moves or (self.averages and bool(chain))


@dataclass(frozen=True)
class Facts:
    """What a lift may know about the values of a scope, and the layout in which it is asked."""

    scope: Scope
    constants: Constants
    shapes: Shapes
    layout: Layout = field(default=FIRST)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.scope.model.opset

    def within(self, layout: Layout) -> Facts:
        """Return the same facts for another layout."""
        return self if layout == self.layout else replace(self, layout=layout)

    def is_constant(self, name: str) -> bool:
        """Whether a value depends on no data."""
        return self.constants.has(name)

    def constant(self, name: str, what: str) -> Constant:
        """Return a constant parameter; ``what`` names it in the refusal.

        Raises:
            Decline: it is not constant.
        """
        constant = self.constants.get(name)
        if constant is not None:
            return constant
        home = self.scope.home(name)
        if home is not None and name in home.initializers:
            raise Decline("overridable", f"{what} {name} is a graph input that a caller may override")
        if home is not None and name in home.producer and home.nodes[home.producer[name]].op == "DequantizeLinear":
            raise Decline("quantized", f"{what} {name} is dequantized from integers")
        raise Decline("not-constant", f"{what} {name} is computed from data")

    def generators(self, output: str, names: Iterable[str]) -> tuple[int, tuple[int, ...]]:
        """Return how many nodes calculate the weights of the node that makes ``output``, and which serve it alone."""
        every = {p for name in names if name for p in self.constants.generators(name)}
        return len(every), tuple(self.scope.serving(every, self.scope.producer[output]))

    def integers(self, name: str, what: str) -> list[int]:
        """Return a vector of integers that is constant or follows from sizes that are.

        Raises:
            Decline: it depends on data.
        """
        vector = self.shapes.vector(name)
        numbers = [d for d in vector or () if isinstance(d, int)]
        if vector is None or len(numbers) < len(vector):
            return [int(v) for v in self.constant(name, what).values().reshape(-1)]
        return numbers

    def shape(self, name: str) -> Shape:
        """Return a value's shape.

        Raises:
            Decline: not even the rank is known.
        """
        shape = self.shapes.of(name)
        if shape is None:
            raise Decline("unknown-shape", f"the rank of {name} is not known")
        return shape

    def image(self, name: str) -> tuple[int, int]:
        """Return ``(channels, spatial axes)`` of a value in the present layout.

        Raises:
            Decline: rank or channel count is not known, or the value has no such layout.
        """
        shape = self.shape(name)
        if len(shape) < 2:
            raise Decline("unknown-shape", f"{name} has no channel axis")
        if self.layout.kind == "flat":
            if suffix(shape, self.layout.size) is None:
                raise Decline("not-linear")
            return self.layout.size, 0
        channels = shape[1] if self.layout == FIRST else shape[-1]
        if not isinstance(channels, int):
            raise Decline("unknown-shape", f"the number of channels of {name} is not known")
        if channels < 1:
            raise Decline("unknown-shape", f"{name} has no channels")
        return channels, len(shape) - 2 if self.layout == FIRST else 0

    def channel_axes(self, shape: Shape) -> range:
        """Return the axes of a value that hold its channels in the present layout."""
        rank = len(shape)
        if self.layout == FIRST:
            return range(1, 2)
        return range(rank - (suffix(shape, self.layout.size) or 1 if self.layout.kind == "flat" else 1), rank)

    def check_per_channel(self, dims: Sequence[int], shape: Shape) -> None:
        """Decline a constant that, aligned to the right as ONNX broadcasts, is not one number per channel."""
        rank, channels = len(shape), self.channel_axes(shape)
        if len(dims) > rank:
            raise Decline("broadcast", f"a constant of rank {len(dims)} raises the rank of a value of rank {rank}")
        for axis, dim in enumerate((1,) * (rank - len(dims)) + tuple(dims)):
            if dim != 1 and axis not in channels:
                raise Decline(
                    "not-per-channel", f"a constant of shape {list(dims)} varies along axis {axis}, not per channel"
                )
            if dim not in (1, shape[axis]):
                raise Decline("broadcast", f"a constant of shape {list(dims)} changes the number of channels")

    def per_channel(self, constant: Constant, shape: Shape) -> Array:
        """Return a checked constant as a vector ``[channels]``."""
        axes = self.channel_axes(shape)
        full = [int(d) for d in (shape[a] for a in axes) if isinstance(d, int)]
        values = constant.floats()
        padded = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
        cut = padded.reshape([padded.shape[a] for a in axes])
        return np.broadcast_to(cut, full).reshape(-1).copy()


def suffix(shape: Sequence[Dim], size: int) -> int | None:
    """Return how many last axes have ``size`` elements together, None if no number of them does."""
    total = 1
    for count, dim in enumerate(reversed(shape), 1):
        if not isinstance(dim, int):
            return None
        total *= dim
        if total == size and count < len(shape):
            return count
    return None


def allow(node: gs.Node, known: Iterable[str]) -> None:
    """Decline a node that carries an attribute beyond the known ones."""
    extra = set(node.attrs) - set(known)
    if extra:
        raise Decline("unknown-attribute", f"{node.op} has the attribute {min(extra)}")


def inputs(node: gs.Node, least: int, most: int) -> list[str]:
    """Return the input names, padded with empty ones to ``most``; decline on another count."""
    names = [v.name for v in node.inputs]
    while names and not names[-1]:
        names.pop()
    if not least <= len(names) <= most or not all(names[:least]):
        raise Decline("unknown-attribute", f"{node.op} has {len(names)} inputs")
    return names + [""] * (most - len(names))


def finite(values: Array, what: str) -> Array:
    """Return the values if all are finite, else decline."""
    if not np.all(np.isfinite(values)):
        raise Decline("not-finite", f"{what} holds NaN or infinity")
    return values


def copies(source: str, geometry: Geometry, factor: float = 1.0, layout: Layout | None = None) -> Branch:
    """Return a branch that copies channels times a factor."""
    return Branch(source, geometry, factor, layout)


def elements(dims: Iterable[int]) -> int:
    """Return the number of elements of a static shape."""
    return math.prod(dims)
