"""One convolution on a Concat of several sources, where the original had one too.

Looked through a Concat, a convolution falls into one part per source. Where scales and shifts in front of the Concat
vanished into the parts, they are put together again: the sources are concatenated as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxrep.grouping import spans
from onnxrep.lattice import Geometry, Inexact, NotAligned
from onnxrep.plan.records import Origin
from onnxrep.price import KERNEL, Part, Price


def stack(parts: Mapping[Origin, Sequence[Part]], alike: Callable[[Origin, Origin], bool]) -> dict[Origin, list[Part]]:
    """Return parts of which those that came through the same Concat are one, with the sources concatenated.

    ``alike``: whether two sources are known to have the same sizes, channels aside.
    """
    groups: dict[tuple[object, ...], list[tuple[Origin, Part]]] = {}
    result: dict[Origin, list[Part]] = {}
    for origin, mine in parts.items():
        for part in mine:
            if part.anchors and part.stacks:
                groups.setdefault((max(part.stacks), part.geometry.rows), []).append((origin, part))
            else:
                result.setdefault(origin, []).append(part)
    for found in groups.values():
        fits = len({origin for origin, _ in found}) == len(found) > 1
        fits = fits and all(alike(found[0][0], origin) for origin, _ in found[1:])
        both = _stacked(found) if fits else None
        for origin, part in found if both is None else [both]:
            result.setdefault(origin, []).append(part)
    return result


def picks(counts: Sequence[int], axes: int) -> list[Geometry]:
    """Return how to take each source from the Concat of all; ``counts`` are their channels."""
    places = zip(counts, spans(counts), strict=True)
    return [Geometry.channels(n, sum(counts), (0, n), span, axes) for n, span in places]


def _stacked(found: Sequence[tuple[Origin, Part]]) -> tuple[Origin, Part] | None:
    """Return several parts as one, or None if they do not fit or it does not pay."""
    geometries = [part.geometry for _, part in found]
    places = picks([g.inputs for g in geometries], geometries[0].axes)
    try:
        first, *rest = [g.after(place) for g, place in zip(geometries, places, strict=True)]
        for geometry in rest:
            first = first.plus(geometry, same_grid=True)
    except (Inexact, NotAligned):
        return None
    parts = [part for _, part in found]
    grids = frozenset.intersection(*(p.grids for p in parts))
    stacks = frozenset.intersection(*(p.stacks for p in parts))
    anchors = frozenset[str]().union(*(p.anchors for p in parts))
    both = Part(first, anchors, None, (), grids, stacks=stacks)
    apart = sum((p.price for p in parts), start=Price(0.0, len(parts) - 1, len(parts) - 1))
    if not (both.price + KERNEL).beats(apart):
        return None
    origins = tuple((origin, part.members) for origin, part in found)
    return replace(found[0][0], steps=(), parts=origins), both
