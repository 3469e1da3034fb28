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

Array = NDArray[np.float64]
Taps = tuple[tuple[int, ...], ...]
Mode = Literal["conv", "transpose", "SAME_UPPER", "SAME_LOWER"]
"""How taps are meant. ``conv``: as in the module's equation. ``transpose``: the dual map, in which input ``p`` writes
to output ``stride * p + t`` and ``size`` is the constant of ``Q = stride * (L - 1) + size``. ``SAME_*``: a convolution
whose begin pads depend on ``L``; its taps are relative to an unknown begin and its size is ``ceil(L / stride)``."""


class NotAligned(ValueError):
    """Two maps whose results do not lie on the same grid cannot be summed."""


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
        group: ``weight[o, i] = 0`` unless ``o`` and ``i`` lie in the same of ``group`` contiguous equal blocks.
        taps: per axis the sorted offsets, relative to ``stride * p``; the map's taps are their product.
        stride: per axis, positive.
        size: per axis, the constant of the size equation.
        mode: see :data:`Mode`.

    """

    outputs: int
    inputs: int
    group: int
    taps: Taps
    stride: tuple[int, ...]
    size: tuple[int, ...]
    mode: Mode = "conv"

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
        """Whether the map is pointwise and keeps channels apart."""
        return self.is_pointwise and self.group == self.outputs == self.inputs

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight: ``(outputs, inputs / group, *taps)``."""
        return (self.outputs, self.inputs // self.group, *map(len, self.taps))

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
        """Multiply-accumulates per position of the result, zero taps of the kernel included."""
        dense = self.kernel.taps * self.outputs * self.inputs / self.group
        return dense / math.prod(self.stride) if self.mode == "transpose" else dense

    @cached_property
    def coarsening(self) -> float:
        """How many positions of the source there are per position of the result."""
        steps = math.prod(self.stride)
        return 1 / steps if self.mode == "transpose" else float(steps)

    def plus(self, other: Geometry, lengths: Sequence[int] | None = None) -> Geometry:
        """Return the geometry of the sum of two maps of one source.

        ``lengths``: the source's sizes where they are static; equal result sizes for them then suffice.

        Raises:
            NotAligned: the results differ in channels, stride or size.

        """
        if (self.outputs, self.inputs, self.stride) != (other.outputs, other.inputs, other.stride):
            raise NotAligned("the branches differ in channels or stride")
        if self.mode != other.mode and not (self.is_pointwise and other.is_pointwise):
            raise NotAligned("a branch is padded by SAME for a size that is not known")
        if self.size != other.size and (lengths is None or self.result(lengths) != other.result(lengths)):
            raise NotAligned(
                f"the branches' sizes agree only for some inputs (size constants {self.size}, {other.size})"
            )
        if self.mode.startswith("SAME") and self.taps != other.taps:
            raise NotAligned("the branches' SAME pads depend on a size that is not known")
        taps = tuple(tuple(sorted({*a, *b})) for a, b in zip(self.taps, other.taps, strict=True))
        return replace(self, group=math.gcd(self.group, other.group), taps=taps)

    def after(self, first: Geometry) -> Geometry:
        """Return the geometry of ``self`` applied to the result of ``first``; see :func:`border_fault` for exactness.

        Raises:
            Inexact: one of the two is a transposed or SAME-padded map and the other is not pointwise.

        """
        if self.inputs != first.outputs or self.axes != first.axes:
            raise Inexact("the maps do not fit each other")
        group = math.gcd(self.group, first.group)
        if self.is_pointwise:
            return replace(first, outputs=self.outputs, group=group)
        if first.is_pointwise:
            return replace(self, inputs=first.inputs, group=group)
        if self.mode != "conv" or first.mode != "conv":
            raise Inexact("a transposed or SAME-padded convolution combines with pointwise maps only")
        taps, stride, size = [], [], []
        for tb, ta, sb, sa, cb, ca in zip(
            self.taps, first.taps, self.stride, first.stride, self.size, first.size, strict=True
        ):
            taps.append(tuple(sorted({sa * u + v for u, v in product(tb, ta)})))
            stride.append(sa * sb)
            size.append(ca + sa * (1 + cb))
        return Geometry(self.outputs, first.inputs, group, tuple(taps), tuple(stride), tuple(size))


def _kernel_axis(taps: tuple[int, ...], stride: int, size: int, mode: Mode) -> tuple[int, int, int, int, int, int]:
    """Return one axis of :class:`Kernel`; zero taps stand where a pad would be negative, which ONNX does not allow."""
    low, high = min(taps[0], 0), max(taps[-1], 0)
    begin, end, extra = -low, 0, 0
    if mode == "transpose":
        extra = size - (high - low + 1) + begin
        if extra < 0:
            extra, end = 0, -extra
        elif extra >= stride:
            high, extra = high + extra - stride + 1, stride - 1
    elif mode == "conv":
        high = max(taps[-1], low)
        end = size + (high - low) + 1 - begin
        if end < 0:
            high, end = high - end, 0
    step = math.gcd(high - low, *(t - low for t in taps)) or 1
    return low, (high - low) // step + 1, step, begin, end, extra


@dataclass(frozen=True)
class Map:
    """A geometry with its weight, float64 of shape ``(outputs, inputs / group, *taps)``."""

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
        kept = []
        for axis, taps in enumerate(self.geometry.taps):
            others = tuple(a for a in range(self.weight.ndim) if a != axis + 2)
            kept.append(tuple(t for t, used in zip(taps, np.any(self.weight, axis=others), strict=True) if used))
        return tuple(kept)

    def response(self, vector: Array) -> Array:
        """Return the result ``[outputs]`` for the image of constant value ``vector : [inputs]``, away from borders."""
        g = self.geometry
        sums = self.weight.reshape(*self.weight.shape[:2], -1).sum(axis=2)
        blocks = sums.reshape(g.group, g.outputs // g.group, g.inputs // g.group)
        result: Array = np.matmul(blocks, vector.reshape(g.group, -1, 1)).reshape(-1)
        return result

    @cached_property
    def reads(self) -> NDArray[np.bool_]:
        """Which input channels have a non-zero weight, ``[inputs]``."""
        g = self.geometry
        blocks = self.weight.reshape(g.group, g.outputs // g.group, g.inputs // g.group, -1)
        used: NDArray[np.bool_] = np.any(blocks, axis=(1, 3)).reshape(-1)
        return used

    def regrouped(self, group: int) -> Map:
        """Return the same map written with fewer groups; ``group`` divides the present count."""
        g = self.geometry
        if group == g.group:
            return self
        ratio = g.group // group
        rows = np.arange(g.outputs)
        weight = np.zeros((g.outputs, ratio, *self.weight.shape[1:]))
        weight[rows, rows // (g.outputs // g.group) % ratio] = self.weight
        geometry = replace(g, group=group)
        return Map(geometry, weight.reshape(geometry.weight_shape))

    def plus(self, other: Map, lengths: Sequence[int] | None = None) -> Map:
        """Return the sum of two maps of one source; see :meth:`Geometry.plus`."""
        geometry = self.geometry.plus(other.geometry, lengths)
        total = np.zeros(geometry.weight_shape)
        for part in (self, other):
            total[_grid(part.geometry.taps, geometry.taps)] += part.regrouped(geometry.group).weight
        return Map(geometry, total)

    def after(self, first: Map) -> Map:
        """Return ``self`` applied to the result of ``first``; see :meth:`Geometry.after`."""
        b, a = self.geometry, first.geometry
        geometry = b.after(a)
        if b.is_diagonal:
            return Map(geometry, first.weight * self.weight.reshape(-1, *(1,) * (first.weight.ndim - 1)))
        if a.is_diagonal:
            factors = first.weight.reshape(b.group, 1, b.inputs // b.group, *(1,) * b.axes)
            weight = self.weight.reshape(b.group, b.outputs // b.group, *self.weight.shape[1:]) * factors
            return Map(geometry, weight.reshape(geometry.weight_shape))
        groups, middle = geometry.group, b.inputs // geometry.group
        outer = self.regrouped(groups).weight.reshape(groups, b.outputs // groups, middle, -1)
        inner = first.regrouped(groups).weight.reshape(groups, middle, -1)
        total = np.zeros((groups, b.outputs // groups, a.inputs // groups, *map(len, geometry.taps)))
        for index, tap in enumerate(product(*b.taps)):
            part = np.matmul(np.ascontiguousarray(outer[..., index]), inner)
            moved = tuple(tuple(s * u + v for v in t) for s, u, t in zip(a.stride, tap, a.taps, strict=True))
            place = (slice(None), *_grid(moved, geometry.taps))
            total[place] += part.reshape(*total.shape[:3], *map(len, a.taps))
        return Map(geometry, total.reshape(geometry.weight_shape))

    def trimmed(self) -> Map:
        """Return the map without the outermost taps that are zero for every channel."""
        if self.geometry.mode.startswith("SAME"):
            return self
        taps, cut = [], []
        for present, used in zip(self.geometry.taps, self.support, strict=True):
            low, high = (present.index(used[0]), present.index(used[-1])) if used else (0, 0)
            taps.append(present[low : high + 1] if used else (0,))
            cut.append(slice(low, high + 1))
        weight = self.weight[(slice(None), slice(None), *cut)]
        return Map(replace(self.geometry, taps=tuple(taps)), weight)

    def dense_kernel(self) -> Array:
        """Return the weight spread over :attr:`Geometry.kernel`: ``(outputs, inputs / group, *kernel shape)``."""
        kernel = self.geometry.kernel
        grid = tuple(
            tuple(first + step * k for k in range(count))
            for first, step, count in zip(kernel.first, kernel.dilations, kernel.shape, strict=True)
        )
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
    present = np.zeros(a.outputs, dtype=bool) if bias is None else bias != 0
    biased = bool(present.any())
    if a.mode != "conv" or b.mode != "conv":
        if a.is_pointwise and not biased:
            return None
        if a.is_pointwise and b.mode == "transpose":
            return "a bias in front of a transposed convolution reaches each position a different number of times"
        return "a bias in front of a padded convolution does not reach the padding"
    outside = False
    for axis, (tb, ta) in enumerate(zip(second.support, first.support, strict=True)):
        if not tb:
            continue
        stride, size = a.stride[axis], a.size[axis]
        low, high = tb[0] < 0, b.size[axis] + tb[-1] >= 0
        gone = not ta or size + 1 + ta[0] >= 0
        if lengths is not None:
            middle = positions(lengths[axis], stride, size)
            last = positions(middle, b.stride[axis], b.size[axis]) - 1
            high = b.stride[axis] * last + tb[-1] >= middle
            gone = not ta or stride * middle + ta[0] >= lengths[axis]
        if (low and ta and ta[-1] > stride - 1) or (high and not gone):
            return "the second convolution is padded, and the first one does not vanish in that padding"
        outside |= low or high
    if outside and np.any(present & second.reads):
        return "a bias in front of a padded convolution does not reach the padding"
    return None


@dataclass(frozen=True)
class Form:
    """``bias + sum of map_j(source_j)``: a value as a function of sources that the holder knows, with **one** bias.

    ``bias : [outputs]`` or None for zero.
    """

    maps: tuple[Map, ...]
    bias: Array | None
