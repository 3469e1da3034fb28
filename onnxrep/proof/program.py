"""Some nodes of a graph as a program in float64: run on stacks of inputs, for one region or for many equal ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper

from onnxrep.constants import EVALUABLE, evaluate
from onnxrep.graph import DEFAULT_DOMAINS, Edit, exported
from onnxrep.lift import Facts
from onnxrep.proof.semantics import MOVES, OPS, Call, CannotEvaluate, IllegalSize, is_float, moved

Array = NDArray[Any]

_SCALABLE = frozenset(OPS) | {"Concat", "Transpose"}
"""Ops that do the same on a smaller image."""

_ALONE = frozenset(OPS) - {"MatMul", "Gemm", "ReduceMean"}
"""Ops that keep the channels in their order."""

_SCALED = ("Resize", "Upsample")
"""Ops whose sizes follow from scales, which are reals."""

_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
_DEPTHWISE, _PER_ELEMENT = 16.0, 32.0
_FAR = 1 << 20
"""Numbers from here on mean: to the end."""
_LARGEST = 1 << 16
"""Nodes of one program."""


@dataclass(frozen=True)
class Reach:
    """Per spatial axis how many positions of a value one position of the result reads, and the steps between those."""

    extent: tuple[int, ...]
    stride: tuple[Fraction, ...]


class Program:
    """Nodes in order, from sources to one output.

    Attributes:
        nodes: with their attributes.
        sources: the values read.
        output: the value made.
        constants: what else is read, floats as they are stored: they become float64 when a stack is made of them.
    """

    def __init__(
        self,
        nodes: Sequence[onnx.NodeProto],
        sources: Sequence[str],
        output: str,
        constants: Mapping[str, Array],
        opset: int,
    ) -> None:
        self.sources, self.output, self.opset = tuple(sources), output, opset
        self.nodes = [(node, _attributes(node)) for node in nodes]
        self.constants = {k: np.asarray(v, _stored(v)) for k, v in constants.items()}

    @property
    def is_scalable(self) -> bool:
        """Whether no op has numbers that are meant for one size of image."""
        joins = (name for node, _ in self.nodes if node.op_type == "Concat" for name in node.input)
        return all(node.op_type in _SCALABLE for node, _ in self.nodes) and not any(n in self.constants for n in joins)

    def signature(self) -> tuple[object, ...]:
        """Return what two programs must share to run as one: all but the names and the values of the weights."""
        numbers = {name: index for index, name in enumerate(self.sources)}
        found: list[object] = [self.opset]
        for node, _ in self.nodes:
            inputs: list[object] = []
            for name in node.input:
                inputs.append(numbers.setdefault(name, len(numbers)))
                values = self.constants.get(name)
                if values is not None:
                    weights = is_float(values) and node.op_type not in _SCALED
                    inputs.append((values.shape, "reals" if weights else values.tobytes()))
            for name in node.output:
                numbers.setdefault(name, len(numbers))
            attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
            found.append((node.op_type, tuple(inputs), attributes, len(node.output)))
        found.append(numbers.get(self.output))
        return tuple(found)

    def work(self, shapes: Mapping[str, Sequence[int]]) -> float:
        """Estimate the work on one input: weights read at every position of the largest source, and all elements moved.

        Depthwise weights count more: they are no matrix products.
        """
        elements = sum(math.prod(s) for s in shapes.values())
        positions = max((math.prod(s) / max(s[1] if len(s) > 1 else 1, 1) for s in shapes.values()), default=1.0)
        weights = [v for v in self.constants.values() if is_float(v) and v.ndim > 1]
        products = positions * sum(v.size * (_DEPTHWISE if v.shape[1] == 1 else 1.0) for v in weights)
        return products + _PER_ELEMENT * elements * len(self.nodes)

    @property
    def groups(self) -> int:
        """The number of blocks of channels that do not meet, for a program of convolutions and element-wise ops."""
        found = [int(a.get("group", 1)) for node, a in self.nodes if node.op_type in ("Conv", "ConvTranspose")]
        plain = all(node.op_type in _ALONE for node, _ in self.nodes)
        return math.gcd(*found) if plain and found else 1

    def reach(self, axes: int) -> dict[str, Reach]:
        """Return the reach of the sources, from the attributes alone; ``axes``: of the images."""
        found = {self.output: Reach((1,) * axes, (Fraction(1),) * axes)}
        for node, attributes in reversed(self.nodes):
            outs = [found[o] for o in node.output if o in found]
            if not outs:
                continue
            extent = tuple(max(r.extent[a] for r in outs) for a in range(axes))
            stride = tuple(max(r.stride[a] for r in outs) for a in range(axes))
            inner = self._through(node, attributes, Reach(extent, stride))
            for name in node.input:
                if name and name not in self.constants:
                    known = found.get(name, inner)
                    pairs = zip(known.extent, inner.extent, strict=True), zip(known.stride, inner.stride, strict=True)
                    found[name] = Reach(tuple(max(p) for p in pairs[0]), tuple(max(p) for p in pairs[1]))
        return {name: found[name] for name in self.sources if name in found}

    def _through(self, node: onnx.NodeProto, attributes: Mapping[str, Any], reach: Reach) -> Reach:
        """Return the reach of a node's input."""
        axes = len(reach.extent)
        weight = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        kernel = list(attributes.get("kernel_shape") or (weight.shape[2:] if weight is not None else ()))
        extent, stride = list(reach.extent), list(reach.stride)
        if node.op_type in ("Conv", "AveragePool", "ConvTranspose") and len(kernel) == axes:
            strides, dilations = (list(attributes.get(key) or [1] * axes) for key in ("strides", "dilations"))
            for a, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
                window = d * (k - 1) + 1
                if node.op_type == "ConvTranspose":
                    extent[a], stride[a] = -(-(extent[a] + window) // s) + 1, stride[a] / s
                else:
                    extent[a], stride[a] = (extent[a] - 1) * s + window, stride[a] * s
        elif node.op_type in ("Pad", "Slice"):
            for a, (far, step) in self._moves(node, attributes, axes).items():
                extent[a], stride[a] = (extent[a] - 1) * step + 1 + far, stride[a] * step
        elif node.op_type in _SCALED:
            given = attributes.get("scales", self.constants.get(node.input[-1], ()))
            for a, scale in enumerate(np.asarray(given, np.float64).reshape(-1)[2 : axes + 2]):
                extent[a], stride[a] = math.ceil((extent[a] - 1) / scale) + 1, stride[a] / Fraction(scale)
        elif node.op_type == "SpaceToDepth":
            step = attributes["blocksize"]
            extent, stride = [e * step for e in extent], [s * step for s in stride]
        return Reach(tuple(extent), tuple(stride))

    def _moves(self, node: onnx.NodeProto, attributes: Mapping[str, Any], axes: int) -> dict[int, tuple[int, int]]:
        """Return per spatial axis how far a Pad or Slice moves a border, and the step between what it keeps."""
        keys = ("pads", "", "axes") if node.op_type == "Pad" else ("starts", "ends", "axes", "steps")
        given = dict(zip(keys, map(self._numbers, node.input[1:]), strict=False))
        given |= {key: attributes[key] for key in keys if key in attributes}
        first, last = given.get("starts", []), given.get("ends", [])
        if node.op_type == "Pad":
            half = len(given.get("pads", [])) // 2
            first, last = given.get("pads", [])[:half], given.get("pads", [])[half:]
        places = given.get("axes") or range(len(first))
        steps = given.get("steps") or [1] * len(first)
        found: dict[int, tuple[int, int]] = {}
        for place, begin, end, step in zip(places, first, last, steps, strict=False):
            axis = place - 2 if place >= 0 else place + axes
            if 0 <= axis < axes:
                far = max((abs(v) for v in (begin, end) if abs(v) < _FAR), default=0)
                found[axis] = far, max(abs(step), 1)
        return found

    def _numbers(self, name: str) -> list[int]:
        """Return a constant vector of integers, empty for any other value."""
        values = self.constants.get(name)
        return [] if values is None or is_float(values) else [int(v) for v in values.reshape(-1)]

    def run(
        self,
        feeds: Mapping[str, Array],
        weights: Mapping[str, Array],
        sizes: Mapping[str, tuple[int, ...]],
        *,
        magnitude: bool = False,
        empty: bool = False,
    ) -> Array:
        """Return the output's stack.

        Args:
            feeds: the sources' stacks.
            weights: the constants' stacks, one probe each.
            sizes: dims of values outside of the program whose Shape is taken.
            magnitude: count all terms as positive; feeds and weights must be.
            empty: go on where an image inside has no pixel, or is smaller than a window.

        Raises:
            IllegalSize: an op does not run on these shapes.
            CannotEvaluate: an op is not known.
        """
        values: dict[str, Array] = {**weights, **feeds}
        left = {name: index for index, (node, _) in enumerate(self.nodes) for name in node.input}
        for index, (node, attributes) in enumerate(self.nodes):
            inputs = [values.get(name) if name else None for name in node.input]
            if node.op_type != "Shape" and any(v is None and n for v, n in zip(inputs, node.input, strict=True)):
                raise CannotEvaluate(f"{node.op_type} reads a value that is not there")
            try:
                found = self._call(Call(node, attributes, inputs, magnitude, self.opset, empty), sizes)
            except (ValueError, IndexError, ZeroDivisionError, TypeError) as error:
                raise IllegalSize(f"{node.op_type}: {error}") from None
            if not empty and any(is_float(v) and not v.size for v in found):
                raise IllegalSize(f"{node.op_type} makes an empty image")
            values.update((name, value) for name, value in zip(node.output, found, strict=False) if name)
            for name in node.input:
                if left[name] == index and name != self.output:
                    values.pop(name, None)
        return values[self.output]

    def _call(self, call: Call, sizes: Mapping[str, tuple[int, ...]]) -> Sequence[Array]:
        """Run one node."""
        node = call.node
        if node.op_type == "Shape":
            known = call.inputs[0]
            dims = sizes.get(node.input[0]) if known is None else known.shape[2:] if is_float(known) else known.shape
            if dims is None:
                raise IllegalSize("a size that is not known")
            return [np.array(dims[slice(call.attributes.get("start", 0), call.attributes.get("end"))], np.int64)]
        present = [v for v in call.inputs if v is not None]
        if any(map(is_float, present)):
            if node.op_type in OPS:
                return [OPS[node.op_type](call)]
            if node.op_type in MOVES:
                return moved(call)
            raise CannotEvaluate(node.op_type)
        feeds = {name: v for name, v in zip(node.input, call.inputs, strict=True) if v is not None}
        results = evaluate(node, feeds, call.opset)
        if set(results) != {o for o in node.output if o}:
            raise IllegalSize(node.op_type)
        return [_wide(results[o]) if o else np.zeros(0, np.int64) for o in node.output]


def _wide(values: Array) -> Array:
    """Return a calculated constant as a stack if it holds reals."""
    return values.astype(np.float64)[None, None] if _holds_reals(values) else values


def _stored(values: Array) -> np.dtype[Any]:
    """Return the type in which a constant is kept: float64 for reals of a type that numpy does not know."""
    return values.dtype if is_float(values) or not _holds_reals(values) else np.dtype(np.float64)


def _holds_reals(values: Array) -> bool:
    """Whether an array holds real numbers of any type (bfloat16 has no kind of its own)."""
    return values.dtype.kind not in "iubUSO"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's plain attributes."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type != AttributeProto.GRAPH}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def pair(
    facts: Facts, output: str, read: Sequence[str], edit: Edit, representative: Callable[[str], str]
) -> tuple[Program, Program]:
    """Return the program of the nodes that make a value as they stand in the graph, and that of an edit's nodes.

    Both have the same sources: what both read, as far as it does not follow from the rest, and what the first reads
    besides because it is multiplied by zero: that may have any value.

    Args:
        facts: of the scope.
        output: the value.
        read: the values that the edit reads.
        edit: the new nodes.
        representative: gives the same name to values that are certainly equal.

    Raises:
        CannotEvaluate: a constant or a program is too large.
    """
    apart: list[str] = []
    prefix = _Part(facts, representative)
    for name in sorted(read, key=lambda s: facts.scope.producer.get(s, -1)):
        earliest = min((facts.scope.producer.get(s, -1) for s in apart), default=-1)
        part = _Part(facts, representative, earliest)
        if apart:
            part.add(name, apart)
        if apart and not part.more:
            prefix.join(part)
        else:
            apart.append(name)
    whole = _Part(facts, representative)
    whole.add(output, apart)
    sources = (*apart, *whole.more)
    before = Program(whole.nodes, sources, output, whole.constants, facts.opset)
    tensors = {name: part.exact.get(name, values) for part in edit.whole for name, values in part.tensors}
    nodes = [*prefix.nodes, *(exported(n) for n in edit.written)]
    kept = _constants_read(facts, edit, tensors)
    return before, Program(nodes, sources, output, {**prefix.constants, **kept, **tensors}, facts.opset)


def _constants_read(facts: Facts, edit: Edit, new: Collection[str]) -> dict[str, Array]:
    """Return the constants of the graph that new nodes read as they are."""
    names = {str(v.name) for node in edit.written for v in node.inputs if v.name} - set(new)
    found = {name: facts.constants.get(name) for name in names if facts.is_constant(name)}
    return {name: constant.values() for name, constant in found.items() if constant is not None}


class _Part:
    """Nodes of a graph between sources and a value, the constants that they read, and what other data they read."""

    def __init__(self, facts: Facts, representative: Callable[[str], str], earliest: int = -1) -> None:
        """``earliest``: position up to which nodes count as sources."""
        self._facts, self._representative, self._earliest = facts, representative, earliest
        self._positions: set[int] = set()
        self._equal: dict[str, str] = {}
        self.constants: dict[str, Array] = {}
        self.more: list[str] = []

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes in order, those first that only give a source another name."""
        aliases = [helper.make_node("Identity", [source], [name]) for name, source in self._equal.items()]
        return [*aliases, *(_only_data(self._facts.scope.proto.node[p]) for p in sorted(self._positions))]

    def join(self, other: _Part) -> None:
        """Add what another part holds."""
        self._positions |= other._positions
        self._equal |= other._equal
        self.constants |= other.constants

    def add(self, output: str, sources: Sequence[str]) -> None:
        """Add what makes a value of some sources."""
        known = {self._representative(s): s for s in sources}
        stack, seen = [output], set(sources)
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            if self._facts.is_constant(name):
                constant = self._facts.constants.get(name)
                if constant is None:
                    raise CannotEvaluate(f"{name} is too large to compute")
                self.constants[name] = constant.values()
                continue
            if self._representative(name) in known:
                self._equal[name] = known[self._representative(name)]
                continue
            position = self._facts.scope.producer.get(name, -1)
            if position <= self._earliest or not _is_known(self._facts, self._facts.scope.proto.node[position]):
                self.more.append(name)
                known[self._representative(name)] = name
                continue
            self._positions.add(position)
            if len(self._positions) > _LARGEST:
                raise CannotEvaluate("it is too long")
            node = _only_data(self._facts.scope.proto.node[position])
            stack += [i for i in node.input if i and node.op_type != "Shape"]


def _is_known(facts: Facts, node: onnx.NodeProto) -> bool:
    """Whether a program may hold a node: one that is linear, or calculates with sizes. Others make sources."""
    if node.domain not in DEFAULT_DOMAINS:
        return False
    if node.op_type == "Cast":
        kind = next((a.i for a in node.attribute if a.name == "to"), 0)
        return kind == facts.shapes.type_of(node.input[0]) or kind in _INTEGERS
    if node.op_type in OPS or node.op_type in MOVES:
        return True
    return node.op_type in EVALUABLE and facts.shapes.type_of(node.output[0]) in _INTEGERS


def _only_data(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node without the input of which it takes the type only."""
    if node.op_type != "CastLike":
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[1:]
    return copy


def outside(program: Program) -> Iterator[str]:
    """Yield the values whose Shape a program takes without making them."""
    made = {name for node, _ in program.nodes for name in node.output} | set(program.sources)
    for node, _ in program.nodes:
        if node.op_type == "Shape" and node.input[0] not in made:
            yield node.input[0]
