"""The range of a merged kernel, and what it costs when weights are quantized: it may do worse than its parts.

With one scale per tensor, a symmetric int8 weight is off by up to half a step of ``largest / 127``, on average by
``step / sqrt(12)``. A channel whose weights are small beside the largest one of the tensor (another channel with a
large BatchNormalization gain, or the identity at its own centre tap) is drowned in that. The figure is the
signal-to-noise ratio of a channel for inputs that are alike and independent: the sum of its squared weights over that
of their errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RISK = 30.0
"""Decibels below which a kernel counts as at risk.

A normal distribution, cut at four times its deviation, has 40 dB in 8 bits, and each bit is worth 6 dB. At 30 dB the
typical channel is off by 3% of its output and has lost nearly two of its bits; kernels of 6 bits and fewer are what
networks need training for.
"""

_LEVELS = 127.0


@dataclass(frozen=True)
class Part:
    """What one branch brings into a kernel.

    Attributes:
        largest: its largest weight, in magnitude.
        median: the median of that over its channels.
        first: the output channel of its first row.
        weights: how many weights of each row are not zero; empty for what is no convolution and is not quantized.
    """

    largest: float
    median: float
    first: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Ranges:
    """The range of one kernel, against those of its branches, whose scales and BatchNormalizations are folded in.

    Attributes:
        largest, smallest, median: over output channels, of the largest weight in magnitude; channels of zeros aside.
        branches: the largest and the median of each branch.
        sqnr: decibels that the median channel keeps in int8 with one scale per tensor.
        sqnr_apart: the same if each convolution among the branches has a scale of its own.
        sqnr_per_channel: the same with one scale per output channel.
    """

    largest: float
    smallest: float
    median: float
    branches: tuple[tuple[float, float], ...]
    sqnr: float
    sqnr_apart: float
    sqnr_per_channel: float

    @property
    def spread(self) -> float:
        """How many times the range of the tensor exceeds that of its median channel."""
        return self.largest / self.median

    @property
    def at_risk(self) -> bool:
        """Whether one scale for the tensor is too coarse for the median channel."""
        return self.sqnr < RISK


def part(weight: Array, first: int, *, quantized: bool) -> Part | None:
    """Return what a branch with this weight, ``(rows, ...)``, brings; None if all of it is zero."""
    rows = weight.reshape(len(weight), -1)
    tops = _tops(rows)
    if not np.any(tops):
        return None
    weights = tuple(int(n) for n in np.count_nonzero(rows, axis=1)) if quantized else ()
    return Part(float(tops.max()), float(np.median(tops[tops > 0])), first, weights)


def ranges(weight: Array, first: int, parts: Sequence[Part]) -> Ranges | None:
    """Return the ranges of a merged kernel ``(rows, ...)``; None if all of it is zero."""
    rows = weight.reshape(len(weight), -1)
    tops = _tops(rows)
    alive = tops > 0
    if not np.any(alive):
        return None
    signal = np.einsum("ij,ij->i", rows, rows)[alive]
    counts = np.count_nonzero(rows, axis=1)[alive].astype(np.float64)
    largest = float(tops.max())
    apart = np.zeros(len(rows))
    for each in parts:
        if each.weights:
            start = each.first - first
            apart[start : start + len(each.weights)] += np.array(each.weights) * each.largest**2
    return Ranges(
        largest,
        float(tops[alive].min()),
        float(np.median(tops[alive])),
        tuple((each.largest, each.median) for each in parts),
        _decibels(signal, counts * largest**2),
        _decibels(signal, apart[alive]),
        _decibels(signal, counts * tops[alive] ** 2),
    )


def _tops(rows: Array) -> Array:
    """Return the largest magnitude of each row."""
    if not rows.size:
        return np.zeros(len(rows))
    tops: Array = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return tops


def _decibels(signal: Array, noise: Array) -> float:
    """Return the median ratio of signals to errors, given the sums of squared ranges of their weights."""
    with np.errstate(divide="ignore"):
        ratio = float(np.median(signal / (noise / (12.0 * _LEVELS**2))))
    return 10.0 * math.log10(ratio) if 0.0 < ratio < math.inf else math.inf
