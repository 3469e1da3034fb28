"""Affine, shift-invariant maps between images, and how they combine.

A map sends ``x : [N, inputs, L_1..L_n]`` to ``y : [N, outputs, P_1..P_n]`` by

    y[o, p] = bias[o] + sum over taps t and channels i of  weight[o, i, t] * x~[i, stride * p + t]
    P       = floor((L + size) / stride) + 1                                    on every axis

where ``x~`` is ``x`` continued by zero. Zero padding is therefore no operation of its own: it is a tap that reaches
outside. A convolution has taps ``dilation * k - pad_begin`` and ``size = pads - dilation * (kernel - 1) - 1``.

Three layers: :class:`Geometry` says where a map reads, how large its result is and what it costs, without any number;
:class:`Map` adds the weight; :class:`Form` is a sum of maps over several sources with **one** bias. Everything is
float64 numpy. Nothing here knows ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxrep.grouping import Blocks, Span

Array = NDArray[np.float64]
Taps = tuple[tuple[int, ...], ...]
Mode = Literal["conv", "transpose", "SAME_UPPER", "SAME_LOWER"]
"""How taps are meant. ``conv``: as in the module's equation. ``transpose``: the dual map, in which input ``p`` writes
to output ``stride * p + t`` and ``size`` is the constant of ``Q = stride * (L - 1) + size``. ``SAME_*``: a convolution
whose begin pads depend on ``L``; its taps are relative to an unknown begin and its size is ``ceil(L / stride)``."""


class NotAligned(ValueError):
    """Two maps whose results do not lie on the same grid cannot be summed."""


class Vanishes(ValueError):
    """A composition is zero by construction: the second map reads channels that the first does not write."""


class Inexact(ValueError):
    """A composition that differs from its parts at a border (or that this algebra does not express)."""


def positions(length: int, stride: int, size: int) -> int:
    """Return P of the module's equation, at least 0."""
    return max((length + size) // stride + 1, 0)


@dataclass(frozen=True)
class Kernel:
    """The attributes of the convolution that realises a geometry, per axis; ``first`` is its first tap."""

    first: tuple[int, ...]
    shape: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    output_padding: tuple[int, ...]

    @property
    def taps(self) -> int:
        """The number of kernel positions, zero taps included."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Geometry:
    """Where a map reads and how large its result is.

    Attributes:
        outputs, inputs: channel counts.
        group: ``weight[o, i] = 0`` unless ``o`` and ``i`` lie in the same of ``group`` contiguous equal blocks of the
            rectangle ``rows`` x ``cols``.
        taps: per axis the sorted offsets, relative to ``stride * p``; the map's taps are their product.
        stride: per axis, positive.
        size: per axis, the constant of the size equation.
        mode: see :data:`Mode`.
        rows, cols: the only outputs and inputs with non-zero weights; None for all. A Slice of channels has ``cols``, a
            Concat ``rows``.
        tiles: whether lengths are multiples of the stride in every run (SpaceToDepth): nothing is left over at the end.

    """

    outputs: int
    inputs: int
    group: int
    taps: Taps
    stride: tuple[int, ...]
    size: tuple[int, ...]
    mode: Mode = "conv"
    rows: Span | None = None
    cols: Span | None = None
    tiles: bool = False

    @staticmethod
    def channels(outputs: int, inputs: int, rows: Span, cols: Span, axes: int) -> Geometry:
        """Return the geometry of a map that copies the channels ``cols`` of its input to ``rows`` of its output."""
        plain = Geometry.pointwise(outputs, inputs, rows[1] - rows[0], axes)
        return replace(plain, rows=_span(rows, outputs), cols=_span(cols, inputs))

    @staticmethod
    def pointwise(outputs: int, inputs: int, group: int, axes: int) -> Geometry:
        """Return the geometry of a 1x1 map on ``axes`` spatial axes."""
        return Geometry(outputs, inputs, group, ((0,),) * axes, (1,) * axes, (-1,) * axes)

    @staticmethod
    def identity(channels: int, axes: int) -> Geometry:
        """Return the geometry of a map that treats each channel and position by itself."""
        return Geometry.pointwise(channels, channels, channels, axes)

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return len(self.taps)

    @cached_property
    def is_pointwise(self) -> bool:
        """Whether the map reads only the position that it writes."""
        plain = self.mode == "conv" and all(t == (0,) for t in self.taps)
        return plain and all(s == 1 for s in self.stride) and all(c == -1 for c in self.size)

    @property
    def is_diagonal(self) -> bool:
        """Whether the map is pointwise and treats each channel by itself."""
        return self.is_pointwise and self.group == self.outputs == self.inputs

    @property
    def is_channelwise(self) -> bool:
        """Whether the map is pointwise and each output depends on one input channel at most."""
        return self.is_pointwise and self.blocks.is_diagonal

    @cached_property
    def blocks(self) -> Blocks:
        """Where weights are non-zero."""
        return Blocks(self.rows or (0, self.outputs), self.cols or (0, self.inputs), self.group)

    def _with(self, blocks: Blocks) -> Geometry:
        """Return the geometry with other blocks."""
        rows, cols = _span(blocks.rows, self.outputs), _span(blocks.cols, self.inputs)
        return replace(self, rows=rows, cols=cols, group=blocks.group)

    @cached_property
    def reading_all(self) -> Geometry:
        """The geometry of the same map written so that it reads all inputs, as a convolution does."""
        return self if self.cols is None else self._with(self.blocks.within(self.blocks.rows, (0, self.inputs)))

    def with_axes(self, axes: int) -> Geometry:
        """Return a pointwise geometry for another number of spatial axes.

        Raises:
            Inexact: the map is not pointwise.
        """
        if axes == self.axes:
            return self
        if not self.is_pointwise:
            raise Inexact("a map that reads neighbours does not pass a reshape or transpose")
        return replace(self, taps=((0,),) * axes, stride=(1,) * axes, size=(-1,) * axes)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight: ``(rows, columns / group, *taps)``."""
        return (self.blocks.height, self.blocks.width // self.group, *map(len, self.taps))

    def result(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of the result for an input of ``lengths``."""
        if self.mode == "transpose":
            return tuple(s * (n - 1) + e for n, s, e in zip(lengths, self.stride, self.size, strict=True))
        return tuple(positions(n, s, c) for n, s, c in zip(lengths, self.stride, self.size, strict=True))

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel that realises the taps, with zero taps where pads would be negative or offsets irregular."""
        columns = zip(self.taps, self.stride, self.size, strict=True)
        axes = [_kernel_axis(t, s, c, self.mode) for t, s, c in columns]
        return Kernel(*zip(*axes, strict=True)) if axes else Kernel((), (), (), (), (), ())

    @cached_property
    def macs(self) -> float:
        """Multiply-accumulates per position of the result of a convolution for it, zero taps included."""
        blocks = self.reading_all.blocks
        dense = self.kernel.taps * blocks.height * blocks.width / blocks.group
        return dense / math.prod(self.stride) if self.mode == "transpose" else dense

    @cached_property
    def coarsening(self) -> float:
        """How many positions of the source there are per position of the result."""
        steps = math.prod(self.stride)
        return 1 / steps if self.mode == "transpose" else float(steps)

    @property
    def steps(self) -> tuple[int, ...]:
        """How far the taps move, per axis, where the result is read one position further on."""
        return (-1,) * self.axes if self.mode == "transpose" else self.stride

    def plus(self, other: Geometry, lengths: Sequence[int] | None = None, same_grid: bool = False) -> Geometry:
        """Return the geometry of the sum of two maps of one source.

        Args:
            other: of the other map.
            lengths: the source's sizes where they are static; equal result sizes for them then suffice.
            same_grid: the results are known to have equal sizes in every run (a Concat demands it).

        Raises:
            NotAligned: the results differ in channels, stride or size.

        """
        if (self.outputs, self.inputs, self.stride) != (other.outputs, other.inputs, other.stride):
            raise NotAligned("the branches differ in channels or stride")
        if self.mode != other.mode and not (self.is_pointwise and other.is_pointwise):
            raise NotAligned("a branch is padded by SAME for a size that is not known")
        static = lengths is not None and self.result(lengths) == other.result(lengths)
        if self.size != other.size and not same_grid and not static:
            raise NotAligned(
                f"the branches' sizes agree only for some inputs (size constants {self.size}, {other.size})"
            )
        if self.mode.startswith("SAME") and self.taps != other.taps:
            raise NotAligned("the branches' SAME pads depend on a size that is not known")
        taps = tuple(tuple(sorted({*a, *b})) for a, b in zip(self.taps, other.taps, strict=True))
        size = tuple(map(min, self.size, other.size)) if same_grid else self.size
        return replace(self, taps=taps, size=size)._with(self.blocks.union(other.blocks))

    def after(self, first: Geometry) -> Geometry:
        """Return the geometry of ``self`` applied to the result of ``first``; see :func:`border_fault` for exactness.

        Raises:
            Inexact: two maps of which none is pointwise are no such map together: only a convolution behind a
                convolution is, and one without stride behind a transposed one.
            Vanishes: the result is zero.

        """
        if self.inputs != first.outputs or self.axes != first.axes:
            raise Inexact("the maps do not fit each other")
        blocks = self.blocks.after(first.blocks)
        if blocks is None:
            raise Vanishes("the second map reads only channels that the first does not write")
        channels: dict[str, Any] = {
            "outputs": self.outputs,
            "inputs": first.inputs,
            "group": blocks.group,
            "rows": _span(blocks.rows, self.outputs),
            "cols": _span(blocks.cols, first.inputs),
        }
        if self.is_pointwise:
            return replace(first, **channels)
        if first.is_pointwise:
            return replace(self, **channels)
        if self.mode != "conv" or first.mode.startswith("SAME"):
            raise Inexact("only pointwise maps combine in front of a transposed convolution, or with SAME padding")
        if first.mode == "transpose" and max(self.stride) > 1:
            raise Inexact("a convolution with a stride does not combine with a transposed one in front of it")
        taps, stride, size = [], [], []
        for tb, ta, sb, sa, step, cb, ca in zip(
            self.taps, first.taps, self.stride, first.stride, first.steps, self.size, first.size, strict=True
        ):
            taps.append(tuple(sorted({step * u + v for u, v in product(tb, ta)})))
            stride.append(sa * sb)
            size.append(ca + abs(step) * (1 + cb))
        return Geometry(taps=tuple(taps), stride=tuple(stride), size=tuple(size), mode=first.mode, **channels)


def _span(span: Span | None, count: int) -> Span | None:
    """Return None for a span of all channels."""
    return None if span == (0, count) else span


def _kernel_axis(taps: tuple[int, ...], stride: int, size: int, mode: Mode) -> tuple[int, int, int, int, int, int]:
    """Return one axis of :class:`Kernel`; zero taps stand where a pad would be negative, which ONNX does not allow."""
    low = min(taps[0], 0)
    high = max(taps[-1], low)
    begin, end, extra = -low, 0, 0
    if mode == "transpose":
        extra = size - (high - low + 1) + begin
        if extra < 0:
            extra, end = 0, -extra
        elif extra >= stride:
            high, extra = high + extra - stride + 1, stride - 1
    elif mode == "conv":
        end = size + (high - low) + 1 - begin
        if end < 0:
            high, end = high - end, 0
    step = math.gcd(high - low, *(t - low for t in taps)) or 1
    return low, (high - low) // step + 1, step, begin, end, extra


@dataclass(frozen=True)
class Map:
    """A geometry with its weight, float64 of shape ``(rows, columns / group, *taps)``."""

    geometry: Geometry
    weight: Array

    def __post_init__(self) -> None:
        if self.weight.shape != self.geometry.weight_shape:
            raise ValueError(f"weight of shape {self.weight.shape}, expected {self.geometry.weight_shape}")

    @staticmethod
    def diagonal(factors: Array, axes: int) -> Map:
        """Return the map that multiplies channel ``i`` by ``factors[i]``; ``factors : [channels]``."""
        return Map(Geometry.identity(len(factors), axes), factors.astype(np.float64).reshape(-1, *(1,) * (axes + 1)))

    @staticmethod
    def identity(channels: int, axes: int, factor: float = 1.0) -> Map:
        """Return ``factor`` times the identity."""
        return Map.diagonal(np.full(channels, factor), axes)

    @cached_property
    def support(self) -> Taps:
        """Per axis the taps with a non-zero weight."""
        used = np.any(self.weight[:1], axis=(0, 1))
        if not np.all(used):  # mostly, the first row says it all
            used = np.any(self.weight, axis=(0, 1))
        kept = []
        for axis, taps in enumerate(self.geometry.taps):
            others = tuple(a for a in range(used.ndim) if a != axis)
            kept.append(tuple(t for t, any_ in zip(taps, np.any(used, axis=others), strict=True) if any_))
        return tuple(kept)

    def response(self, vector: Array) -> Array:
        """Return the result ``[outputs]`` for the image of constant value ``vector : [inputs]``, away from borders."""
        blocks = self.geometry.blocks
        sums = self.weight.reshape(*self.weight.shape[:2], -1).sum(axis=2)
        sums = sums.reshape(blocks.group, blocks.height // blocks.group, -1)
        columns = vector[slice(*blocks.cols)].reshape(blocks.group, -1, 1)
        result: Array = np.zeros(self.geometry.outputs)
        result[slice(*blocks.rows)] = np.matmul(sums, columns).reshape(-1)
        return result

    @cached_property
    def reads(self) -> NDArray[np.bool_]:
        """Which input channels have a non-zero weight, ``[inputs]``."""
        blocks = self.geometry.blocks
        weight = self.weight.reshape(blocks.group, blocks.height // blocks.group, blocks.width // blocks.group, -1)
        used: NDArray[np.bool_] = np.zeros(self.geometry.inputs, bool)
        used[slice(*blocks.cols)] = np.any(weight, axis=(1, 3)).reshape(-1)
        return used

    @staticmethod
    def channels(geometry: Geometry, factor: float = 1.0) -> Map:
        """Return ``factor`` times the map that copies channels, for a geometry made by :meth:`Geometry.channels`."""
        return Map(geometry, np.full(geometry.weight_shape, factor))

    def with_axes(self, axes: int) -> Map:
        """Return a pointwise map for another number of spatial axes."""
        geometry = self.geometry.with_axes(axes)
        return self if geometry is self.geometry else Map(geometry, self.weight.reshape(geometry.weight_shape))

    def regrouped(self, group: int) -> Map:
        """Return the same map written with fewer groups."""
        return self.spread(replace(self.geometry.blocks, group=group))

    @property
    def reading_all(self) -> Map:
        """The same map written so that it reads all inputs, as a convolution does."""
        return self.spread(self.geometry.reading_all.blocks)

    def spread(self, blocks: Blocks) -> Map:
        """Return the same map written with other blocks, which hold its own."""
        own = self.geometry.blocks
        if own == blocks:
            return self
        geometry = self.geometry._with(blocks)
        weight = np.zeros(geometry.weight_shape)
        rows = np.arange(own.rows[0] - blocks.rows[0], own.rows[1] - blocks.rows[0])
        cols = (own.starts - blocks.starts[rows])[:, None] + np.arange(own.width // own.group)
        weight[rows[:, None], cols] = self.weight
        return Map(geometry, weight)

    def part(self, blocks: Blocks) -> Array:
        """Return the weight of some of the map's blocks, or (with one block) of a part of them."""
        own = self.geometry.blocks
        if own == blocks:
            return self.weight
        rows = np.arange(blocks.rows[0] - own.rows[0], blocks.rows[1] - own.rows[0])
        columns = blocks.starts[:, None] + np.arange(blocks.width // blocks.group)
        cols = columns - own.starts[rows][:, None]
        present = (cols >= 0) & (cols < own.width // own.group)
        found: Array = np.zeros((*cols.shape, *self.weight.shape[2:]))
        at = np.nonzero(present)
        found[at] = self.weight[rows[at[0]], cols[at]]
        return found

    def plus(self, other: Map, lengths: Sequence[int] | None = None, same_grid: bool = False) -> Map:
        """Return the sum of two maps of one source; see :meth:`Geometry.plus`."""
        geometry = self.geometry.plus(other.geometry, lengths, same_grid)
        first, second = (self, other) if self.weight.size >= other.weight.size else (other, self)
        weight = first.spread(geometry.blocks).weight
        if first.geometry.taps == geometry.taps:
            total = weight.copy()
        else:
            total = np.zeros(geometry.weight_shape)
            total[_grid(first.geometry.taps, geometry.taps)] = weight
        total[_grid(second.geometry.taps, geometry.taps)] += second.spread(geometry.blocks).weight
        return Map(geometry, total)

    def after(self, first: Map) -> Map:
        """Return ``self`` applied to the result of ``first``; see :meth:`Geometry.after`."""
        b, a = self.geometry, first.geometry
        geometry = b.after(a)
        meeting = b.blocks.meeting(a.blocks)
        assert meeting is not None
        second, inner = self.part(meeting[0]), first.part(meeting[1])
        shape = geometry.weight_shape
        if b.is_pointwise and meeting[0].is_diagonal:
            return Map(geometry, inner * second.reshape(-1, *(1,) * (inner.ndim - 1)))
        if a.is_pointwise and meeting[1].is_diagonal:
            group = meeting[0].group
            factors = inner.reshape(group, 1, -1, *(1,) * b.axes)
            return Map(geometry, (second.reshape(group, -1, *second.shape[1:]) * factors).reshape(shape))
        groups = geometry.group
        outer = Map(b._with(meeting[0]), second).regrouped(groups).weight
        outer = outer.reshape(groups, outer.shape[0] // groups, outer.shape[1], -1)
        lower = Map(a._with(meeting[1]), inner).regrouped(groups).weight
        lower = lower.reshape(groups, outer.shape[2], -1)
        total = np.zeros((groups, shape[0] // groups, *shape[1:]))
        for index, tap in enumerate(product(*b.taps)):
            part = np.matmul(np.ascontiguousarray(outer[..., index]), lower)
            moved = tuple(tuple(s * u + v for v in t) for s, u, t in zip(a.steps, tap, a.taps, strict=True))
            place = (slice(None), *_grid(moved, geometry.taps))
            total[place] += part.reshape(*total.shape[:3], *map(len, a.taps))
        return Map(geometry, total.reshape(shape))

    def trimmed(self) -> Map:
        """Return the map without the outermost taps that are zero for every channel.

        Where that would leave a pad negative, zero taps come back in its place; if they are more, the map stays.
        """
        if self.geometry.mode.startswith("SAME"):
            return self
        taps, cut = [], []
        for present, used in zip(self.geometry.taps, self.support, strict=True):
            low, high = (present.index(used[0]), present.index(used[-1])) if used else (0, 0)
            taps.append(present[low : high + 1])
            cut.append(slice(low, high + 1))
        geometry = replace(self.geometry, taps=tuple(taps))
        if geometry.macs > self.geometry.macs:
            return self
        return Map(geometry, self.weight[(slice(None), slice(None), *cut)])

    def dense_kernel(self) -> Array:
        """Return the weight spread over :attr:`Geometry.kernel`: ``(rows, columns / group, *kernel shape)``."""
        kernel = self.geometry.kernel
        grid = tuple(
            tuple(first + step * k for k in range(count))
            for first, step, count in zip(kernel.first, kernel.dilations, kernel.shape, strict=True)
        )
        if self.geometry.taps == grid:
            return self.weight
        dense = np.zeros((*self.weight.shape[:2], *kernel.shape))
        dense[_grid(self.geometry.taps, grid)] = self.weight
        return dense


def _grid(taps: Taps, within: Taps) -> tuple[Any, ...]:
    """Return the index of the sub-grid ``taps`` in a weight whose taps are ``within`` (leading two axes kept whole)."""
    cut: list[Any] = [slice(None), slice(None)]
    if taps == within:
        return tuple(cut)
    places = [[outer.index(t) for t in inner] for inner, outer in zip(taps, within, strict=True)]
    steps = [{b - a for a, b in pairwise(p)} for p in places]
    if all(len(s) <= 1 for s in steps):  # regular in every axis: slices are cheaper than index arrays
        for place, step in zip(places, steps, strict=True):
            cut.append(slice(place[0], place[-1] + 1, step.pop() if step else 1))
        return tuple(cut)
    if len(places) == 1:
        return (*cut, places[0])
    return (*cut, *np.ix_(*places))


def reads_outside(map_: Map, lengths: Sequence[int] | None = None) -> bool:
    """Whether a map reads outside an image: of the given sizes, or where they are None of some sizes.

    A transposed or SAME-padded map that is not pointwise counts as if it did: it treats positions unequally.
    """
    g = map_.geometry
    if g.is_pointwise:
        return False
    if g.mode != "conv":
        return True
    for axis, taps in enumerate(map_.support):
        if not taps:
            continue
        if taps[0] < 0:
            return True
        if lengths is None:
            if g.size[axis] + taps[-1] >= 0:
                return True
        else:
            last = positions(lengths[axis], g.stride[axis], g.size[axis]) - 1
            if g.stride[axis] * last + taps[-1] >= lengths[axis]:
                return True
    return False


def border_fault(second: Map, first: Map, bias: Array | None, lengths: Sequence[int] | None = None) -> str | None:
    """Say why ``second`` after ``first`` differs from their composition at a border, or None if it never does.

    ``second`` reads zero outside the result of ``first``, whereas the composition continues ``first`` itself there.
    Both agree iff ``first`` is zero wherever ``second`` reads outside: its linear part has left the image and
    ``bias : [first outputs]`` (None for none) is zero on the channels that ``second`` reads.

    ``lengths``: the sizes of the input of ``first`` where they are static; None asks for all sizes at once.
    """
    b, a = second.geometry, first.geometry
    if b.is_pointwise:
        return None
    if bias is not None and np.any((bias != 0) & second.reads):
        middle = None if lengths is None else a.result(lengths)
        if b.mode == "transpose":
            return "a bias in front of a transposed convolution reaches each position a different number of times"
        if reads_outside(second, middle):
            return "a bias in front of a padded convolution does not reach the padding"
    if a.is_pointwise:
        return None
    if b.mode != "conv" or a.mode.startswith("SAME"):
        return "a transposed or SAME-padded convolution is treated unequally by the other"
    differs = _reads_cut if a.mode == "transpose" else _reads_continued
    for axis, (tb, ta) in enumerate(zip(second.support, first.support, strict=True)):
        if tb and ta and differs(second, first, axis, None if lengths is None else lengths[axis]):
            return "the second convolution is padded, and the first one does not vanish in that padding"
    return None


def _reads_continued(second: Map, first: Map, axis: int, length: int | None) -> bool:
    """Whether, on one axis, a convolution reads outside the result of another, where that one would go on."""
    b, a = second.geometry, first.geometry
    tb, ta, stride, size = second.support[axis], first.support[axis], a.stride[axis], a.size[axis]
    low, high = tb[0] < 0, b.size[axis] + tb[-1] >= 0
    gone = size + 1 + ta[0] >= 0 or (a.tiles and ta[0] >= 0)
    if length is not None:
        inside = positions(length, stride, size)
        last = positions(inside, b.stride[axis], b.size[axis]) - 1
        high = b.stride[axis] * last + tb[-1] >= inside
        gone = stride * inside + ta[0] >= length
    return (low and ta[-1] > stride - 1) or (high and not gone)


def _reads_cut(second: Map, first: Map, axis: int, length: int | None) -> bool:
    """Whether, on one axis, a convolution without stride reads what a transposed one writes outside its result."""
    b, a = second.geometry, first.geometry
    tb, ta, stride, size = second.support[axis], first.support[axis], a.stride[axis], a.size[axis]
    before = (r for t in ta for r in range(t, 0, stride)[:length])
    behind = (r for t in ta for r in range(t, size - 1, -stride)[:length])  # counted from where the last input is
    return any(r >= tb[0] for r in before) or any(r <= size + b.size[axis] + tb[-1] for r in behind)


@dataclass(frozen=True)
class Form:
    """``bias + sum of map_j(source_j + offset_j)``: a value as a function of sources that the holder knows.

    There is **one** bias, ``[outputs]`` or None for zero. An offset ``[inputs of map_j]`` is added to a source before
    its map, *inside the image only*: it is how a border filled with the value ``-offset`` is said. ``sizes``, where
    given, are the magnitudes of the numbers of which the bias is the (cancelling) sum; they bound its rounding.
    """

    maps: tuple[Map, ...]
    bias: Array | None
    offsets: tuple[Array | None, ...] = ()
    sizes: Array | None = None
