"""Why not: what was left alone although it is close to something that folds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from onnxrep.lattice import NotAligned, border_fault
from onnxrep.lift import Decline
from onnxrep.plan.records import Refusal
from onnxrep.plan.search import Solution
from onnxrep.plan.views import View, Views
from onnxrep.reasons import SILENT

_LONGEST_BRANCH = 64
_ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Explainer:
    """Collects refusals of one scope. ``taken`` holds the positions of nodes that regions take over."""

    def __init__(self, views: Views) -> None:
        self._views, self._scope = views, views.scope
        self._refusals: dict[tuple[int, str], Refusal] = {}
        self._said: set[tuple[str, str]] = set()
        self._compared: set[tuple[View, View]] = set()
        self.taken: set[int] = set()

    def note(self, position: int, code: str, detail: str) -> None:
        """Remember a refusal, once per node and reason; nested sums have the same to say."""
        if code not in SILENT and (code, detail) not in self._said:
            self._said.add((code, detail))
            self._refusals.setdefault((position, code), Refusal(position, code, detail))

    def note_apart(self, root: View, solution: Solution) -> None:
        """Note convolutions of one source that are summed but stay apart, and why."""
        position = self._views.position(root[0])
        for origin, parts in solution.whole_parts.items():
            anchored = [p for p in parts if p.anchors]
            lengths = None if origin.steps else self._views.lengths((origin.value, solution.expansion.outlet.layout))
            for first, second in pairwise(anchored):
                try:
                    both = first.geometry.plus(second.geometry, lengths, bool(first.grids & second.grids))
                except NotAligned as error:
                    self.note(position, "not-aligned", f"convolutions of {origin.value}: {error}")
                    continue
                apart = first.geometry.macs + second.geometry.macs
                cost = f"{both.macs:.6g} multiply-accumulates per position instead of {apart:.6g}"
                self.note(position, "price", f"merging the convolutions of {origin.value} would take {cost}")

    def note_border(self, solution: Solution) -> None:
        """Note convolutions in a row that differ from their composition at the border, whatever it would cost."""
        for view in sorted(solution.whole.openable):
            lifted = self._views.lifted(view)
            for above, branch in self._reading(view, solution):
                reader = self._views.lifted(above)
                if lifted is None or reader is None or lifted.moves or (view, above) in self._compared:
                    continue
                self._compared.add((view, above))
                if not self._leads_to_anchor(view):
                    continue
                try:
                    first, second = lifted.numbers(), reader.numbers().maps[branch]
                except Decline:
                    continue
                for map_, source in zip(first.maps, lifted.branches, strict=True):
                    if second.geometry.axes != map_.geometry.axes:
                        continue
                    lengths = self._views.lengths(source.view(view[1]))
                    fault = border_fault(second, map_, first.bias, lengths)
                    if fault is not None:
                        self.note(self._views.position(above[0]), "border", fault)

    def _reading(self, view: View, solution: Solution) -> Iterator[tuple[View, int]]:
        """Yield the convolutions of a solution that read a view, with the number of the branch."""
        for above in solution.whole.expanded:
            lifted = self._views.lifted(above)
            for index, branch in enumerate(lifted.branches if lifted is not None and lifted.anchor else ()):
                if branch.view(above[1]) == view:
                    yield above, index

    def _leads_to_anchor(self, view: View) -> bool:
        """Whether a view is a map that reads neighbours or mixes channels, or an op behind such a one."""
        for _ in range(_LONGEST_BRANCH):
            lifted = self._views.lifted(view)
            if lifted is None:
                return False
            if lifted.anchor or not all(b.geometry.is_channelwise for b in lifted.branches):
                return True
            if len(lifted.branches) != 1:
                return any(b.source in self._views.anchored.get(view[1], ()) for b in lifted.branches)
            view = lifted.branches[0].view(view[1])
        return False

    def refusals(self) -> list[Refusal]:
        """Return all refusals, those of single nodes included."""
        excluded = {value for (value, _), decline in self._views.declined.items() if decline.code == "excluded"}
        for (value, _), decline in self._views.declined.items():
            position = self._views.position(value)
            if decline.code in SILENT or self._is_lifted(value) or (value in excluded and decline.code != "excluded"):
                continue
            if self._is_near(position, decline.code):
                self.note(position, decline.code, decline.detail)
        for layout, values in self._views.anchored.items():
            for value in sorted(values, key=self._views.position):
                self._note_held((value, layout))
        functions = {(f.domain, f.name) for f in self._scope.model.proto.functions}
        for position, node in enumerate(self._scope.nodes):
            if (node.domain, node.op) in functions:
                self.note(position, "local-function", f"{node.op} is a local function; --inline-functions lets it fold")
        return sorted(self._refusals.values(), key=lambda r: (r.position, r.code))

    def _is_lifted(self, value: str) -> bool:
        """Whether a value has a lift in another layout than the one that declined."""
        return any(self._views.lifted((value, layout)) for layout in self._views.layouts)

    def _rests_on_anchor(self, value: str) -> bool:
        """Whether a value rests on a convolution or product in any layout."""
        return any(value in values for values in self._views.anchored.values())

    def _is_near(self, position: int, code: str) -> bool:
        """Whether a declined node touches a convolution: it is one, reads one, or sums what could become one."""
        node = self._scope.nodes[position]
        if node.op in _ANCHORS:
            return True
        data = [v.name for v in node.inputs if v.name and not self._views.facts.is_constant(v.name)]
        if code == "broadcast" and len(data) > 1:
            sources = [self._source_of(name) for name in data]
            readers = self._scope.readers.get(node.outputs[0].name, ())
            scaled = any(self._scope.nodes[r].op == "BatchNormalization" for r in readers)
            return scaled or len(set(sources)) < len(sources)
        if code == "pool":  # beside a convolution of the same source, or in front of one
            readers = self._scope.readers.get(node.outputs[0].name, ())
            data += [name for r in readers for name in self._scope.outputs_of(r)]
        return any(map(self._rests_on_anchor, data))

    def _source_of(self, value: str) -> str:
        """Return what the convolution reads that a value comes from, by way of ops with one operand."""
        for _ in range(_LONGEST_BRANCH):
            lifted = next(filter(None, (self._views.lifted((value, x)) for x in self._views.layouts)), None)
            if lifted is None or len(lifted.branches) != 1:
                return value
            value = lifted.branches[0].source
            if lifted.anchor:
                return value
        return value

    def _note_held(self, view: View) -> None:
        """Note that a convolution is read by an op that would fold into it, were it not needed elsewhere."""
        lifted, position = self._views.lifted(view), self._views.position(view[0])
        if lifted is None or lifted.anchor or not all(b.geometry.is_diagonal for b in lifted.branches) or lifted.moves:
            return
        for branch in lifted.branches:
            maker = self._views.lifted(branch.view(view[1]))
            made = self._views.position(branch.source)
            if maker is None or not maker.anchor or made in self.taken:
                continue
            alone = len(lifted.branches) == 1 and not self._is_uniform(position) and lifted.nodes > 0
            rival = any(
                maker.branches[0].source in (other.source, self._source_of(other.source))
                for other in lifted.branches
                if other is not branch
            )
            if alone or rival:
                self._note_need(branch.source, made if position in self.taken else position, position)

    def _note_need(self, value: str, left: int, reader: int) -> None:
        """Note who else needs a value."""
        others = [r for r in self._scope.readers[value] if r != reader]
        if value in self._scope.outputs:
            self.note(left, "graph-output", f"{value} is an output of the graph")
        elif value in self._scope.pinned:
            self.note(left, "captured", f"{value} is read inside an If, Loop or Scan")
        elif others:
            self.note(left, "other-reader", f"{value} is also read by {self._scope.node_label(others[0])}")

    def _is_uniform(self, position: int) -> bool:
        """Whether an op scales or shifts all channels alike (as the parts of an exported GELU do)."""
        node = self._scope.nodes[position]
        constants = [self._views.facts.constants.get(v.name) for v in node.inputs]
        return node.op != "BatchNormalization" and all(c is None or math.prod(c.dims) == 1 for c in constants)
