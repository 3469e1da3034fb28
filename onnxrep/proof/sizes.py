"""The sizes of image at which a fold is proven: every situation at the borders must occur in one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product

from onnxrep.proof.program import Program
from onnxrep.shapes import Shape

_ALL_PAIRS = 64
"""Combinations of lengths up to which all are tried."""
_MOST_TINY, _MOST_REMAINDERS = 12, 64
_TINY_WORK = 1e9
"""Multiply-accumulates that the tiny sizes of one fold may take together."""
_TOKENS = ((2, 6, 5), (1, 1, 1), (2, 2, 3), (1, 5, 7), (1, 12, 8), (1, 14, 7), (1, 16, 4), (1, 49, 3))
"""Batch and two other lengths, in turn, where the sources are no images."""


class Sizes:
    """The sizes for two programs of the same sources.

    Attributes:
        shapes: of the sources; lengths that are fixed may be smaller than they are.
        shrink: how many positions of a source there are per position of the result.
    """

    def __init__(self, shapes: Sequence[Shape], before: Program, after: Program, *, spatial: bool) -> None:
        """``spatial``: whether the sources are images, channels on axis 1."""
        self._before = before
        ranks = {len(s) for s in shapes}
        self._axes = max(ranks, default=2) - 2 if spatial and len(ranks) == 1 else 0
        reaches = [r for p in (before, after) for r in [p.reach(self._axes)]]
        self._extent = [
            [max((r[s].extent[a] for r in reaches if s in r), default=1) for a in range(self._axes)]
            for s in before.sources
        ]
        self._stride = [
            [max((r[s].stride[a] for r in reaches if s in r), default=Fraction(1)) for a in range(self._axes)]
            for s in before.sources
        ]
        self._scalable = before.is_scalable and after.is_scalable
        self.shapes = self._shrunk(shapes) if self._axes and self._scalable else list(shapes)
        self.shrink = math.prod(max((float(s[a]) for s in self._stride), default=1.0) for a in range(self._axes))

    def _shrunk(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return shapes in which lengths that are fixed are as small as the same border situations allow.

        All sources lose what as many positions of the result read, so that the remainders by the strides stay.
        """
        result = [list(s) for s in shapes]
        batches = {s[0] for s in shapes}
        if len(batches) == 1 and isinstance(shapes[0][0], int):
            for dims in result:
                dims[0] = min(shapes[0][0], 2)
        for axis in range(self._axes):
            fixed = [n for n in (s[axis + 2] for s in shapes) if isinstance(n, int)]
            if len(fixed) < len(shapes):
                continue
            steps = [s[axis] for s in self._stride]
            least = [max(2 * (e[axis] - 1) + math.ceil(s), 2) + axis for e, s in zip(self._extent, steps, strict=True)]
            spare = min(math.floor((n - m) / s) for n, m, s in zip(fixed, least, steps, strict=True))
            spare -= spare % math.lcm(*(s.denominator for s in steps))
            for dims, length, step in zip(result, fixed, steps, strict=True):
                dims[axis + 2] = length - int(step * max(spare, 0))
        return [tuple(dims) for dims in result]

    def wanted(self) -> Iterator[list[list[int]]]:
        """Yield dims to wish for per source, those with room between the borders first.

        What is fixed, or follows from the dims of another source, goes before.
        """
        if not self._axes:
            for batch, *sizes in _TOKENS:
                yield [[batch, *(sizes[a % 2] for a in range(len(s) - 1))][: len(s)] for s in self.shapes]
            return
        full, tiny = zip(*(self._lengths(a) for a in range(self._axes)), strict=True)
        spent = 0.0
        for index, lengths in enumerate(_combined(full, tiny)):
            wanted = [1 if index else 2, 1, *lengths]
            if any(n < mine[0] for n, mine in zip(lengths, full, strict=True)):
                spent += self._before.work({"": wanted}) / self.shrink
            if spent <= _TINY_WORK:
                yield [wanted[: len(s)] for s in self.shapes]

    def _lengths(self, axis: int) -> tuple[list[int], list[int]]:
        """Return the lengths along one axis at which no position sees both borders, and smaller ones."""
        extent = max((e[axis] for e in self._extent), default=1)
        step = max((math.ceil(s[axis]) for s in self._stride), default=1)
        main = max(2 * (extent - 1) + step, 2 if self._scalable else 8) + axis  # no two axes are alike
        tiny = range(1, main)
        some = {1, 2, 3, 4, extent - 1, extent, extent + 1, main - 2, main - 1, main // 2, main // 4, 3 * main // 4}
        few = list(tiny) if len(tiny) <= _MOST_TINY else sorted(n for n in some if n in tiny)
        return list(range(main, main + min(step, _MOST_REMAINDERS))), few


def _combined(full: Sequence[Sequence[int]], tiny: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Yield lengths for all axes: all combinations where they are few, else each with several others."""
    every = [[*a, *b] for a, b in zip(full, tiny, strict=True)]
    if math.prod(map(len, every)) <= _ALL_PAIRS:
        yield from product(*every)
        return
    for lists in (full, tiny):
        most = max(map(len, lists), default=0)
        for shift in (0, most // 2 or 1):
            for index in range(most if all(lists) else 0):
                yield tuple(mine[(index + shift * axis) % len(mine)] for axis, mine in enumerate(lists))
    for axis, mine in enumerate(tiny):
        for length in mine:
            yield tuple(length if a == axis else lengths[0] for a, lengths in enumerate(full))
