"""What is known of each value of a scope: its lift in each layout, what it rests on, and what forbids to remove it."""

from __future__ import annotations

from functools import cached_property

import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxrep.equality import EqualValues
from onnxrep.fusions import claimed
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.lift import FIRST, LAST, Decline, Facts, Layout, Lifted, lifts
from onnxrep.lift.base import suffix
from onnxrep.lift.rearrange import Rearranger, is_mover
from onnxrep.shapes import lengths_of

View = tuple[str, Layout]
"""A value, looked at in a layout."""

_PRODUCTS = ("MatMul", "Gemm")
_REAL = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
_CALCULATING = frozenset("Add Sub Mul Div Sum Mean Conv ConvTranspose MatMul Gemm BatchNormalization".split())


class Views:
    """Lifts the values of one scope, each once, when they are asked for."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.scope = facts, facts.scope
        self.equals = EqualValues(self.scope)
        self.declined: dict[View, Decline] = {}
        self._rearranger = Rearranger(facts)
        self._lifted: dict[View, Lifted | None] = {}
        self._blocked: set[View] = set()
        self._indices: dict[int, dict[str, int]] = {}
        self._fused = claimed(self.scope, facts.constants)
        self.shared: dict[View, float] = {}  # what all readers take over, with the share of each
        self.whole: set[View] = set()  # what they take over as a map with a convolution in it

    @cached_property
    def layouts(self) -> list[Layout]:
        """The layouts in which something of this scope may fold."""
        found = [FIRST]
        if any(n.op in _PRODUCTS for n in self.scope.nodes):
            found.append(LAST)
        sizes = {self._flat_size(node) for node in self.scope.nodes if node.op in ("Conv", *_PRODUCTS)} - {0}
        return found + [Layout("flat", size) for size in sorted(sizes)]

    def _flat_size(self, node: gs.Node) -> int:
        """Return how many elements the images have that a layer maps as vectors to such vectors, or 0 for another node.

        A layer is a Conv on images of one pixel, or a product; a Reshape made the vectors of the images.
        """
        source, result = (self.facts.shapes.of(v.name) for v in (node.inputs[0], node.outputs[0]))
        position = self.position(node.inputs[0].name)
        if source is None or position < 0 or self.scope.nodes[position].op not in ("Flatten", "Reshape"):
            return 0
        size, form = source[1:2], (1, 1) if node.op == "Conv" else ()
        if source[2:] != form or len(size) != 1 or not isinstance(size[0], int):
            return 0
        if node.op != "Conv" and (result is None or result[1:] != size):
            return 0
        before = self.facts.shapes.of(self.scope.nodes[position].inputs[0].name)
        return size[0] if before is not None and len(before) > 3 and (suffix(before, size[0]) or 0) > 2 else 0

    def lengths(self, view: View) -> tuple[int, ...] | None:
        """Return the spatial sizes of a value if all are static; None also where the layout has no spatial axes."""
        value, layout = view
        return lengths_of(self.facts.shapes.of(value)) if layout == FIRST else None

    def position(self, value: str) -> int:
        """Return the position of the node that makes a value, -1 for none in this scope."""
        return self.scope.producer.get(value, -1)

    def place(self, value: str) -> tuple[int, int]:
        """Return what puts values in order from the outputs on; those of one node, a Split, stay in theirs."""
        position = self.position(value)
        if position not in self._indices and position >= 0:
            self._indices[position] = {name: i for i, name in enumerate(self.scope.outputs_of(position))}
        return -position, self._indices.get(position, {}).get(value, 0)

    def lifted(self, view: View) -> Lifted | None:
        """Return a value's lift in a layout, or None where it has none or was forbidden."""
        if view not in self._lifted:
            self._lifted[view] = self._lift(view)
        return self._lifted[view]

    def _lift(self, view: View) -> Lifted | None:
        """Lift a value, or note why not."""
        value, layout = view
        position = self.position(value)
        if position < 0 or position in self._fused:
            return None
        node = self.scope.nodes[position]
        plain = self._lift_one(node, position, view)
        if layout == FIRST and is_mover(node) and self._is_real(node, value):
            return self._rearranger.lift(value, plain) or plain
        return plain

    def _lift_one(self, node: gs.Node, position: int, view: View) -> Lifted | None:
        """Lift a node by itself, or note why not."""
        value, layout = view
        lift = lifts(layout).get(node.op)
        if lift is None or node.domain not in DEFAULT_DOMAINS or not self._is_real(node, value):
            return None
        if any(a.name not in node.attrs for a in self.scope.proto.node[position].attribute):
            self.declined[view] = Decline("unknown-attribute", f"{node.op} has an attribute of an unusual type")
            return None
        if node.op != "Split" and (not node.outputs or node.outputs[0].name != value):
            return None
        try:
            return lift(node, self.facts.within(layout), value)
        except Decline as decline:
            self.declined[view] = decline
            return None

    def _is_real(self, node: gs.Node, value: str) -> bool:
        """Whether a value holds real numbers: integers divide and overflow in their own ways."""
        kind = self.facts.shapes.type_of(value)
        if node.op not in _CALCULATING or (kind and kind not in _REAL):
            return not kind or kind in _REAL
        parameters = (self.facts.constants.get(v.name) for v in node.inputs if self.facts.is_constant(v.name))
        return all(p is None or p.data_type in _REAL for p in parameters)

    def forbid(self, view: View, decline: Decline) -> None:
        """Treat a value's op as a boundary from now on: its numbers cannot be used."""
        self._lifted[view] = None
        self.declined[view] = decline

    def block(self, view: View) -> bool:
        """Do not look through a value below a map that reads neighbours any more; return whether that is news.

        What was tried there is not exact. A map that reads no neighbours meets no border.
        """
        news = view not in self._blocked
        self._blocked.add(view)
        return news

    def may_vanish(self, view: View) -> bool:
        """Whether a value could be looked through, its readers aside."""
        return view[0] not in self.scope.pinned and self.lifted(view) is not None

    def is_blocked(self, view: View) -> bool:
        """Whether a value is not to be looked through below a map that reads neighbours."""
        return view in self._blocked

    @cached_property
    def anchored(self) -> dict[Layout, set[str]]:
        """Per layout the values that are made by, or rest on, a convolution or matrix product."""
        found: dict[Layout, set[str]] = {layout: set() for layout in self.layouts}
        for position, node in enumerate(self.scope.nodes):
            if position in self._fused:
                continue
            for layout in self.layouts:
                if node.op not in lifts(layout):
                    continue
                for output in self.scope.outputs_of(position):
                    lifted = self.lifted((output, layout))
                    if lifted is not None and self._rests_on_anchor(lifted, layout, found):
                        found[layout].add(output)
        return found

    @staticmethod
    def _rests_on_anchor(lifted: Lifted, layout: Layout, found: dict[Layout, set[str]]) -> bool:
        """Whether a lifted op is an anchor or one of its inputs rests on one."""
        below = (branch.view(layout) for branch in lifted.branches)
        return bool(lifted.anchor) or any(value in found.get(where, ()) for value, where in below)

    def outputs_in_use(self, position: int) -> list[str]:
        """Return the outputs of a node that anything reads, or that must survive."""
        names = self.scope.outputs_of(position)
        return [n for n in names if n in self.scope.readers or n in self.scope.pinned]
