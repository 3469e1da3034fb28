"""From a region's maps to ONNX nodes, and from there to the edit that replaces the region."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.graph import Edit, stored
from onnxrep.grouping import Blocks, Span
from onnxrep.lattice import Array, Map
from onnxrep.lift import Facts
from onnxrep.plan import Origin, Region, Step, Summand
from onnxrep.price import BIASED, Part

SUFFIX = "_folded"
_ANCHORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass
class _Tensors:
    """New initializers, and what was calculated for those that hold reals."""

    stored: list[tuple[str, Any]] = field(default_factory=list)
    exact: dict[str, Array] = field(default_factory=dict)

    def add(self, name: str, values: Array, data_type: int) -> str:
        """Add reals, rounded to a type, and return the name.

        Raises:
            OverflowError: a value is not finite in the type.
        """
        self.stored.append((name, stored(values, data_type)))
        self.exact[name] = values
        return name

    def add_integers(self, name: str, values: Sequence[int]) -> str:
        """Add a vector of integers and return the name."""
        self.stored.append((name, np.array(values, np.int64)))
        return name


@dataclass
class _Moved:
    """A value after some movements, made once for all regions that read it."""

    name: str
    nodes: list[gs.Node]
    tensors: _Tensors
    at: int

    @property
    def edit(self) -> Edit:
        """The edit that makes the value."""
        heirs, tensors = [None] * len(self.nodes), self.tensors
        return Edit(frozenset(), self.at, self.nodes, tensors.stored, heirs, keep=True, exact=tensors.exact)


class Emitter:
    """Makes the edits of one scope's regions."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.scope = facts, facts.scope
        self._moved: dict[tuple[str, tuple[Step, ...]], _Moved] = {}

    def edit(self, region: Region) -> Edit:
        """Return the edit for a region: one convolution or product per summand with one, joined by Adds.

        The bias goes to the first convolution that can take it. The last node makes the region's output under its old
        name.

        Raises:
            OverflowError: a weight or bias is not finite in the model's type.
        """
        writer = _Writer(self, region)
        edit = writer.edit()
        moved = {key: self._moved[key] for key in writer.moved}
        return replace(edit, reads=tuple(each.edit for each in moved.values()))

    def movements(self, edits: Iterable[Edit]) -> list[Edit]:
        """Return the edits that make the moved values which some regions read; call when all regions are done."""
        read = {v.name for edit in edits for node in edit.nodes for v in node.inputs}
        return [moved.edit for moved in self._moved.values() if moved.name in read]

    def value_of(self, origin: Origin, data_type: int) -> str:
        """Return the name of a source after its movements; new parameters are of the given type."""
        key = (origin.value, origin.steps)
        if key not in self._moved:
            self._moved[key] = self._move(origin, data_type)
        self._moved[key].at = min(self._moved[key].at, origin.after)
        return self._moved[key].name

    def _move(self, origin: Origin, data_type: int) -> _Moved:
        """Make the nodes that move a value."""
        name, nodes, tensors = origin.value, [], _Tensors()
        for step in origin.steps:
            output = self.scope.model.fresh(f"{origin.value}_{'shifted' if step.shift else 'moved'}")
            op, inputs, attributes = self.moved(name, step, data_type, tensors)
            nodes.append(gs.Node(op, "", attributes, [gs.Variable(i) for i in inputs], [gs.Variable(output)]))
            name = output
        return _Moved(name, nodes, tensors, origin.after)

    def moved(self, value: str, step: Step, data_type: int, tensors: _Tensors) -> tuple[str, list[str], dict[str, Any]]:
        """Return op type, inputs and attributes of the node that makes one step; add its initializers to ``tensors``.

        Raises:
            OverflowError: a shift is not finite in the type.
        """
        if step.order:
            return "Transpose", [value], {"perm": list(step.order)}
        if step.pool:
            return "AveragePool", [value], dict(step.pool)
        if step.shift:
            axes = len(self.facts.shapes.of(value) or ()) - 2
            shift = np.array(step.shift)
            op, vector = ("Sub", -shift) if np.all(shift < 0) else ("Add", shift)
            column = vector.reshape(-1, *(1,) * axes) if len(vector) > 1 else vector.reshape(())
            return op, [value, tensors.add(self.scope.model.fresh(f"{value}_shift"), column, data_type)], {}
        return "Reshape", [value, tensors.add_integers(self.scope.model.fresh(f"{value}_shape"), step.shape)], {}


class _Writer:
    """Writes the nodes of one region."""

    def __init__(self, emitter: Emitter, region: Region) -> None:
        self._emitter, self._facts, self._scope = emitter, emitter.facts, emitter.scope
        self._region, self._kind = region, region.outlet.layout.kind
        self._nodes: list[gs.Node] = []
        self._heirs: list[int | None] = []
        self._tensors = _Tensors()
        self.moved: list[tuple[str, tuple[Step, ...]]] = []
        self._anchors = {p for p in region.covered if self._weight_name(p)}
        self._free = self._anchors & set(region.removed)
        weight = self._facts.constants.get(self._weight_name(min(self._anchors)))
        assert weight is not None
        self._type = weight.data_type
        self._rank = region.outlet.rank
        self._named = False

    def edit(self) -> Edit:
        """Write all segments and what stacks them."""
        region = self._region
        steps = region.outlet.steps
        self._named = bool(steps)  # the last movement gets the name
        output = self._value() if steps else region.output
        if len(region.segments) == 1:
            ((_, summands),) = region.segments
            self._segment((0, summands[0].map.geometry.outputs), summands, output)
        else:
            axis = 1 if self._kind == "first" else self._rank - 1
            parts = [self._segment(span, summands, "") for span, summands in region.segments]
            self._node("Concat", self._root_name(), parts, output, axis=axis)
        for index, step in enumerate(steps):
            op, inputs, attributes = self._emitter.moved(output, step, self._type, self._tensors)
            last = index == len(steps) - 1
            self._named = not last
            output = region.output if last else self._value()
            self._node(op, self._root_name(), inputs, output, **attributes)
        removed = frozenset(region.removed)
        tensors = self._tensors
        return Edit(removed, region.root, self._nodes, tensors.stored, self._heirs, exact=tensors.exact)

    def _segment(self, span: Span, summands: Sequence[Summand], output: str) -> str:
        """Write the sum that makes some rows of the output; return its value, named ``output`` if that is given."""
        ordered = sorted(summands, key=lambda s: (not s.anchors, s.unit == -1.0))
        bias = None if self._region.bias is None else self._region.bias[slice(*span)]
        takes_bias = next((s for s in ordered if self._takes_bias(s)), None)
        adds_bias = takes_bias is None and bias is not None and bool(np.any(bias))
        total = ""
        for index, summand in enumerate(ordered):
            last = index == len(ordered) - 1 and not adds_bias
            alone = last and not total
            name = output if alone and (summand.anchors or summand.unit != 1.0) else ""
            value = self._term(summand, span, bias if summand is takes_bias else None, name)
            if total:
                op = "Sub" if summand.unit == -1.0 else "Add"
                value = self._joined(op, [total, value], output if last else "")
            elif summand.unit == -1.0 and not summand.anchors:
                value = self._joined("Neg", [value], name)
            total = value
        if adds_bias:
            assert bias is not None
            total = self._joined("Add", [total, self._tensor("bias", self._column(bias))], output)
        elif output and total != output:
            self._node("Identity", self._root_name(), [total], output)
        return total

    def _joined(self, op: str, inputs: list[str], output: str) -> str:
        """Write an element-wise node; the one that makes the region's output inherits the root's name."""
        name = self._root_name() if output else self._node_name(self._scope.nodes[self._region.root].name)
        return self._node(op, name, inputs, output or self._value())

    def _root_name(self) -> str:
        """Return the name of the root for a node that stands for it, if no other node has it."""
        name = str(self._scope.nodes[self._region.root].name)
        if self._region.root in self._anchors or self._named:
            return self._node_name(name)
        self._named = True
        return name

    def _takes_bias(self, summand: Summand) -> bool:
        """Whether a summand becomes a node with a bias of its own."""
        emitted = self._emitted(summand)
        return emitted in BIASED or (emitted in ("Gemm", "MatMul") and self._rank == 2)

    def _emitted(self, summand: Summand) -> str:
        return Part(summand.map.geometry, summand.anchors, summand.unit, ()).emitted(self._kind)

    def _term(self, summand: Summand, span: Span, bias: Array | None, output: str) -> str:
        """Write one summand and return its value."""
        source = self._source(summand.origin)
        emitted = self._emitted(summand)
        if not emitted:
            if summand.unit in (1.0, -1.0):
                return source
            factors = self._tensor(f"{summand.origin.value}_scale", self._column(_factors(summand.map)))
            return self._joined("Mul", [source, factors], output)
        if emitted in ("Conv", "ConvTranspose"):
            return self._convolution(summand, source, span, bias, output)
        if emitted in ("FlatConv", "FlatProduct"):
            return self._flat(summand, source, bias, output)
        if emitted == "MatMulFromLeft":
            return self._from_left(summand, source, output)
        return self._product(summand, source, bias, output, self._rank)

    def _source(self, origin: Origin) -> str:
        """Return the name of what a summand reads."""
        if origin.parts:
            axis = 1 if self._kind == "first" else self._rank - 1
            values = [self._source(o) for o, _ in origin.parts]
            return self._node("Concat", self._node_name("Concat"), values, self._value(), axis=axis)
        if not origin.steps:
            return origin.value
        self.moved.append((origin.value, origin.steps))
        return self._emitter.value_of(origin, self._type)

    # -- convolutions and products ----------------------------------------------------------------------------------

    def _convolution(self, summand: Summand, source: str, span: Span, bias: Array | None, output: str) -> str:
        """Write a Conv or ConvTranspose."""
        map_ = summand.map.reading_all
        attributes = attributes_of(map_)
        op = "ConvTranspose" if map_.geometry.mode == "transpose" else "Conv"
        weight = weight_of(map_)
        vector = np.zeros(span[1] - span[0]) if bias is None else bias
        return self._anchor(op, summand, [source], [weight, vector], output, **attributes)

    def _product(self, summand: Summand, source: str, bias: Array | None, output: str, rank: int) -> str:
        """Write a MatMul or Gemm of a source of some rank."""
        heir, _ = self._heir(summand, peek=True)
        matrix = _matrix(summand.map)
        old = self._scope.nodes[heir]
        if rank != 2 or (bias is None and old.op != "Gemm"):
            return self._anchor("MatMul", summand, [source], [matrix.T], output)
        flip = int(old.attrs.get("transB", 0)) if old.op == "Gemm" else 0
        vector = np.zeros(len(matrix)) if bias is None else bias
        return self._anchor("Gemm", summand, [source], [matrix if flip else matrix.T, vector], output, transB=flip)

    def _from_left(self, summand: Summand, source: str, output: str) -> str:
        """Write ``MatMul(W, x)``."""
        matrix = _matrix(summand.map)
        return self._anchor("MatMul", summand, [], [matrix], output, behind=[source])

    def _flat(self, summand: Summand, source: str, bias: Array | None, output: str) -> str:
        """Write a matrix over all pixels of all channels between two Reshapes.

        As a product, or as a Conv on images of one pixel if there was no product.
        """
        g = summand.map.geometry
        spots = () if self._emitted(summand) == "FlatProduct" else (1, 1)
        shape = self._facts.shapes.of(self._region.output) or ()
        final = [d if isinstance(d, int) else -1 for d in shape]
        into, back = self._scope.model.fresh(f"{source}_shape"), self._scope.model.fresh(f"{source}_shape")
        self._tensors.add_integers(into, [-1, g.inputs, *spots])
        flat = self._node("Reshape", "", [source, into], self._value())
        if spots:
            inner = replace(summand, map=summand.map.with_axes(len(spots)))
            value = self._convolution(inner, flat, (0, g.outputs), bias, "")
        else:
            value = self._product(summand, flat, bias, "", 2)
        self._tensors.add_integers(back, final)
        return self._node("Reshape", self._root_name(), [value, back], output or self._value())

    def _anchor(
        self,
        op: str,
        summand: Summand,
        inputs: Sequence[str],
        parameters: Sequence[Array],
        output: str,
        behind: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Write a node with weights, in place of one of those removed."""
        heir, free = self._heir(summand)
        old = self._scope.nodes[heir]
        base = self._weight_name(heir).removesuffix(SUFFIX) + SUFFIX
        names = [self._tensor(base if k == 0 else f"{base}_bias", values) for k, values in enumerate(parameters)]
        self._heirs.append(heir)
        name = str(old.name) if free else self._node_name(str(old.name))
        return self._node(op, name, [*inputs, *names, *behind], output or self._value(), **attributes)

    def _heir(self, summand: Summand, peek: bool = False) -> tuple[int, bool]:
        """Return the covered convolution that a new one stands for, the widest, and whether its name is free."""

        def width(position: int) -> tuple[int, int]:
            weight = self._facts.constants.get(self._weight_name(position))
            return (math.prod(weight.dims) if weight else 0, -position)

        every = (self._free & set(summand.members)) or self._free or self._anchors
        heir = max(every, key=width)
        free = heir in self._free
        if not peek:
            self._free.discard(heir)
        return heir, free

    def _weight_name(self, position: int) -> str:
        """Return the name of a node's weight, empty for a node that has none."""
        node = self._scope.nodes[position]
        if node.op not in _ANCHORS or len(node.inputs) < 2:
            return ""
        names = [str(v.name) for v in node.inputs]
        index = 0 if node.op == "MatMul" and self._facts.is_constant(names[0]) else 1
        return names[index] if self._facts.is_constant(names[index]) else ""

    # -- small things -----------------------------------------------------------------------------------------------

    def _column(self, vector: Array) -> Array:
        """Return a vector shaped to broadcast along the channels of the present layout."""
        return vector.reshape(-1, *(1,) * (self._rank - 2)) if self._kind == "first" else vector

    def _value(self) -> str:
        """Return a fresh name for an inner value."""
        return self._scope.model.fresh(f"{self._region.output}_part")

    def _node_name(self, base: str) -> str:
        """Return a fresh node name; unnamed nodes stay unnamed."""
        return self._scope.model.fresh(base) if base else ""

    def _tensor(self, name: str, values: Array) -> str:
        """Add an initializer in the model's type under a fresh name and return that."""
        return self._tensors.add(self._scope.model.fresh(name), values, self._type)

    def _node(self, op: str, name: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        self._nodes.append(gs.Node(op, name, attributes, [gs.Variable(i) for i in inputs], [gs.Variable(output)]))
        if len(self._heirs) < len(self._nodes):
            self._heirs.append(None)
        return output


def _factors(map_: Map) -> Array:
    """Return the factors of a map that copies channels, one per row that is not zero."""
    return map_.weight.reshape(-1)


def _matrix(map_: Map) -> Array:
    """Return a pointwise map as a matrix ``[rows, inputs]``."""
    g = map_.geometry
    dense = map_.spread(Blocks(g.blocks.rows, (0, g.inputs), 1)).weight
    return dense.reshape(dense.shape[:2])


def attributes_of(map_: Map) -> dict[str, Any]:
    """Return the attributes of the Conv or ConvTranspose that realises a map."""
    geometry, kernel = map_.geometry, map_.geometry.kernel
    attributes: dict[str, Any] = {
        "dilations": list(kernel.dilations),
        "group": geometry.group,
        "kernel_shape": list(kernel.shape),
        "strides": list(geometry.stride),
    }
    if geometry.mode in ("SAME_UPPER", "SAME_LOWER"):
        attributes["auto_pad"] = geometry.mode
    else:
        attributes["pads"] = [*kernel.begins, *kernel.ends]
    if any(kernel.output_padding):
        attributes["output_padding"] = list(kernel.output_padding)
    return attributes


def weight_of(map_: Map) -> Array:
    """Return the weight of the Conv (``[Co, Ci / group, ..]``) or ConvTranspose (``[Ci, Co / group, ..]``) of a map."""
    dense, geometry = map_.dense_kernel(), map_.geometry
    if geometry.mode != "transpose":
        return dense
    groups, kernel = geometry.group, dense.shape[2:]
    outputs = geometry.blocks.height // groups
    grouped = dense.reshape(groups, outputs, geometry.inputs // groups, *kernel).swapaxes(1, 2)
    return grouped.reshape(geometry.inputs, outputs, *kernel)
