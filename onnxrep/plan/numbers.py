"""A solution with its numbers: the maps of its leaves, the one bias, and whether every step is exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto

from onnxrep import ranges
from onnxrep.lattice import Array, Form, Inexact, Map, NotAligned, Vanishes, border_fault, reads_outside
from onnxrep.lift import Decline
from onnxrep.plan.expansion import Expander, Expansion
from onnxrep.plan.records import Origin, Region, Step, Summand
from onnxrep.plan.search import Solution
from onnxrep.plan.stacking import picks
from onnxrep.plan.views import View, Views
from onnxrep.price import KERNEL, Price

FRAME_ROUNDINGS = 8.0
"""A border value and the bias that it must equal may differ by this many roundings of their summands."""

_ROUNDOFF: dict[int, float] = {
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
    TensorProto.DOUBLE: 2.0**-53,
}
_BORDER = "a bias or shift in front of a padded convolution does not reach the padding"


class Blocked(Exception):
    """Numbers forbid a step of a solution: an op cannot be used at all, or a view not be looked through."""

    def __init__(self, view: View, decline: Decline, *, unusable: bool = False) -> None:
        super().__init__(decline.code)
        self.view, self.decline, self.unusable = view, decline, unusable


@dataclass
class _Pool:
    """What is added to a value by all ops below it, as a constant image under one map with zeros around.

    Attributes:
        view: the value, or where that was not looked through the one whose op reads it: not to be looked through if
            the shifts cannot be had.
        source: the value in its layout.
        map: over the value; None for the region's output itself.
        total: the sum of all shifts, ``[channels]``, or None for zero.
        sizes: magnitudes of the summands, kept where a border's value is among them.
        leaves: how many sources lie below the value.
        rounded: whether a border counts as zero that differs from it by rounding.
    """

    view: View
    source: View
    map: Map | None
    total: Array | None = None
    sizes: Array | None = None
    leaves: list[_Leaf] = field(default_factory=list)
    rounded: bool = False

    def add(self, through: Map | None, shift: Array, sizes: Array) -> None:
        """Add a shift of a value below, which reaches this one by a pointwise map."""
        moved = shift if through is None else through.response(shift)
        self.total = moved if self.total is None else self.total + moved
        if self.sizes is not None:
            magnitude = through and Map(through.geometry, np.abs(through.weight))
            self.sizes = self.sizes + (np.abs(sizes) if magnitude is None else magnitude.response(np.abs(sizes)))


@dataclass
class _Leaf:
    """A map over a value; also while the value waits to be looked through.

    ``links`` are the pools that a shift of the value goes to, each with the pointwise map on the way. ``shift`` is what
    must be added to the value before it is read: zero, and one number or one per channel.
    """

    map: Map | None
    links: list[tuple[_Pool, Map | None]]
    chain: tuple[View, ...] = ()
    shift: tuple[float, ...] = ()


Leaves = Mapping[Origin, list[_Leaf]]


def _unshifted(leaves: Iterable[_Leaf]) -> Blocked:
    """Return what forbids to look through the value whose source one of the leaves would shift."""
    pool, _ = next(leaf for leaf in leaves if leaf.shift).links[0]
    return Blocked(pool.view, Decline("border", _BORDER))


def _merged(links: list[tuple[_Pool, Map | None]]) -> list[tuple[_Pool, Map | None]]:
    """Return links of which those to one pool are one."""
    found: dict[int, tuple[_Pool, Map | None]] = {}
    for pool, through in links:
        former = found.get(id(pool))
        if former is not None and former[1] is not None and through is not None:
            found[id(pool)] = (pool, former[1].plus(through))
            continue
        found[id(pool)] = (pool, through)
    return list(found.values())


def _part(leaf: _Leaf, quantized: bool) -> ranges.Part | None:
    """Return the range of one map."""
    assert leaf.map is not None
    return ranges.part(leaf.map.weight, leaf.map.geometry.blocks.rows[0], quantized=quantized)


class Evaluator:
    """Evaluates solutions of one scope."""

    def __init__(self, views: Views, expander: Expander) -> None:
        self._views, self._expander = views, expander
        self._shapes = views.facts.shapes

    def region(self, root: View, solution: Solution) -> Region:
        """Return the region of a solution.

        Raises:
            Blocked: a step is not exact, or a parameter unusable.
        """
        leaves, bias, rounded = self._evaluate(root, solution)
        assert solution.segments is not None
        segments = []
        for span, found in solution.segments:
            summands = [self._summand(origin, part.members, leaves, solution) for origin, part in found]
            summands.sort(key=lambda s: min(s.members))
            segments.append((span, tuple(summands)))
        expansion = solution.expansion
        after = solution.price
        for origin, part in (pair for _, found in solution.segments for pair in found):
            entries = expansion.leaves.get(origin, [])
            if any(leaves[origin][m].shift for m in part.members if entries):
                after += KERNEL * min(expansion.shares[r] for m in part.members if (r := entries[m].reader) is not None)
        if after != solution.price and not after.beats(expansion.spent):
            raise _unshifted(leaf for mine in leaves.values() for leaf in mine)
        shared: set[int] = set()  # what others need too dies when all have taken it over
        views = [v for v, share in expansion.shares.items() if share < 1.0]
        for view in views:
            lifted = self._views.lifted(view)
            shared.update((self._views.position(view[0]), *(lifted.within if lifted else ())))
        lifts = [self._views.lifted(v) for v in expansion.expanded]
        sums = sum(len(lifted.branches) - 1 for lifted in lifts if lifted)
        return Region(
            self._views.position(root[0]),
            root[0],
            root[1],
            expansion.outlet,
            tuple(sorted(expansion.inside - shared)),
            tuple(sorted(expansion.inside | {self._views.position(v) for v, _ in expansion.expanded})),
            tuple(sorted({self._views.position(view[0]) for view in views if view in self._views.whole})),
            tuple(segments),
            bias,
            "merge" if sums > sum(len(found) for _, found in segments) - 1 else "fuse",
            expansion.spent,
            after,
            rounded,
        )

    def _stacked(self, origin: Origin, every: Leaves, solution: Solution) -> Summand:
        """Return the maps over several sources as one over their Concat."""
        found = [self._summand(o, members, every, solution) for o, members in origin.parts]
        leaves = [every[o][m] for o, members in origin.parts for m in members]
        if any(leaf.shift for leaf in leaves):
            raise _unshifted(leaves)
        places = picks([s.map.geometry.inputs for s in found], found[0].map.geometry.axes)
        first, *rest = [s.map.after(Map.channels(place)) for s, place in zip(found, places, strict=True)]
        for map_ in rest:
            first = first.plus(map_, same_grid=True)
        anchors = frozenset[str]().union(*(s.anchors for s in found))
        members, parts = sum((s.members for s in found), ()), sum((s.parts for s in found), ())
        return replace(found[0], origin=origin, map=first, anchors=anchors, members=members, parts=parts)

    def _summand(self, origin: Origin, members: tuple[int, ...], every: Leaves, solution: Solution) -> Summand:
        """Return the sum of some leaves of one origin."""
        if origin.parts:
            return self._stacked(origin, every, solution)
        leaves = every[origin]
        entries = solution.expansion.leaves[origin]
        layout = solution.expansion.outlet.layout
        lengths = None if origin.steps else self._views.lengths((origin.value, layout))
        total = leaves[members[0]].map
        assert total is not None
        grids = entries[members[0]].grids
        for member in members[1:]:
            other = leaves[member].map
            assert other is not None
            grids &= entries[member].grids
            total = total.plus(other, lengths, bool(grids))
        if len({leaves[m].shift for m in members}) > 1:
            raise _unshifted(leaves[m] for m in members)
        units = [entries[m].unit for m in members]
        anchors = frozenset[str]().union(*(entries[m].anchors for m in members))
        unit = None if anchors or None in units else sum(u for u in units if u is not None)
        readers = tuple(self._views.position(r[0]) for m in members if (r := entries[m].reader) is not None)
        shift = leaves[members[0]].shift
        if shift:
            origin = replace(origin, steps=(Step(shift=shift),), after=min(readers))
        unit = unit if unit in (1.0, -1.0) else None
        parts = tuple(_part(leaves[m], bool(entries[m].anchors)) for m in members)
        return Summand(origin, total.trimmed(), anchors, unit, readers, tuple(filter(None, parts)))

    # -- top-down ---------------------------------------------------------------------------------------------------

    def _evaluate(self, root: View, solution: Solution) -> tuple[dict[Origin, list[_Leaf]], Array | None, bool]:
        """Return the maps of the leaves, in the order of the expansion's, and the one bias of the region.

        And whether a border counts as that of a bias up to rounding.
        """
        pools = [_Pool(root, root, None)]
        expanded = set(solution.expansion.expanded)
        waiting: dict[View, list[_Leaf]] = {root: [_Leaf(None, [(pools[0], None)])]}
        for view in solution.expansion.expanded:
            top = self._joined(view, waiting.pop(view))
            lifted = self._views.lifted(view)
            assert lifted is not None
            try:
                form = lifted.numbers()
            except Decline as decline:
                raise Blocked(view, decline, unusable=True) from None
            if form.bias is not None:
                for pool, through in top.links:
                    pool.add(through, form.bias, form.bias if form.sizes is None else form.sizes)
            for index, branch in enumerate(lifted.branches):
                below = branch.view(view[1])
                if lifted.lets_pass(top.chain):
                    entry = _Leaf(top.map, top.links, (*top.chain, view))
                    if top.map is None:
                        entry.map = form.maps[0]
                else:
                    try:
                        entry = self._through(view, top, form, index, below, expanded, pools)
                    except Vanishes:
                        continue
                waiting.setdefault(below, []).append(entry)
        outlet = solution.expansion.outlet
        for leaf in (leaf for found in waiting.values() for leaf in found):
            leaf.map = leaf.map and leaf.map.with_axes(outlet.axes)
            for pool, _ in leaf.links:
                pool.leaves.append(leaf)
        found = self._expander.origins(waiting, lambda leaf: leaf.chain[len(outlet.views) :])
        bias = self._resolved(pools, solution.expansion)
        return found, bias, any(pool.rounded for pool in pools)

    def _joined(self, view: View, found: list[_Leaf]) -> _Leaf:
        """Return the sum of the maps over one value."""
        first, *rest = found
        lengths = self._views.lengths(view)
        total, links = first.map, list(first.links)
        for other in rest:
            assert total is not None
            assert other.map is not None
            try:
                total = total.plus(other.map, lengths)
            except NotAligned:
                total = total.plus(other.map, lengths, same_grid=True)  # the plan found a Concat above both
            links = _merged(links + other.links)
        return _Leaf(total, links, first.chain)

    def _through(
        self,
        view: View,
        top: _Leaf,
        form: Form,
        index: int,
        below: View,
        expanded: set[View],
        pools: list[_Pool],
    ) -> _Leaf:
        """Return the map over one input of an op, and where shifts of that input go."""
        inner = form.maps[index]
        offset = form.offsets[index] if form.offsets else None
        outer = top.map
        if outer is not None:
            outer = outer.with_axes(inner.geometry.axes)
            fault = border_fault(outer, inner, None, self._views.lengths(below))
            if fault is not None:
                raise Blocked(view, Decline("border", fault))
        try:
            whole = inner if outer is None else outer.after(inner)
        except Inexact as error:
            raise Blocked(view, Decline("not-aligned", str(error))) from None
        if inner.geometry.is_pointwise and offset is None:
            links: list[tuple[_Pool, Map | None]] = []
            for pool, through in top.links:
                try:
                    step = inner if through is None else through.with_axes(inner.geometry.axes).after(inner)
                except Vanishes:
                    continue  # the map goes on from other channels than a shift comes to
                links.append((pool, step))
            return _Leaf(whole, links, top.chain)
        culprit = below if below in expanded else view
        pool = _Pool(culprit, below, whole, offset, None if offset is None else np.abs(offset))
        pools.append(pool)
        return _Leaf(whole, [(pool, None)], top.chain)

    # -- shifts -----------------------------------------------------------------------------------------------------

    def _resolved(self, pools: list[_Pool], expansion: Expansion) -> Array | None:
        """Return the region's bias: what every constant image becomes under the map that reads it."""
        bias: Array | None = None
        for pool in pools:
            if pool.total is None or not np.any(pool.total):
                continue
            shift = pool.total if pool.map is None else pool.map.response(pool.total)
            if pool.map is not None and not self._is_harmless(pool):
                if not self._shifted(pool, expansion):
                    raise Blocked(pool.view, Decline("border", _BORDER))
                continue
            bias = shift if bias is None else bias + shift
        return bias

    def _is_harmless(self, pool: _Pool) -> bool:
        """Whether a constant image is read as if it went on beyond its border: no map reads there, or it is zero.

        A border that was filled with the value of a bias counts as zero if both differ only by their rounding.
        """
        assert pool.map is not None
        assert pool.total is not None
        if not reads_outside(pool.map, self._views.lengths(pool.source)):
            return True
        read = np.abs(pool.total[pool.map.reads])
        if pool.sizes is None:
            return not np.any(read)
        roundoff = _ROUNDOFF.get(self._shapes.type_of(pool.source[0]), 2.0**-24)
        pool.rounded = bool(np.all(read <= FRAME_ROUNDINGS * roundoff * pool.sizes[pool.map.reads]))
        return pool.rounded

    def _shifted(self, pool: _Pool, expansion: Expansion) -> bool:
        """Let the one source below a value take the shift as it is, in front of the map, if that can be done.

        ``W * (a x + t)`` is ``(W a) * (x + t / a)``, where a border of zeros stays one.
        """
        if len(pool.leaves) != 1 or pool.map is None or pool.map.geometry.mode != "conv":
            return False
        if not (KERNEL * expansion.shares.get(pool.source, 1.0)).beats(self._cost_below(pool.source, expansion)):
            return False  # an op that adds takes the place of one op
        leaf = pool.leaves[0]
        _, through = leaf.links[0]
        if len(leaf.links) > 1 or (through is not None and not through.geometry.is_diagonal) or leaf.chain:
            return False
        factors = np.ones(pool.map.geometry.inputs) if through is None else through.weight.reshape(-1)
        if not np.all(factors):
            return False
        assert pool.total is not None
        shifts = pool.total / factors
        if np.ptp(shifts) <= 1e-12 * np.max(np.abs(shifts)):
            shifts = shifts[:1]
        leaf.shift = tuple(float(v) for v in shifts)
        return True

    def _cost_below(self, view: View, expansion: Expansion) -> Price:
        """Return what a value costs together with all that was looked through below it."""
        found: dict[View, Price] = {}
        stack = [view]
        while stack:
            top = stack.pop()
            lifted = self._views.lifted(top)
            if top in expansion.costs and top not in found and lifted is not None:
                found[top] = expansion.costs[top]
                stack += [branch.view(top[1]) for branch in lifted.branches]
        return sum(found.values(), start=Price())
