"""The best way to replace a root: what to look through, and which maps to join, by price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxrep.grouping import Span
from onnxrep.lift import FIRST, Layout
from onnxrep.plan.expansion import Entry, Expander, Expansion
from onnxrep.plan.records import Origin
from onnxrep.plan.stacking import stack
from onnxrep.plan.views import View, Views
from onnxrep.price import BIASED, KERNEL, Part, Price, cover

_LOOKAHEAD = 4
_MOST_STEPS = 16
"""Openings one after the other behind which no more is opened: bounds what long linear chains cost."""
_MANY_STEPS = 8
"""Openings of a root from which on those above it repeat all of them at once: one by one takes as long again."""
_ROUNDING = 1e-9

Parts = Mapping[Origin, Sequence[Part]]
Segments = list[tuple[Span, list[tuple[Origin, Part]]]]


@dataclass(frozen=True)
class Solution:
    """An expansion of a root, and what it becomes.

    Attributes:
        expansion: what was looked through.
        parts: the kernels per origin.
        segments: rows of the output with the parts that make them, None if the parts cannot be emitted.
        opened: views below a convolution that were looked through.
        price: of the parts.
        total: the price with what the sources below convolutions cost as regions of their own.
        folds: whether replacing the expanded nodes pays.
        whole, whole_parts: the expansion before ops below which nothing joined were closed again.
        steps: how many openings, one after the other, led to it.
    """

    expansion: Expansion
    parts: Parts
    segments: Segments | None
    opened: frozenset[View]
    price: Price
    total: Price
    folds: bool
    whole: Expansion
    whole_parts: Parts
    steps: int = 0


class Searcher:
    """Finds the best solution for roots of one scope."""

    def __init__(self, views: Views, expander: Expander) -> None:
        self._views, self._expander = views, expander
        self._solutions: dict[View, Solution] = {}

    def forget(self, since: int = 0) -> None:
        """Drop the solutions of roots from a position on: what may be looked through there has changed."""
        for root in [r for r in self._solutions if self._views.position(r[0]) >= since]:
            del self._solutions[root]

    def solve(self, root: View) -> Solution:
        """Return the best solution for a root, opening views below convolutions one by one while that pays."""
        if root in self._solutions:
            return self._solutions[root]
        best = self._evaluate(root, frozenset())
        tried: set[frozenset[View]] = {frozenset()}
        improved = True
        while improved:
            improved = False
            for views, steps in self._moves(best):
                better = self._opened(root, best, views, tried)
                if better is not None:
                    best, improved = replace(better, steps=best.steps + steps), True
                    break
        self._solutions[root] = best
        return best

    def _moves(self, best: Solution) -> list[tuple[frozenset[View], int]]:
        """Return what to open next, with the steps that it stands for: all that reads one value, then each view."""
        if best.steps >= _MOST_STEPS:
            return []
        by_source: dict[str, set[View]] = {}
        for view in best.whole.openable:
            lifted = self._views.lifted(view)
            assert lifted is not None
            if len(lifted.branches) == 1 and not lifted.anchor:
                by_source.setdefault(lifted.branches[0].source, set()).add(view)
        together = [(frozenset(views), 1) for _, views in sorted(by_source.items()) if len(views) > 1]
        return together + [move for view in sorted(best.whole.openable) for move in self._alone(view)]

    def _alone(self, view: View) -> list[tuple[frozenset[View], int]]:
        """Return the ways to open one view: by itself, or with all that it opened as a root if that took many steps."""
        alone = frozenset((view,))
        inner = self._solutions.get(view)
        if inner is None or inner.steps < _MANY_STEPS:
            return [(alone, 1)]
        return [(inner.opened | alone, 1 + inner.steps), (alone, 1)] if inner.steps < _MOST_STEPS else []

    def _opened(
        self, root: View, best: Solution, views: frozenset[View], tried: set[frozenset[View]]
    ) -> Solution | None:
        """Return a better solution that opens some views, and perhaps what lies behind them."""
        trial, opened = best, best.opened
        for _ in range(_LOOKAHEAD):
            opened = opened | views | (trial.whole.openable.keys() - best.whole.openable.keys())
            if opened in tried:
                return None
            tried.add(opened)
            trial = self._evaluate(root, opened)
            if trial.folds and trial.total.beats(best.total + self._left_out(best, trial)):
                return trial
        return None

    def _left_out(self, best: Solution, trial: Solution) -> Price:
        """Return what the views cost that a trial looks through and that the best solution so far does not count."""
        counted = set(best.whole.costs) | set(best.whole.openable)
        for view in best.whole.openable:
            if view in self._solutions:
                counted.update(self._solutions[view].whole.expanded)
        return sum((cost for view, cost in trial.whole.costs.items() if view not in counted), start=Price())

    def _evaluate(self, root: View, opened: frozenset[View]) -> Solution:
        """Expand, cover, close what does not join, and price the result."""
        whole = self._priced(root, opened, frozenset())
        closed = self._unjoined(whole.expansion, whole.parts)
        best = self._priced(root, opened, closed) if closed else whole
        if not best.folds and whole.folds:
            best = whole  # nothing joins, but a scale or shift finds a convolution to vanish into
        cost = best.price if best.folds else best.expansion.spent
        for view, price in whole.expansion.costs.items():
            if view not in best.expansion.costs:
                cost += price
        if whole.segments is not None and whole.price.beats(cost):
            cost = whole.price
        for view, (positions, share) in whole.expansion.openable.items():
            cost += self._own(view).at(positions) * share
        return replace(best, total=cost, whole=whole.expansion, whole_parts=whole.parts)

    def _own(self, view: View) -> Price:
        """Return what a view costs as the root of its own region."""
        if view in self._solutions:
            return self._solutions[view].total
        lifted = self._views.lifted(view)
        assert lifted is not None
        return Price(lifted.macs, lifted.kernels, lifted.nodes)

    def _priced(self, root: View, opened: frozenset[View], closed: frozenset[View]) -> Solution:
        """Return one expansion with its price."""
        expansion = self._expander.expand(root, opened, closed)
        layout = expansion.outlet.layout
        parts = {origin: self._cover(origin, entries, layout) for origin, entries in expansion.leaves.items()}
        segments = self._segments(layout.kind, stack(parts, lambda a, b: self._alike(a, b, layout)))
        if layout.kind == "flat" and not self._has_one_open_size(root[0]):
            segments = None  # no constant shape leads back
        price = Price() if segments is None else self._price(expansion, segments)
        anchored = any(e.anchors for entries in expansion.leaves.values() for e in entries)
        folds = anchored and segments is not None and price.beats(expansion.spent)
        folds = folds and self._anchors_of(segments) <= self._anchors_in(expansion)
        return Solution(expansion, parts, segments, opened, price, price, folds, expansion, parts)

    def _has_one_open_size(self, value: str) -> bool:
        """Whether at most one size of a value is not static."""
        return sum(not isinstance(d, int) for d in self._views.facts.shapes.of(value) or ()) < 2

    def _alike(self, first: Origin, second: Origin, layout: Layout) -> bool:
        """Whether two sources are known to have the same sizes, channels aside."""
        shapes = [self._views.facts.shapes.of(o.value) for o in (first, second)]
        if first.steps or second.steps or None in shapes:
            return False
        axis = 1 if layout == FIRST else -1
        rests = [[d for i, d in enumerate(s) if i != axis % len(s)] for s in shapes if s is not None]
        return rests[0] == rests[1]

    def _anchors_in(self, expansion: Expansion) -> float:
        """Return how many convolutions and products were looked through, of shared ones the share; rounded up a bit."""
        lifts = ((view, self._views.lifted(view)) for view in expansion.expanded)
        return _ROUNDING + sum(expansion.shares[view] for view, lifted in lifts if lifted and lifted.anchor)

    @staticmethod
    def _anchors_of(segments: Segments | None) -> int:
        """Return how many convolutions and products segments become; their number must not grow."""
        return sum(bool(part.anchors) for _, found in segments or () for _, part in found)

    def _cover(self, origin: Origin, entries: Sequence[Entry], layout: Layout) -> list[Part]:
        """Return the kernels that the maps of one origin become."""
        single = [
            Part(e.geometry, e.anchors, e.unit, (i,), e.grids, 0.0 if e.anchors else e.macs, e.stacks)
            for i, e in enumerate(entries)
            if e.geometry is not None
        ]
        lengths = None if origin.steps else self._views.lengths((origin.value, layout))
        return cover(single, lengths)

    def _segments(self, kind: str, parts: Parts) -> Segments | None:
        """Return the rows of the output and what makes them, or None if the parts cannot be emitted."""
        by_rows: dict[Span | None, list[tuple[Origin, Part]]] = {}
        outputs = 0
        for origin, mine in parts.items():
            for part in mine:
                steps_known = all(s.is_known for o in _each(origin) for s in o.steps)
                if not part.can_stand_alone(kind) or not steps_known:
                    return None
                outputs = part.geometry.outputs
                by_rows.setdefault(part.geometry.rows, []).append((origin, part))
        if set(by_rows) == {None}:
            return [((0, outputs), by_rows[None])]
        if None in by_rows or not by_rows:
            return None
        ordered = sorted((span, found) for span, found in by_rows.items() if span is not None)
        edges = [0, *(span[1] for span, _ in ordered)]
        if any(span[0] != edge for (span, _), edge in zip(ordered, edges, strict=False)) or edges[-1] != outputs:
            return None
        return ordered

    def _price(self, expansion: Expansion, segments: Segments) -> Price:
        """Return the price of the nodes that segments become."""
        kind, rank = expansion.outlet.layout.kind, expansion.outlet.rank
        steps = expansion.outlet.steps
        total = KERNEL if len(segments) > 1 else Price()
        total += sum((s.price for s in steps), start=Price())
        for span, found in segments:
            emitted = [part.emitted(kind) for _, part in found]
            total += Price(0.0, len(found) - 1, len(found) - 1)
            if all(not part.anchors and part.unit == -1.0 for _, part in found):
                total += KERNEL  # a Neg
            for origin, part in found:
                total += part.price
                total += KERNEL if origin.parts else Price()
                for each in _each(origin):
                    total += sum((s.price for s in each.steps), start=Price()) * self._share(each)
            biased = any(rows is None or (rows[0] < span[1] and span[0] < rows[1]) for rows in expansion.biases)
            takes_bias = any(e in BIASED for e in emitted)
            takes_bias |= rank == 2 and any(e in ("Gemm", "MatMul") for e in emitted)
            if biased and not takes_bias:
                total += KERNEL
            if kind == "flat":
                total += Price(0.0, 0.0, 2.0)
        return total

    def _share(self, origin: Origin) -> float:
        """Return which share of an origin's movements a region pays: others may use the same."""
        return min(
            (s for (v, _), s in self._views.shared.items() if self._views.position(v) == origin.after), default=1.0
        )

    def _unjoined(self, expansion: Expansion, parts: Parts) -> frozenset[View]:
        """Return the views to close again: nothing below them joined, and their value is used as it is."""
        joined: set[View | None] = set()
        for origin, entries in expansion.leaves.items():
            for part in parts[origin]:
                if len(part.members) > 1:
                    joined.update(entries[m].reader for m in part.members)
        for view in reversed(expansion.expanded):
            if view in joined:
                joined.update(expansion.parents[view])
        closing: set[View] = set()
        outside: set[View] = set()
        for view in expansion.expanded[1:]:
            if all(p in closing or p in outside for p in expansion.parents[view]):
                outside.add(view)
            elif view not in joined and (expansion.above[view] in (1.0, -1.0) or self._is_loose(view)):
                closing.add(view)
        return frozenset(closing)

    def _is_loose(self, view: View) -> bool:
        """Whether an op moves or mixes pixels without being a convolution: it cannot be emitted by itself."""
        lifted = self._views.lifted(view)
        assert lifted is not None
        return lifted.moves or (not lifted.anchor and any(not b.geometry.is_channelwise for b in lifted.branches))


def _each(origin: Origin) -> Sequence[Origin]:
    """Return the single sources of an origin."""
    return [o for o, _ in origin.parts] or [origin]
