"""From what a chain of moving ops does to an image of indices to the map that does the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxrep.lattice import Array, Geometry, Map

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """What a chain does at one size.

    Attributes:
        before, after: shapes of source and value.
        indices: per element of the value the flat index of the source's element, -1 for a constant.
        constants: the constants, 0 elsewhere.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    indices: Indices
    constants: Array


def fitted(samples: Sequence[Sample]) -> tuple[Geometry, Map, Array] | None:
    """Return the map, and the border's value per input channel, that all samples show; None if there is none."""
    channels = _channels_and_taps(max(samples, key=lambda s: math.prod(s.before)))
    if channels is None:
        return None
    chosen, stride, taps = channels
    size = _size_constants(samples, stride)
    if size is None:
        return None
    border = np.full(len(chosen), np.nan)
    if not all(_agrees(s, chosen, stride, taps, border) for s in samples):
        return None
    inputs, outputs = samples[0].before[1], len(chosen)
    axes = len(stride)
    of_input = np.zeros(inputs)
    for index, value in zip(chosen, border, strict=True):
        if not np.isnan(value):
            of_input[index] = value
    known = ~np.isnan(border)
    if not np.array_equal(of_input[chosen][known], border[known]):
        return None
    present = tuple(tuple(sorted({int(t) for t in taps[:, a]})) for a in range(axes))
    whole = np.array_equal(chosen, np.arange(inputs))
    tiles = all(s.before[a + 2] == stride[a] * s.after[a + 2] for s in samples for a in range(axes))
    geometry = Geometry(outputs, inputs, inputs if whole else 1, present, stride, size, tiles=tiles)
    weight = np.zeros(geometry.weight_shape)
    for output, index in enumerate(chosen):
        place = tuple(present[a].index(int(taps[output, a])) for a in range(axes))
        weight[(output, 0 if whole else index, *place)] = 1.0
    return geometry, Map(geometry, weight), of_input


def _channels_and_taps(sample: Sample) -> tuple[Indices, tuple[int, ...], Indices] | None:
    """Return per output channel its input channel and tap, and the stride, as one sample suggests them."""
    axes = len(sample.before) - 2
    outputs = sample.after[1]
    found = np.unravel_index(np.maximum(sample.indices, 0), sample.before)
    data = sample.indices >= 0
    stride = [1] * axes
    for axis in range(axes):
        step = np.diff(found[axis + 2], axis=axis + 2)
        ahead, behind = (np.delete(data, end, axis + 2) for end in (0, -1))
        both = ahead & behind
        if np.any(both):
            stride[axis] = int(step[both][0])
        elif sample.after[axis + 2] == 1:
            stride[axis] = max(sample.before[axis + 2], 1)
    if min(stride, default=1) < 1:
        return None
    chosen, taps = np.zeros(outputs, np.int64), np.zeros((outputs, axes), np.int64)
    for output in range(outputs):
        places = np.argwhere(data[:, output])
        if not len(places):
            return None
        batch, *spot = places[0]
        where = (batch, output, *spot)
        chosen[output] = found[1][where]
        taps[output] = [found[a + 2][where] - stride[a] * spot[a] for a in range(axes)]
    return chosen, tuple(stride), taps


def _size_constants(samples: Sequence[Sample], stride: Sequence[int]) -> tuple[int, ...] | None:
    """Return per axis the smallest constant ``c`` with ``P = floor((L + c) / stride) + 1`` at all sizes."""
    constants = []
    for axis, step in enumerate(stride):
        low, high = -(1 << 31), 1 << 31
        for sample in samples:
            length, result = sample.before[axis + 2], sample.after[axis + 2]
            least = step * (result - 1) - length
            if result:
                low, high = max(low, least), min(high, least + step - 1)
            else:
                high = min(high, least + step - 1)
        if low > high:
            return None
        constants.append(low)
    return tuple(constants)


def _agrees(sample: Sample, chosen: Indices, stride: Sequence[int], taps: Indices, border: Array) -> bool:
    """Whether a sample is what a map makes of it, its border constant per output channel; note the border's values."""
    axes = len(stride)
    if sample.after[:2] != (sample.before[0], len(chosen)):
        return False
    grid = np.indices(sample.after)
    inside = np.ones(sample.after, bool)
    place = [grid[0], chosen[grid[1]]]
    for axis in range(axes):
        at = stride[axis] * grid[axis + 2] + taps[grid[1], axis]
        inside &= (at >= 0) & (at < sample.before[axis + 2])
        place.append(at)
    expected = np.full(sample.after, -1, np.int64)
    expected[inside] = np.ravel_multi_index([p[inside] for p in place], sample.before)
    if not np.array_equal(expected, sample.indices):
        return False
    for output in range(len(chosen)):
        values = sample.constants[:, output][~inside[:, output]]
        if not values.size:
            continue
        if np.isnan(border[output]):
            border[output] = values.flat[0]
        if not np.all(values == border[output]):
            return False
    return True
