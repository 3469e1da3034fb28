"""A root seen through the ops below it, without numbers.

Seen from the root, every op is a form over its own inputs. Substituting the form of an input that nobody else reads is
the one rule of combination. What is not looked through is a source.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from onnxrep.lattice import Geometry, Inexact, NotAligned, Vanishes
from onnxrep.lift import FIRST, Branch, Layout, Lifted
from onnxrep.lift.rearrange import serves
from onnxrep.plan.records import Origin, Outlet, Step
from onnxrep.plan.views import View, Views
from onnxrep.price import Price, can_emit
from onnxrep.shapes import Dim, Shape

LARGEST_REGION = 1 << 16
"""Nodes that one region may hold; a longer chain is folded in several rounds."""

Note = Callable[[int, str, str], None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """One way in which the region's output depends on a value.

    Attributes:
        geometry: of the map; None for the output itself.
        anchors: op types of the convolutions and products on the way.
        unit: the factor if the map copies channels by construction, else None.
        macs: arithmetic of the ops on the way.
        reader: the view whose op reads the value.
        chain: results of the movements (Reshape, Transpose) on the way, from the output down.
        grids: positions of the Concats on the way.
        stacks: of those, the ones below a convolution.
    """

    geometry: Geometry | None
    anchors: frozenset[str] = frozenset()
    unit: float | None = 1.0
    macs: float = 0.0
    reader: View | None = None
    chain: tuple[View, ...] = ()
    grids: frozenset[int] = frozenset()
    stacks: frozenset[int] = frozenset()

    @property
    def is_free(self) -> bool:
        """Whether only element-wise ops, sums, Concats and movements are on the way."""
        return not self.anchors and (self.geometry is None or self.geometry.is_channelwise)


@dataclass
class Expansion:
    """A root seen through some of the ops below it.

    Attributes:
        root: the view that it starts from.
        expanded: the views looked through, root first.
        leaves: origin -> the ways in which the output depends on it.
        spent: what the original nodes cost.
        costs: the same for each view.
        above: view -> unit of the map from its value to the output.
        parents: view -> the views that read it.
        openable: views below a convolution that could be looked through, with positions per position of the output and
            the share of their cost that this region bears.
        biases: rows in which a bias may be added, for each op that has one.
        shares: view -> the share of its cost that this region bears; the rest is borne by others that read it too.
        inside: positions of the nodes all of whose used outputs were looked through.
        values: names of the views looked through.
        outlet: how the output is made of the sum of all maps.
        carried: opened views of ops that scale or shift one operand; more of them in a row are opened with them.
    """

    root: View
    expanded: list[View] = field(default_factory=list)
    leaves: dict[Origin, list[Entry]] = field(default_factory=dict)
    spent: Price = field(default_factory=Price)
    costs: dict[View, Price] = field(default_factory=dict)
    above: dict[View, float | None] = field(default_factory=dict)
    parents: dict[View, list[View | None]] = field(default_factory=dict)
    openable: dict[View, tuple[float, float]] = field(default_factory=dict)
    biases: list[tuple[int, int] | None] = field(default_factory=list)
    shares: dict[View, float] = field(default_factory=dict)
    inside: set[int] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    outlet: Outlet = field(default_factory=lambda: Outlet(FIRST, 0))
    carried: set[View] = field(default_factory=set)


class Expander:
    """Expands roots of one scope."""

    def __init__(self, views: Views, note: Note) -> None:
        self._views, self._scope, self._shapes = views, views.scope, views.facts.shapes
        self._note = note

    def expand(self, root: View, opened: frozenset[View], closed: frozenset[View]) -> Expansion:
        """Look through the ops below ``root``; ``opened`` views also below a convolution, ``closed`` views never."""
        result = Expansion(root)
        waiting: dict[View, list[Entry]] = {root: [Entry(None)]}
        heap = [(self._views.place(root[0]), root)]
        seen = {root}
        layouts: dict[str, set[Layout]] = {}
        while heap:
            _, view = heapq.heappop(heap)
            entries = waiting[view]
            if len(layouts.get(view[0], ())) > 1:
                continue  # read in two ways: it cannot vanish
            lifted = self._views.lifted(view)
            assert lifted is not None
            if view != root and not self._enters(view, lifted, entries, opened, closed, result):
                continue
            try:
                joined = self.join(view, entries)
                steps = self._steps(joined, lifted, view)
            except (Inexact, NotAligned) as error:
                if not any(e.chain for e in entries) and not lifted.moves:
                    self._note(self._views.position(view[0]), "not-aligned", str(error))
                continue
            del waiting[view]
            self._account(view, joined, entries, lifted, result)
            for branch, entry in steps:
                below = branch.view(view[1])
                waiting.setdefault(below, []).append(entry)
                layouts.setdefault(below[0], set()).add(below[1])
                if below not in seen and self._views.may_vanish(below) and len(seen) < LARGEST_REGION:
                    seen.add(below)
                    heapq.heappush(heap, (self._views.place(below[0]), below))
        result.outlet = self._outlet(root, waiting)
        result.leaves = self._by_origin(waiting, result.outlet)
        return result

    def _account(self, view: View, joined: Entry, entries: list[Entry], lifted: Lifted, result: Expansion) -> None:
        """Note that a view was looked through."""
        result.expanded.append(view)
        result.above[view] = joined.unit
        result.parents[view] = [e.reader for e in entries]
        share = result.shares[view] = self._share(view, entries, result)
        positions = self._positions(result.root, view, joined)
        cost = Price(lifted.macs * positions * share, lifted.kernels * share, lifted.nodes * share)
        if lifted.averages and joined.chain:
            cost = Price()  # it stays, in front of the region
        result.costs[view] = cost
        result.spent += cost
        if lifted.biased:
            result.biases.append(joined.geometry.rows if joined.geometry else None)
        position = self._views.position(view[0])
        result.values.add(view[0])
        if all(name in result.values for name in self._views.outputs_in_use(position)):
            result.inside.update((position, *lifted.within))

    def _share(self, view: View, entries: list[Entry], result: Expansion) -> float:
        """Return the share of a view's cost that the region bears: all of its root's, less of what others take too."""
        if view == result.root:
            return 1.0
        above = min(result.shares[e.reader] for e in entries if e.reader is not None)
        return above * self._views.shared.get(view, 1.0)

    def _enters(
        self,
        view: View,
        lifted: Lifted,
        entries: list[Entry],
        opened: frozenset[View],
        closed: frozenset[View],
        result: Expansion,
    ) -> bool:
        """Whether the op behind a view becomes part of the region; note it as openable if it only needs opening."""
        pointwise = all(e.geometry is None or e.geometry.is_pointwise for e in entries)
        if self._views.is_blocked(view) and not pointwise:
            return False
        if view in closed or (view not in self._views.shared and not self._is_read_inside(view[0], result.inside)):
            return False
        shared = any(result.shares[e.reader] < 1.0 for e in entries if e.reader is not None)
        passes = lifted.averages and all(e.chain for e in entries)
        diagonal = not lifted.anchor and (passes or all(b.geometry.is_diagonal for b in lifted.branches))
        if shared and not diagonal and view not in self._views.whole:
            return False  # others read it too, and need not take it over
        free = all(e.is_free for e in entries) or lifted.nodes == 0
        carried = len(lifted.branches) == 1 and not lifted.anchor
        carried &= passes or lifted.branches[0].geometry.is_channelwise
        if view in opened or (carried and all(e.reader in result.carried for e in entries)):
            if carried and not free:
                result.carried.add(view)
            return True
        if free:
            return True
        positions = max(self._positions(result.root, view, e) for e in entries)
        result.openable[view] = positions, self._share(view, entries, result)
        return False

    def _positions(self, root: View, view: View, entry: Entry) -> float:
        """Return how many positions a value has per position of the root: counted for static sizes, else in the limit.

        ``entry``: how the root depends on the value.
        """
        outer, inner = self._views.lengths(root), self._views.lengths(view)
        if outer and inner and math.prod(outer) and not entry.chain:
            return math.prod(inner) / math.prod(outer)
        return entry.geometry.coarsening if entry.geometry else 1.0

    def _is_read_inside(self, value: str, inside: set[int]) -> bool:
        """Whether all readers of a value are in the region; a Shape that only serves Reshapes in it does not count."""
        readers = self._scope.readers.get(value, ())
        return all(r in inside or serves(r, inside, self._views.facts) for r in readers)

    def join(self, view: View, entries: list[Entry]) -> Entry:
        """Return the sum of all ways in which the output depends on a value.

        Raises:
            NotAligned: they cannot be summed.
        """
        first, *rest = entries
        lengths = self._views.lengths(view)
        for entry in rest:
            if first.geometry is None or entry.geometry is None or first.chain != entry.chain:
                raise NotAligned("the value is read before and after it was moved")
            shared = first.grids & entry.grids
            first = Entry(
                first.geometry.plus(entry.geometry, lengths, bool(shared)),
                first.anchors | entry.anchors,
                None if first.unit is None or entry.unit is None else first.unit + entry.unit,
                first.macs + entry.macs,
                entry.reader,
                first.chain,
                shared,
                first.stacks & entry.stacks,
            )
        return first

    def _steps(self, entry: Entry, lifted: Lifted, view: View) -> list[tuple[Branch, Entry]]:
        """Return how the output depends on an op's inputs, from how it depends on the op's result."""
        found = []
        for branch in lifted.branches:
            try:
                found.append((branch, self._through(entry, branch, lifted, view)))
            except Vanishes:
                continue  # a Slice of a Concat that takes none of this input
        return found

    def _through(self, entry: Entry, branch: Branch, lifted: Lifted, view: View) -> Entry:
        """Return how the output depends on one input."""
        position = self._views.position(view[0])
        geometry = entry.geometry
        if lifted.lets_pass(entry.chain):
            if geometry is not None and not geometry.is_pointwise:
                raise Inexact("a map that reads neighbours does not pass a reshape or transpose")
            geometry = geometry or branch.geometry
            return replace(entry, geometry=geometry, reader=view, chain=(*entry.chain, view))
        if entry.chain and not branch.geometry.is_pointwise:
            raise Inexact("a map that reads neighbours does not pass a reshape or transpose")
        if geometry is None:
            geometry = branch.geometry
        else:
            geometry = geometry.with_axes(branch.geometry.axes).after(branch.geometry)
        unit = None if entry.unit is None or branch.unit is None else entry.unit * branch.unit
        here = frozenset((position,)) if self._scope.nodes[position].op == "Concat" else frozenset[int]()
        grids, stacks = entry.grids | here, entry.stacks | here if entry.anchors else entry.stacks
        anchors = entry.anchors | {lifted.anchor} if lifted.anchor else entry.anchors
        return Entry(geometry, anchors, unit, entry.macs + lifted.macs, view, entry.chain, grids, stacks)

    # -- sources ----------------------------------------------------------------------------------------------------

    def _outlet(self, root: View, waiting: Mapping[View, list[Entry]]) -> Outlet:
        """Return where the sum of all maps is made: at the root, or in front of movements that all ways pass."""
        entries = [e for found in waiting.values() for e in found if e.geometry is not None]
        anchors = frozenset[str]().union(*(e.anchors for e in entries))
        lifted, shape = self._views.lifted(root), self._shapes.of(root[0])
        assert lifted is not None
        axes = lifted.branches[0].geometry.axes
        plain = Outlet(root[1], axes + 2 if root[1] == FIRST else len(shape or ()))
        if can_emit(root[1].kind, anchors) or not anchors or shape is None:
            return plain
        for count in range(1, min(len(e.chain) for e in entries) + 1):
            views = entries[0].chain[:count]
            if self._is_pool(views[-1]) or any(
                self._movement(e.chain[count - 1]) != self._movement(views[-1]) for e in entries
            ):
                break
            inner = self._below(views[-1])
            before = self._shapes.of(inner[0])
            if inner[1].kind == "flat" or before is None or not can_emit(inner[1].kind, anchors):
                continue
            steps, _ = self.steps_of(inner, views, _channels(shape, root[1]))
            return Outlet(inner[1], len(before), views, steps) if all(s.is_known for s in steps) else plain
        return plain

    def _below(self, view: View) -> View:
        """Return what a movement moves."""
        lifted = self._views.lifted(view)
        assert lifted is not None
        return lifted.branches[0].view(view[1])

    def _is_pool(self, view: View) -> bool:
        """Whether a movement averages."""
        return bool(self._scope.nodes[self._views.position(view[0])].op == "AveragePool")

    def _movement(self, view: View) -> tuple[object, ...]:
        """Return what tells movements apart, the value that they move aside."""
        node = self._scope.nodes[self._views.position(view[0])]
        order = node.attrs.get("perm") if node.op == "Transpose" else None
        return node.op == "Transpose", tuple(order or ()), view[1], self._below(view)[1], self._shapes.of(view[0])

    def _by_origin(self, waiting: Mapping[View, list[Entry]], outlet: Outlet) -> dict[Origin, list[Entry]]:
        """Return the entries per origin, with the spatial axes of the sum."""
        found = self.origins(waiting, lambda e: e.chain[len(outlet.views) :])
        return {
            origin: [replace(e, geometry=e.geometry and e.geometry.with_axes(outlet.axes)) for e in entries]
            for origin, entries in found.items()
        }

    def origins(
        self, waiting: Mapping[View, list[_T]], chain_of: Callable[[_T], tuple[View, ...]]
    ) -> dict[Origin, list[_T]]:
        """Return what waits per origin; values that are certainly equal are taken together under one of their names.

        The name is one that the region reads already: another region cannot remove it then.
        """
        alike: dict[tuple[str, Layout, tuple[Step, ...]], list[tuple[str, _T, int]]] = {}
        for (value, layout), items in waiting.items():
            for item in items:
                steps, after = self.steps_of((value, layout), chain_of(item))
                key = (self._views.equals.representative(value), layout, steps)
                alike.setdefault(key, []).append((value, item, after))
        result: dict[Origin, list[_T]] = {}
        for (_, _, steps), found in alike.items():
            name = min((value for value, _, _ in found), key=self._views.position)
            origin = Origin(name, steps, max(after for _, _, after in found))
            result.setdefault(origin, []).extend(item for _, item, _ in found)
        return result

    def steps_of(
        self, view: View, chain: tuple[View, ...], channels: Dim | None = None
    ) -> tuple[tuple[Step, ...], int]:
        """Return the movements from a value up to the root in normal form, and the position behind the last of them.

        Reshapes in a row are one, Transposes in a row are one, and what cancels is none. The maps on the way may change
        the number of channels; all movements are stated for those of the value, or for the given number.
        """
        moves: list[_Move] = []
        before = self._shapes.of(view[0])
        if channels is None:
            channels = None if before is None else _channels(before, view[1])
        before = _with_channels(before, view[1], channels)
        for result in reversed(chain):
            node = self._scope.nodes[self._views.position(result[0])]
            shape = _with_channels(self._shapes.of(result[0]), result[1], channels)
            step = Step()
            if node.op == "Transpose":
                step = Step(tuple(node.attrs.get("perm") or reversed(range(len(shape or ())))))
            elif self._is_pool(result):
                step = Step(pool=tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in node.attrs.items()))
            moves.append((step, shape))
            _reduce(moves, before)
        steps = []
        for step, shape in moves:
            steps.append(step if step.is_known else Step(shape=target(before, shape)))
            before = shape
        return tuple(steps), max((self._views.position(v) for v, _ in chain), default=-1)


def _channels(shape: Shape, layout: Layout) -> Dim:
    """Return the number of channels of a value in a layout."""
    return layout.size if layout.kind == "flat" else shape[1] if layout.kind == "first" else shape[-1]


def _with_channels(shape: Shape | None, layout: Layout, channels: Dim | None) -> Shape | None:
    """Return a shape with another number of channels; None if it cannot be told."""
    if shape is None or channels is None or _channels(shape, layout) == channels:
        return shape
    if layout.kind == "flat":
        return None
    return (shape[0], channels, *shape[2:]) if layout.kind == "first" else (*shape[:-1], channels)


_Move = tuple[Step, Shape | None]
"""A movement, of a Reshape not yet to which shape; and the shape behind it."""


def _reduce(moves: list[_Move], before: Shape | None) -> None:
    """Join the last movement with the one in front of it while that can be done, and drop it if it does nothing."""
    while moves:
        (step, shape), former = moves[-1], moves[-2][0] if len(moves) > 1 else None
        at = moves[-2][1] if former else before
        if step.pool or (former and former.pool):
            return
        if (step.order and step.order == tuple(range(len(step.order)))) or (not step.order and shape and shape == at):
            moves.pop()
        elif former and bool(former.order) == bool(step.order):
            moves[-2:] = [(Step(tuple(former.order[i] for i in step.order)), shape)]
        else:
            return


def target(before: Shape | None, after: Shape | None) -> tuple[int, ...]:
    """Return a constant shape for a Reshape: 0 copies a size, -1 is what is left; empty if there is none."""
    if before is None or after is None:
        return ()
    dims = [d if isinstance(d, int) else 0 if i < len(before) and d == before[i] else -1 for i, d in enumerate(after)]
    return tuple(dims) if dims.count(-1) <= 1 and 0 not in [d for d in after if isinstance(d, int)] else ()
