"""Medians with an interval, from few and noisy times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
"""The chance that an interval holds the true value."""

FEWEST = 7
"""Rounds without which there is no useful interval (six are the fewest for 95 %)."""

NOISE = 0.01
"""Ratios nearer to one than this are no difference: two sessions of one model may differ as much."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the second of two things is.

    Attributes:
        median: of the rounds' own ratios.
        low, high: the interval around it.
    """

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, or ``same``: the interval holds one, or is as near to it as noise."""
        if self.low > 1.0 and self.median > 1.0 + NOISE:
            return "faster"
        return "slower" if self.high < 1.0 and self.median < 1.0 - NOISE else "same"


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Return how many times as fast the second is, from times taken in pairs.

    What slows the machine down for a while slows both times of a pair, so it leaves their ratio. The median of the
    ratios and its interval by order statistics (the sign test turned round) assume nothing of how times are
    distributed.

    Raises:
        ValueError: there are too few pairs.

    """
    ratios = np.sort(np.asarray(first, np.float64) / np.asarray(second, np.float64))
    rank = order_rank(len(ratios))
    return Ratio(float(np.median(ratios)), float(ratios[rank]), float(ratios[-1 - rank]))


def order_rank(count: int, confidence: float = CONFIDENCE) -> int:
    """Return which value from either end of ``count`` sorted ones (0: the outermost) bounds the median.

    The chance that fewer than ``k`` of ``n`` values lie below the median is that of fewer than ``k`` heads among ``n``
    coins.

    Raises:
        ValueError: even the outermost values do not bound it with this confidence.

    """
    outside, below = (1.0 - confidence) / 2.0, 0.0
    for rank in range(count):
        below += math.comb(count, rank) / 2.0**count
        if below > outside:
            if not rank:
                break
            return rank - 1
    raise ValueError(f"{count} values are too few for an interval of {confidence:.0%}")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile."""
    low, middle, high = np.percentile(np.asarray(values, np.float64), (25, 50, 75))
    return float(middle), float(low), float(high)
