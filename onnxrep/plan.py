"""The linear form of each value over its sources, the regions worth replacing, and why the others are not.

A region hangs from a root value. Seen from the root, every op below it is a form over its own inputs; substituting the
form of an input that nobody else reads is the one rule of combination (it covers BatchNormalization after a sum, nested
residuals, and a convolution after a convolution alike). Element-wise ops and sums are always looked through; a
convolution in front of a convolution only where that is exact and cheaper. What is not looked through is a source.

Planning happens without numbers; only regions that are worth it read their weights.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

from onnxrep.equality import EqualValues
from onnxrep.fusions import claimed
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.lattice import Array, Geometry, Inexact, Map, NotAligned, border_fault
from onnxrep.lift import LIFTS, Branch, Decline, Facts, Lifted
from onnxrep.price import Part, Price, cover, total
from onnxrep.reasons import SILENT
from onnxrep.shapes import lengths_of

LARGEST_REGION = 1 << 16
"""Nodes that one region may hold; a longer chain is folded in several rounds."""

_LOOKAHEAD = 4
_LONGEST_BRANCH = 64
_T = TypeVar("_T")


@dataclass(frozen=True)
class Refusal:
    """A node that was left alone although it is close to something that folds.

    ``code`` is one of :data:`onnxrep.reasons.REASONS`; ``detail`` says what was met here.
    """

    position: int
    code: str
    detail: str


@dataclass(frozen=True)
class Summand:
    """One kernel's worth of a region: the sum of some maps of one source, with its numbers.

    ``unit``: 1 or -1 if this is the source itself or its negative.
    ``members``: positions of the ops that read the source.
    """

    source: str
    map: Map
    anchored: bool
    unit: float | None
    members: tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """Nodes to be replaced together.

    Attributes:
        root: position of the node that makes the region's output.
        removed: positions of all its nodes, root included, ascending.
        summands: what the output is the sum of.
        bias: ``[channels]``, or None for zero.
        kind: ``merge`` if parallel branches become one, else ``fuse``.
        before, after: price per position of the output.

    """

    root: int
    removed: tuple[int, ...]
    summands: tuple[Summand, ...]
    bias: Array | None
    kind: str
    before: Price
    after: Price


@dataclass(frozen=True)
class _Entry:
    """One way in which the region's output depends on a value: the map from it, and the op that reads it."""

    geometry: Geometry | None  # None: the output itself
    anchored: bool
    unit: float | None
    macs: float
    reader: int


@dataclass
class _Expansion:
    """A root seen through some of the ops below it."""

    expanded: list[int] = field(default_factory=list)
    leaves: dict[str, list[_Entry]] = field(default_factory=dict)
    spent: Price = field(default_factory=Price)
    above: dict[int, float | None] = field(default_factory=dict)
    parents: dict[int, list[int]] = field(default_factory=dict)
    openable: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Solution:
    """An expansion of a root, and what it becomes.

    ``price`` is that of the parts; ``total`` adds what the sources below convolutions cost as regions of their own.
    ``whole`` is the expansion before ops below which nothing merges were closed again.
    """

    expansion: _Expansion
    parts: dict[str, list[Part]]
    opened: frozenset[str]
    price: Price
    total: Price
    emittable: bool
    folds: bool
    whole: _Expansion
    whole_parts: Mapping[str, list[Part]]


class Planner:
    """Finds the regions of one scope. Pure: it proposes, :func:`onnxrep.graph.commit` disposes."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._scope = facts, facts.scope
        self._declined: dict[int, Decline] = {}
        self._lifted: dict[int, Lifted] = {}
        self._blocked: dict[str, Decline] = {}
        self._solutions: dict[int, _Solution] = {}
        self._refusals: dict[tuple[int, str], Refusal] = {}
        self._said: set[tuple[str, str]] = set()
        self._taken: set[int] = set()
        self._hopeless: set[int] = set()
        fused = claimed(self._scope, facts.constants)
        for position in range(len(self._scope.nodes)):
            if position not in fused:
                self._lift(position)
        self._anchored = self._find_anchored()
        self._equals = EqualValues(self._scope)

    # -- what is given ----------------------------------------------------------------------------------------------

    def _lift(self, position: int) -> None:
        """Lift one node, or note why not."""
        node = self._scope.nodes[position]
        if node.op not in LIFTS or node.domain not in DEFAULT_DOMAINS:
            return
        if any(a.name not in node.attrs for a in self._scope.proto.node[position].attribute):
            self._declined[position] = Decline("unknown-attribute", f"{node.op} has an attribute of an unusual type")
            return
        if not node.outputs or not node.outputs[0].name:
            return
        try:
            self._lifted[position] = LIFTS[node.op](node, self._facts)
        except Decline as decline:
            self._declined[position] = decline

    def _find_anchored(self) -> set[int]:
        """Return the positions of ops that are, or rest on, a convolution."""
        found: set[int] = set()
        for position, lifted in self._lifted.items():  # ascending
            sources = (self._scope.producer.get(b.source, -1) for b in lifted.branches)
            if lifted.anchor or any(s in found for s in sources):
                found.add(position)
        return found

    def _op_behind(self, value: str) -> int | None:
        """Return the position of the lifted op that makes a value, if the value may vanish into a region."""
        position = self._scope.producer.get(value)
        if position is None or position not in self._lifted or value in self._scope.pinned or value in self._blocked:
            return None
        return position if self._scope.nodes[position].outputs[0].name == value else None

    def _output(self, position: int) -> str:
        return str(self._scope.nodes[position].outputs[0].name)

    # -- without numbers --------------------------------------------------------------------------------------------

    def _expand(self, root: int, opened: frozenset[str], closed: frozenset[int]) -> _Expansion:
        """Look through the ops below ``root``; ``opened`` values also below a convolution, ``closed`` ops never."""
        result = _Expansion()
        waiting: dict[str, list[_Entry]] = {self._output(root): [_Entry(None, False, 1.0, 0.0, -1)]}
        heap = [-root]
        seen = {self._output(root)}
        inside: set[int] = set()
        while heap:
            position = -heapq.heappop(heap)
            value = self._output(position)
            entries = waiting[value]
            if position != root and not self._enters(position, value, entries, inside, opened, closed, result):
                continue
            try:
                joined = self._join(value, entries)
                step = [self._through(joined, branch, position) for branch in self._lifted[position].branches]
            except (Inexact, NotAligned) as error:
                self._note(position, "not-aligned", str(error))
                continue
            del waiting[value]
            inside.add(position)
            result.expanded.append(position)
            result.above[position] = joined.unit
            result.parents[position] = [e.reader for e in entries]
            coarser = joined.geometry.coarsening if joined.geometry else 1.0
            lifted = self._lifted[position]
            result.spent += Price(lifted.macs * coarser, lifted.kernels)
            for branch, entry in zip(lifted.branches, step, strict=True):
                waiting.setdefault(branch.source, []).append(entry)
                behind = self._op_behind(branch.source)
                if behind is not None and branch.source not in seen and len(inside) < LARGEST_REGION:
                    seen.add(branch.source)
                    heapq.heappush(heap, -behind)
        result.leaves = self._by_source(waiting)
        return result

    def _by_source(self, waiting: Mapping[str, list[_T]]) -> dict[str, list[_T]]:
        """Return entries per source, values that are certainly equal taken together under the name of one of them.

        The name is one that the region reads already: another region cannot remove it then.
        """
        alike: dict[str, list[str]] = {}
        for value in waiting:
            alike.setdefault(self._equals.representative(value), []).append(value)
        result: dict[str, list[_T]] = {}
        for values in alike.values():
            name = min(values, key=lambda v: self._scope.producer.get(v, -1))
            result[name] = [entry for value in values for entry in waiting[value]]
        return result

    def _enters(
        self,
        position: int,
        value: str,
        entries: list[_Entry],
        inside: set[int],
        opened: frozenset[str],
        closed: frozenset[int],
        result: _Expansion,
    ) -> bool:
        """Whether the op behind a value becomes part of the region; note it as openable if it only needs opening."""
        if position in closed or any(reader not in inside for reader in self._scope.readers[value]):
            return False
        if value in opened or all(e.geometry is None or (e.geometry.is_diagonal and not e.anchored) for e in entries):
            return True
        if self._lifted[position].kernels == 0:
            return True
        result.openable[value] = max(e.geometry.coarsening if e.geometry else 1.0 for e in entries)
        return False

    def _join(self, value: str, entries: list[_Entry]) -> _Entry:
        """Return the sum of all ways in which the output depends on a value."""
        first, *rest = entries
        lengths = lengths_of(self._facts.shapes.of(value))
        for entry in rest:
            assert first.geometry is not None
            assert entry.geometry is not None
            first = _Entry(
                first.geometry.plus(entry.geometry, lengths),
                first.anchored or entry.anchored,
                None if first.unit is None or entry.unit is None else first.unit + entry.unit,
                first.macs + entry.macs,
                entry.reader,
            )
        return first

    def _through(self, entry: _Entry, branch: Branch, position: int) -> _Entry:
        """Return how the output depends on an op's input, from how it depends on the op's result."""
        lifted = self._lifted[position]
        geometry = branch.geometry if entry.geometry is None else entry.geometry.after(branch.geometry)
        unit = None if entry.unit is None or branch.unit is None else entry.unit * branch.unit
        return _Entry(geometry, entry.anchored or lifted.anchor, unit, entry.macs + lifted.macs, position)

    def _cover(self, expansion: _Expansion) -> dict[str, list[Part]]:
        """Return per source the kernels that the region would become."""
        parts: dict[str, list[Part]] = {}
        for source, entries in expansion.leaves.items():
            single = [
                Part(e.geometry, e.anchored, e.unit, (i,), 0.0 if e.anchored else e.macs)
                for i, e in enumerate(entries)
                if e.geometry is not None
            ]
            parts[source] = cover(single, lengths_of(self._facts.shapes.of(source)))
        return parts

    def _unmerged(self, expansion: _Expansion, parts: Mapping[str, list[Part]]) -> frozenset[int]:
        """Return the ops to close again: nothing below them merged, and their value is added as it is."""
        merged: set[int] = set()
        for source, entries in expansion.leaves.items():
            for part in parts[source]:
                if len(part.members) > 1:
                    merged.update(entries[m].reader for m in part.members)
        for position in reversed(expansion.expanded):
            if position in merged:
                merged.update(expansion.parents[position])
        closing: set[int] = set()
        outside = set()
        for position in expansion.expanded[1:]:
            if all(p in closing or p in outside for p in expansion.parents[position]):
                outside.add(position)
            elif position not in merged and (expansion.above[position] in (1.0, -1.0) or self._is_loose(position)):
                closing.add(position)
        return frozenset(closing)

    def _is_loose(self, position: int) -> bool:
        """Whether an op moves or mixes pixels without being a convolution: it cannot be emitted by itself."""
        lifted = self._lifted[position]
        return not lifted.anchor and any(not b.geometry.is_diagonal for b in lifted.branches)

    def _evaluate(self, root: int, opened: frozenset[str]) -> _Solution:
        """Expand, cover, close what does not merge, and price the result."""
        whole = self._priced(root, opened, frozenset())
        closed = self._unmerged(whole.expansion, whole.parts)
        best = self._priced(root, opened, closed) if closed else whole
        if not best.folds and whole.folds:
            best = whole  # nothing merges, but a scale or shift finds a convolution to vanish into
        cost = (
            whole.price if whole.emittable and not whole.expansion.spent.beats(whole.price) else whole.expansion.spent
        )
        for value, positions in whole.expansion.openable.items():
            cost += self._own(value).at(positions)
        return replace(best, total=cost, whole=whole.expansion, whole_parts=whole.parts)

    def _priced(self, root: int, opened: frozenset[str], closed: frozenset[int]) -> _Solution:
        """Return one expansion with its price."""
        expansion = self._expand(root, opened, closed)
        parts = self._cover(expansion)
        every = [p for group in parts.values() for p in group]
        price = total(every)
        emittable = all(p.can_stand_alone for p in every)
        anchored = any(self._lifted[p].anchor for p in expansion.expanded)
        folds = anchored and emittable and price.beats(expansion.spent)
        return _Solution(expansion, parts, opened, price, price, emittable, folds, expansion, parts)

    def _own(self, value: str) -> Price:
        """Return what a value costs as the root of its own region."""
        position = self._scope.producer[value]
        solution = self._solutions.get(position)
        if solution is not None:
            return solution.total
        lifted = self._lifted[position]
        return Price(lifted.macs, lifted.kernels)

    def _solve(self, root: int) -> _Solution:
        """Return the best expansion of a root, opening values below convolutions one by one while that pays."""
        best = self._evaluate(root, frozenset())
        tried: set[frozenset[str]] = {frozenset()}
        improved = True
        while improved:
            improved = False
            for value in sorted(best.whole.openable):
                trial, opened = best, best.opened
                for _ in range(_LOOKAHEAD):
                    fresh = {value} | (trial.whole.openable.keys() - best.whole.openable.keys())
                    opened = opened | fresh
                    if opened in tried:
                        break
                    tried.add(opened)
                    trial = self._evaluate(root, opened)
                    if trial.folds and trial.total.beats(best.total):
                        best, improved = trial, True
                        break
                if improved:
                    break
        self._solutions[root] = best
        return best

    # -- with numbers -----------------------------------------------------------------------------------------------

    def _numbers(self, root: int, solution: _Solution) -> tuple[dict[str, list[Map]], Array | None]:
        """Return the maps of the leaves, in the order of the expansion's, and the one bias of the region.

        Raises:
            _Blocked: a combination is not exact, or a parameter unusable.

        """
        waiting: dict[str, list[Map | None]] = {self._output(root): [None]}
        bias: Array | None = None
        for position in solution.expansion.expanded:
            value = self._output(position)
            first, *rest = waiting.pop(value)
            lengths = lengths_of(self._facts.shapes.of(value))
            for other in rest:
                assert first is not None
                assert other is not None
                first = first.plus(other, lengths)
            lifted = self._lifted[position]
            try:
                form = lifted.numbers()
            except Decline as decline:
                raise _Blocked(position, None, decline) from None
            for branch, inner in zip(lifted.branches, form.maps, strict=True):
                if first is not None:
                    known = lengths_of(self._facts.shapes.of(branch.source))
                    fault = border_fault(first, inner, form.bias, known)
                    if fault is not None:
                        raise _Blocked(position, value, Decline("border", fault))
                waiting.setdefault(branch.source, []).append(inner if first is None else first.after(inner))
            if form.bias is not None:
                shift = form.bias if first is None else first.response(form.bias)
                bias = shift if bias is None else bias + shift
        return self._by_source({s: [m for m in maps if m is not None] for s, maps in waiting.items()}), bias

    def _region(self, root: int, solution: _Solution) -> Region:
        """Return the region of a solution, with numbers."""
        maps, bias = self._numbers(root, solution)
        summands: list[Summand] = []
        for source, parts in solution.parts.items():
            lengths = lengths_of(self._facts.shapes.of(source))
            for part in parts:
                first, *rest = (maps[source][m] for m in part.members)
                for other in rest:
                    first = first.plus(other, lengths)
                unit = part.unit if not part.anchored and part.unit in (1.0, -1.0) else None
                members = tuple(solution.expansion.leaves[source][m].reader for m in part.members)
                summands.append(Summand(source, first.trimmed(), part.anchored, unit, members))
        summands.sort(key=lambda s: min(s.members))
        removed = tuple(sorted(solution.expansion.expanded))
        sums = sum(len(self._lifted[p].branches) - 1 for p in removed)
        kind = "merge" if sums > len(summands) - 1 else "fuse"
        return Region(root, removed, tuple(summands), bias, kind, solution.expansion.spent, solution.price)

    # -- the whole scope --------------------------------------------------------------------------------------------

    def regions(self) -> Iterator[Region]:
        """Yield the regions worth replacing, last one first; no two share a node."""
        self._solve_inner()
        for root in sorted(self._anchored, reverse=True):
            if root in self._taken or root in self._hopeless or root not in self._lifted:
                continue
            region = self._settle(root)
            if region is not None:
                self._taken.update(region.removed)
                yield region

    def refuse(self, region: Region, code: str, detail: str) -> None:
        """Take back a region that could not be emitted; what lies below its root is looked at again."""
        self._note(region.root, code, detail)
        self._taken.difference_update(region.removed)
        del self._lifted[region.root]
        self._solutions.clear()

    def _settle(self, root: int) -> Region | None:
        """Return the region of a root; where numbers forbid a step, plan again without it."""
        while root in self._lifted:
            solution = self._solutions.get(root) or self._solve(root)
            self._note_unmerged(root, solution)
            if not solution.folds:
                self._give_up(solution)
                return None
            try:
                return self._region(root, solution)
            except _Blocked as blocked:
                self._note(blocked.position, blocked.decline.code, blocked.decline.detail)
                if blocked.value is None:
                    del self._lifted[blocked.position]
                    self._declined[blocked.position] = blocked.decline
                else:
                    self._blocked[blocked.value] = blocked.decline
                self._solutions.clear()
        return None

    def _give_up(self, solution: _Solution) -> None:
        """Spare roots that cannot do better than one above them that failed.

        Without a convolution in reach, none below has one. And where no two maps of one source were worth joining, an
        inner sum, which sees fewer of them, has none to join.
        """
        reached = solution.whole
        if not any(self._lifted[p].anchor for p in reached.expanded):
            self._hopeless.update(p for p in reached.expanded if all(map(_is_diagonal, self._lifted[p].branches)))
        elif not any(len(p.members) > 1 for parts in solution.whole_parts.values() for p in parts):
            sums = (p for p in reached.expanded if len(self._lifted[p].branches) > 1)
            self._hopeless.update(p for p in sums if reached.above[p] in (1.0, -1.0))

    def _note_unmerged(self, root: int, solution: _Solution) -> None:
        """Note convolutions of one source that are summed but stay apart, and why."""
        for source, parts in solution.whole_parts.items():
            anchored = [p for p in parts if p.anchored]
            for first, second in pairwise(anchored):
                try:
                    both = first.geometry.plus(second.geometry, lengths_of(self._facts.shapes.of(source)))
                except NotAligned as error:
                    self._note(root, "not-aligned", f"convolutions of {source}: {error}")
                    continue
                apart = first.geometry.macs + second.geometry.macs
                cost = f"{both.macs:.6g} multiply-accumulates per position instead of {apart:.6g}"
                self._note(root, "price", f"merging the convolutions of {source} would take {cost}")

    def _solve_inner(self) -> None:
        """Solve, inputs first, the values that could be looked through below a convolution: their price is needed."""
        for position in sorted(self._anchored):
            value = self._output(position)
            readers = self._scope.readers.get(value, ())
            reading = [self._lifted.get(r) for r in readers]
            if self._op_behind(value) is not None and any(r is not None and r.anchor for r in reading):
                self._solve(position)

    def _note(self, position: int, code: str, detail: str) -> None:
        """Remember a refusal, once per node and reason; nested sums have the same to say."""
        if (code, detail) not in self._said:
            self._said.add((code, detail))
            self._refusals.setdefault((position, code), Refusal(position, code, detail))

    # -- why not ----------------------------------------------------------------------------------------------------

    def refusals(self) -> list[Refusal]:
        """Return what was left alone although it is close to something that folds; call after :meth:`regions`."""
        for position, decline in self._declined.items():
            if decline.code not in SILENT and self._is_near(position, decline.code):
                self._note(position, decline.code, decline.detail)
        for position in self._lifted:
            self._note_held(position)
        functions = {(f.domain, f.name) for f in self._scope.model.proto.functions}
        for position, node in enumerate(self._scope.nodes):
            if (node.domain, node.op) in functions:
                self._note(position, "local-function", f"{node.op} is a local function; inline it to let it fold")
        return sorted(self._refusals.values(), key=lambda r: (r.position, r.code))

    def _is_near(self, position: int, code: str) -> bool:
        """Whether a declined node touches a convolution: it is one, reads one, or sums what could become one."""
        node = self._scope.nodes[position]
        if node.op in ("Conv", "ConvTranspose"):
            return True
        data = [v.name for v in node.inputs if v.name and not self._facts.is_constant(v.name)]
        if code == "broadcast" and len(data) > 1:
            sources = [self._source_of(name) for name in data]
            readers = self._scope.readers.get(self._output(position), ())
            scaled = any(self._scope.nodes[r].op == "BatchNormalization" for r in readers)
            return scaled or len(set(sources)) < len(sources)
        return any(self._scope.producer.get(name, -1) in self._anchored for name in data)

    def _source_of(self, value: str) -> str:
        """Return what the convolution reads that a value comes from, by way of ops with one operand."""
        for _ in range(_LONGEST_BRANCH):
            position = self._scope.producer.get(value)
            lifted = self._lifted.get(position) if position is not None else None
            if lifted is None or len(lifted.branches) != 1:
                return value
            value = lifted.branches[0].source
            if lifted.anchor:
                return value
        return value

    def _note_held(self, position: int) -> None:
        """Note that a convolution is read by an op that would fold into it, were it not needed elsewhere."""
        lifted = self._lifted[position]
        if not all(b.geometry.is_diagonal for b in lifted.branches) or lifted.anchor:
            return
        for branch in lifted.branches:
            maker = self._scope.producer.get(branch.source)
            if maker is None or maker not in self._lifted or not self._lifted[maker].anchor or maker in self._taken:
                continue
            alone = len(lifted.branches) == 1 and not self._is_uniform(position) and lifted.kernels > 0
            rival = any(self._shares_source(maker, other.source) for other in lifted.branches if other is not branch)
            if not alone and not rival:
                continue
            value = branch.source
            left = maker if position in self._taken else position
            others = [r for r in self._scope.readers[value] if r != position]
            if value in self._scope.outputs:
                self._note(left, "graph-output", f"{value} is an output of the graph")
            elif value in self._scope.pinned:
                self._note(left, "captured", f"{value} is read inside an If, Loop or Scan")
            elif others:
                self._note(left, "other-reader", f"{value} is also read by {self._scope.node_label(others[0])}")

    def _is_uniform(self, position: int) -> bool:
        """Whether an op scales or shifts all channels alike (as the parts of an exported GELU do)."""
        node = self._scope.nodes[position]
        constants = [self._facts.constants.get(v.name) for v in node.inputs]
        return node.op != "BatchNormalization" and all(c is None or math.prod(c.dims) == 1 for c in constants)

    def _shares_source(self, maker: int, other: str) -> bool:
        """Whether a value is, or comes by way of a convolution from, the source of the convolution at ``maker``."""
        return self._lifted[maker].branches[0].source in (other, self._source_of(other))


def _is_diagonal(branch: Branch) -> bool:
    """Whether an op treats each channel and position of an input by itself."""
    return branch.geometry.is_diagonal


class _Blocked(Exception):
    """Numbers forbid a step of the plan: an op cannot be lifted, or a value not be looked through."""

    def __init__(self, position: int, value: str | None, decline: Decline) -> None:
        super().__init__(decline.code)
        self.position, self.value, self.decline = position, value, decline
