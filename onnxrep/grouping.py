"""Where a matrix ``[outputs, inputs]`` may be non-zero: equal blocks along the diagonal of a rectangle.

A grouped convolution, a map that picks channels (Slice) and one that places them (Concat) all are of this kind. The
weights of a map are stored for the blocks only, ``[rows, columns / group]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
"""A range of channels, end excluded."""


def spans(counts: Sequence[int]) -> list[Span]:
    """Return the ranges of channels of several values that follow each other."""
    ends = accumulate(counts)
    return [(end - count, end) for count, end in zip(counts, ends, strict=True)]


@dataclass(frozen=True)
class Blocks:
    """``group`` blocks of equal size along the diagonal of the rectangle ``rows`` x ``cols``."""

    rows: Span
    cols: Span
    group: int

    @property
    def height(self) -> int:
        """The number of rows."""
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.cols[1] - self.cols[0]

    @property
    def is_diagonal(self) -> bool:
        """Whether each row has one column of its own."""
        return self.group == self.height == self.width

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The first column of each row, ``[rows]``."""
        block = np.arange(self.height) // (self.height // self.group)
        return self.cols[0] + block * (self.width // self.group)

    def within(self, rows: Span, cols: Span) -> Blocks:
        """Return blocks that hold these in a larger rectangle, as many as possible."""
        return Blocks(rows, cols, _fit(self, rows, cols))

    def union(self, other: Blocks) -> Blocks:
        """Return blocks that hold both, as many as possible."""
        if (self.rows, self.cols) == (other.rows, other.cols):
            return replace(self, group=math.gcd(self.group, other.group))
        rows = min(self.rows[0], other.rows[0]), max(self.rows[1], other.rows[1])
        cols = min(self.cols[0], other.cols[0]), max(self.cols[1], other.cols[1])
        return Blocks(rows, cols, math.gcd(_fit(self, rows, cols), _fit(other, rows, cols)))

    def cut_rows(self, rows: Span) -> Blocks:
        """Return the blocks of some of the rows, with the columns that those have."""
        low, high = rows[0] - self.rows[0], rows[1] - self.rows[0]
        cols, group = _cut(low, high, self.height // self.group, self.width // self.group)
        return Blocks(rows, (self.cols[0] + cols[0], self.cols[0] + cols[1]), group)

    def cut_cols(self, cols: Span) -> Blocks:
        """Return the blocks of some of the columns, with the rows that those have."""
        return self.turned().cut_rows(cols).turned()

    def turned(self) -> Blocks:
        """Return the blocks of the transposed matrix."""
        return Blocks(self.cols, self.rows, self.group)

    def after(self, first: Blocks) -> Blocks | None:
        """Return the blocks of the product of two matrices, None if it is zero; both fit the shared channels then."""
        parts = self.meeting(first)
        if parts is None:
            return None
        second, first = parts
        return Blocks(second.rows, first.cols, math.gcd(second.group, first.group))

    def meeting(self, first: Blocks) -> tuple[Blocks, Blocks] | None:
        """Return the parts of two factors that meet: columns of this one and rows of the first are the same then."""
        low, high = max(self.cols[0], first.rows[0]), min(self.cols[1], first.rows[1])
        return None if low >= high else (self.cut_cols((low, high)), first.cut_rows((low, high)))


def _cut(low: int, high: int, height: int, width: int) -> tuple[Span, int]:
    """Return the columns that rows ``low .. high`` have, and in how many blocks."""
    first, last = low // height, (high - 1) // height
    aligned = low % height == 0 and high % height == 0
    return (first * width, (last + 1) * width), last - first + 1 if aligned else 1


@lru_cache(maxsize=4096)
def _fit(blocks: Blocks, rows: Span, cols: Span) -> int:
    """Return the largest number of equal blocks in a rectangle that hold some blocks."""
    height, width = rows[1] - rows[0], cols[1] - cols[0]
    tall, wide = blocks.height // blocks.group, blocks.width // blocks.group
    index = np.arange(blocks.group)
    top, left = blocks.rows[0] - rows[0] + index * tall, blocks.cols[0] - cols[0] + index * wide
    common = math.gcd(height, width)
    for count in sorted((d for d in range(1, common + 1) if common % d == 0), reverse=True):
        h, w = height // count, width // count
        home = top // h
        if (
            np.all(home == (top + tall - 1) // h)
            and np.all(home == left // w)
            and np.all(home == (left + wide - 1) // w)
        ):
            return count
    return 1
