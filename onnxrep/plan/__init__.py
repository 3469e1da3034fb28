"""The linear form of each value over its sources, the regions worth replacing, and why the others are not.

A region hangs from a root value. Planning happens without numbers (:mod:`~onnxrep.plan.expansion`,
:mod:`~onnxrep.plan.search`); only regions that are worth it read their weights (:mod:`~onnxrep.plan.numbers`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from onnxrep.lift import Decline, Facts
from onnxrep.plan.expansion import Expander
from onnxrep.plan.explain import Explainer
from onnxrep.plan.numbers import Blocked, Evaluator
from onnxrep.plan.records import Origin, Refusal, Region, Step, Summand
from onnxrep.plan.search import Searcher, Solution
from onnxrep.plan.sharing import find_shared, shared_goes
from onnxrep.plan.views import View, Views

__all__ = ["Origin", "Planner", "Refusal", "Region", "Step", "Summand", "shared_goes"]


class Planner:
    """Finds the regions of one scope. Pure: it proposes, :func:`onnxrep.graph.commit` disposes."""

    def __init__(
        self,
        facts: Facts,
        skipped: Collection[str] = (),
        apart: Collection[str] = (),
        excluded: Mapping[str, str] | None = None,
    ) -> None:
        """Plan one scope.

        ``skipped``: values that no region may make or look through; ``apart``: those that some reader must keep;
        ``excluded``: like ``skipped``, each with the reason that the caller gave.
        """
        self._views = Views(facts)
        self._explain = Explainer(self._views)
        expander = Expander(self._views, self._explain.note)
        self._search = Searcher(self._views, expander)
        self._evaluator = Evaluator(self._views, expander)
        self._hopeless: set[View] = set()
        self._skipped, self._apart, self._excluded = skipped, apart, excluded or {}
        self._roots: set[str] = set()
        self._removed: set[int] = set()
        self._needed: set[str] = set()

    def regions(self) -> Iterator[Region]:
        """Yield the regions worth replacing, last one first; no two remove the same node."""
        for view in ((value, layout) for value in self._skipped for layout in self._views.layouts):
            self._views.forbid(view, Decline("constant"))
        for value, why in self._excluded.items():
            for layout in self._views.layouts:
                self._views.forbid((value, layout), Decline("excluded", why))
        anchored = self._views.anchored
        if any(anchored.values()):
            self._views.shared, self._views.whole = find_shared(self._views, self._apart)
        self._solve_inner()
        roots = sorted(
            ((self._views.position(v), layout, v) for layout, values in anchored.items() for v in values),
            key=lambda root: (-root[0], root[1].kind != "flat", root[1], root[2]),
        )
        for position, layout, value in roots:
            view = (value, layout)
            if position in self._explain.taken or view in self._hopeless:
                continue
            region = self._settle(view)
            if region is not None and self._is_compatible(region):
                self._roots.add(region.output)
                self._explain.taken.update(region.covered)
                self._removed.update(region.removed)
                self._needed.update(region.sources)
                yield region

    def _is_compatible(self, region: Region) -> bool:
        """Whether a region and those before it leave each other's sources; if not, a later round will find it."""
        scope = self._views.scope
        made = {v.name for p in region.removed for v in scope.nodes[p].outputs} - {region.output}
        lost = {v for v in set(region.sources) - self._roots if self._views.position(v) in self._removed}
        return not (made & self._needed or lost)

    def representative(self, value: str) -> str:
        """Return a name that values share which are certainly equal."""
        return self._views.equals.representative(value)

    def refuse(self, region: Region, code: str, detail: str) -> None:
        """Take back a region that could not be emitted; what lies below its root is looked at again."""
        self._explain.note(region.root, code, detail)
        self._roots.discard(region.output)
        self._explain.taken.difference_update(region.covered)
        self._removed.difference_update(region.removed)
        self._views.forbid((region.output, region.layout), Decline(code, detail))
        self._search.forget(region.root)

    def refusals(self) -> list[Refusal]:
        """Return what was left alone although it is close to something that folds; call after :meth:`regions`."""
        return self._explain.refusals()

    def _settle(self, root: View) -> Region | None:
        """Return the region of a root; where numbers forbid a step, plan again without it."""
        while self._views.lifted(root) is not None:
            solution = self._search.solve(root)
            self._explain.note_apart(root, solution)
            self._explain.note_border(solution)
            if not solution.folds:
                self._give_up(solution)
                return None
            try:
                return self._evaluator.region(root, solution)
            except Blocked as blocked:
                at = next(filter(None, solution.expansion.parents.get(blocked.view, ())), blocked.view)
                self._explain.note(self._views.position(at[0]), blocked.decline.code, blocked.decline.detail)
                if blocked.unusable:
                    self._views.forbid(blocked.view, blocked.decline)
                elif blocked.view == root or not self._views.block(blocked.view):
                    return None
                self._search.forget()
        return None

    def _give_up(self, solution: Solution) -> None:
        """Spare roots that cannot do better than one above them that failed.

        Without a convolution in reach, none below has one. And where no two maps of one source were worth joining, an
        inner sum, which sees fewer of them, has none to join.
        """
        reached = solution.whole
        lifts = {v: lifted for v in reached.expanded if (lifted := self._views.lifted(v)) is not None}
        if not any(lifted.anchor for lifted in lifts.values()):
            self._hopeless.update(v for v, x in lifts.items() if all(b.geometry.is_channelwise for b in x.branches))
        elif not any(len(p.members) > 1 for parts in solution.whole_parts.values() for p in parts):
            self._hopeless.update(
                v for v, x in lifts.items() if len(x.branches) > 1 and reached.above[v] in (1.0, -1.0)
            )

    def _solve_inner(self) -> None:
        """Solve, inputs first, what could be looked through below a convolution: its price is needed."""
        for layout, values in self._views.anchored.items():
            for value in sorted(values, key=self._views.position):
                if self._views.may_vanish((value, layout)) and self._feeds_anchor(value):
                    self._search.solve((value, layout))

    def _feeds_anchor(self, value: str) -> bool:
        """Whether a convolution or product reads a value."""
        scope = self._views.scope
        for reader in scope.readers.get(value, ()):
            for output in scope.outputs_of(reader):
                if any((lifted := self._views.lifted((output, x))) and lifted.anchor for x in self._views.layouts):
                    return True
        return False
