"""Sizes that are known, or only named, and arithmetic with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The size ``floor((base + size) / stride) + 1`` for a base size that is not known, only named."""

    base: Hashable
    stride: int = 1
    size: int = -1

    def through(self, stride: int, size: int) -> Size:
        """Return the size after one more map with this stride and size constant."""
        return Size(self.base, self.stride * stride, self.size + self.stride * (1 + size))

    def number(self, known: Mapping[Hashable, int]) -> int:
        """Return the size for known base sizes; KeyError if the base is another one."""
        base = self.base
        if isinstance(base, Product):
            length = base.times * math.prod(s.number(known) for s in base.sizes)
        elif isinstance(base, Enlarged):
            length = base.stride * (base.size.number(known) - 1) + base.constant
        else:
            length = known[base]
        return (length + self.size) // self.stride + 1


Dim = int | Size
Shape = tuple[Dim, ...]


def _factors(dim: Dim) -> tuple[int, Counter[Size]]:
    """Return a size as a number times named sizes."""
    if isinstance(dim, int):
        return dim, Counter()
    if isinstance(dim.base, Product) and (dim.stride, dim.size) == (1, -1):
        return dim.base.times, Counter(dim.base.sizes)
    return 1, Counter([dim])


@dataclass(frozen=True)
class Product:
    """The product of a number and sizes that are only named, in a fixed order."""

    times: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Enlarged:
    """What a transposed convolution makes of a size: ``stride * (size - 1) + constant``."""

    size: Size
    stride: int
    constant: int


Known = dict[Hashable, int]
"""Sizes for those that are only named."""


def assign(dim: Dim, wanted: int, known: Known) -> None:
    """Let a size be what is wanted, unless what it rests on is known already."""
    if isinstance(dim, int):
        return
    length = dim.stride * (wanted - 1) - dim.size
    if isinstance(dim.base, Product):
        for index, size in enumerate(dim.base.sizes):
            assign(size, max(length // dim.base.times, 1) if not index else 1, known)
    elif isinstance(dim.base, Enlarged):
        assign(dim.base.size, max(-(-(length - dim.base.constant) // dim.base.stride) + 1, 1), known)
    else:
        known.setdefault(dim.base, length)


def product_of(dims: Sequence[Dim], over: Sequence[Dim] = ()) -> Dim | None:
    """Return the product of sizes divided by that of others; None if it cannot be written."""
    times, sizes = 1, Counter[Size]()
    for dim in dims:
        number, named = _factors(dim)
        times, sizes = times * number, sizes + named
    for dim in over:
        number, named = _factors(dim)
        if not number or times % number or named - sizes:
            return None
        times, sizes = times // number, sizes - named
    if not sizes:
        return times
    left = sorted(sizes.elements(), key=repr)
    return left[0] if times == 1 and len(left) == 1 else Size(Product(times, tuple(left)))


def resolved(shape: Shape, target: Sequence[Dim]) -> Shape | None:
    """Return the shape that a Reshape gives: 0 copies a size, one -1 takes what is left."""
    if any(d == 0 and i >= len(shape) for i, d in enumerate(target)):
        return None
    dims = [shape[i] if d == 0 else d for i, d in enumerate(target)]
    open_ = [i for i, d in enumerate(dims) if d == -1]
    if len(open_) > 1:
        return None
    if open_:
        rest = product_of(shape, [d for d in dims if d != -1])
        if rest is None:
            return None
        dims[open_[0]] = rest
    return tuple(dims)


def broadcast(shapes: Sequence[Shape], name: str) -> Shape:
    """Return the shape to which shapes broadcast; an axis that cannot be told gets a size of its own."""
    rank = max(map(len, shapes))
    result: list[Dim] = []
    for axis in range(rank):
        dims = {s[axis - rank] for s in shapes if len(s) >= rank - axis} - {1}
        fixed = [d for d in dims if isinstance(d, int)]
        if len(dims) <= 1:
            result.append(dims.pop() if dims else 1)
        else:
            result.append(fixed[0] if len(fixed) == 1 else Size((name, axis)))
    return tuple(result)


def counted(axes: Sequence[object], rank: int) -> list[int] | None:
    """Return axes counted from the front; None if one is not known, does not exist or is named twice."""
    found = [a % rank for a in axes if isinstance(a, int) and -rank <= a < rank]
    return found if len(found) == len(axes) == len(set(found)) else None


def lengths_of(shape: Shape | None) -> tuple[int, ...] | None:
    """Return the spatial sizes of a ``[N, C, ...]`` shape if all are static."""
    if shape is None:
        return None
    sizes = tuple(d for d in shape[2:] if isinstance(d, int))
    return sizes if len(sizes) == len(shape) - 2 else None
