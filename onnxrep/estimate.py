"""How long a region takes before and after, as the provider runs it: a model of time, where the price counts work.

Every kernel takes a time to start; convolutions and products take one per multiply-accumulate, others one per element.
What the runtime fuses by itself costs nothing: a scale or shift behind a convolution, on some providers a sum behind
one. Sizes that the graph leaves open count as one image and as 56 positions along each other axis.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from onnxrep.graph import DEFAULT_DOMAINS, Edit
from onnxrep.lift import Facts
from onnxrep.rates import PRODUCT, Rates, kind_of
from onnxrep.shapes import Known, assign, resolved

Dims = tuple[int, ...]

_OPEN = 56
"""Positions along an axis of unknown size."""
_CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))
_PRODUCTS = frozenset(("MatMul", "Gemm"))
_SCALES = frozenset("BatchNormalization Mul Add Sub Div".split())
_SUMS = frozenset(("Add", "Sum"))
_RENAMED = frozenset("Identity Reshape Flatten Squeeze Unsqueeze Dropout".split())
"""Ops that move no element."""


@dataclass(frozen=True)
class _Node:
    """What counts of a node: its data inputs and output, the dims of its weight (empty without one), its attributes.

    A new Reshape has the shape that it asks for.
    """

    op: str
    read: tuple[str, ...]
    output: str
    weight: Dims
    attributes: Mapping[str, Any]
    target: Dims = ()


class Estimator:
    """Estimates times in one scope."""

    def __init__(self, facts: Facts, rates: Rates) -> None:
        self._facts, self._rates = facts, rates
        self._known: Known = {}

    def seconds(self, removed: Iterable[int], edit: Edit, output: str) -> tuple[float, float]:
        """Return the seconds of the nodes at some positions, and of those that take their place to make ``output``."""
        scope = self._facts.scope
        before = [self._of_graph(scope.nodes[p]) for p in removed if scope.nodes[p].domain in DEFAULT_DOMAINS]
        read_before = {n.output: len(scope.readers.get(n.output, ())) + (n.output in scope.pinned) for n in before}
        after = self._of_edit(edit)
        dims: dict[str, Dims] = {}
        for node in after:
            dims[node.output] = self._made(node, dims, output)
        counts = Counter(name for node in after for name in node.read)
        return self._sum(before, {}, read_before), self._sum(after, dims, {output: 1} | counts)

    # -- nodes and sizes --------------------------------------------------------------------------------------------

    def _of_graph(self, node: gs.Node) -> _Node:
        """Return a node of the graph."""
        names = [str(v.name) for v in node.inputs if v.name]
        fixed = {n: c.dims for n in names if (c := self._facts.constants.get(n)) is not None}
        weight = next((tuple(dims) for name in names if len(dims := fixed.get(name, ())) > 1), ())
        read = tuple(n for n in names if n not in fixed)
        return _Node(node.op, read, str(node.outputs[0].name), weight, node.attrs)

    def _of_edit(self, edit: Edit) -> list[_Node]:
        """Return the nodes that an edit writes."""
        tensors = {name: values for part in edit.whole for name, values in part.tensors}
        new = {name: tuple(values.shape) for name, values in tensors.items()}
        found = []
        for node in edit.written:
            names = [str(v.name) for v in node.inputs if v.name]
            fixed = {n: new[n] for n in names if n in new}
            fixed |= {
                n: tuple(c.dims) for n in names if n not in new and (c := self._facts.constants.get(n)) is not None
            }
            weight = next((dims for dims in fixed.values() if len(dims) > 1), ())
            read = tuple(n for n in names if n not in fixed)
            last = tensors.get(names[-1]) if node.op == "Reshape" else None
            target = () if last is None else tuple(map(int, last))
            found.append(_Node(node.op, read, str(node.outputs[0].name), weight, node.attrs, target))
        return found

    def _dims(self, name: str) -> Dims:
        """Return the sizes of a value of the graph; open ones as they are supposed to be."""
        found = []
        for axis, dim in enumerate(self._facts.shapes.of(name) or ()):
            assign(dim, _OPEN if axis else 1, self._known)
            found.append(max(dim if isinstance(dim, int) else dim.number(self._known), 0))
        return tuple(found)

    def _made(self, node: _Node, dims: Mapping[str, Dims], output: str) -> Dims:
        """Return the sizes of what a new node makes; like the region's output where that is not told by its op."""
        whole = self._dims(output)
        inputs = [dims.get(name) or self._dims(name) for name in node.read]
        if node.output == output or not inputs or not inputs[0]:
            return whole
        if node.op == "Conv" and len(node.weight) == len(inputs[0]) > 2:
            return (inputs[0][0], node.weight[0], *_windows(node, inputs[0][2:]))
        if node.op == "Concat":
            axis = int(node.attributes.get("axis", 1)) % len(inputs[0])
            total = sum(d[axis] for d in inputs if len(d) > axis)
            return (*inputs[0][:axis], total, *inputs[0][axis + 1 :])
        if node.op == "Reshape" and (shape := resolved(inputs[0], node.target)) is not None:
            return tuple(d for d in shape if isinstance(d, int))
        if node.op == "Transpose" and len(perm := node.attributes.get("perm", ())) == len(inputs[0]):
            return tuple(inputs[0][p] for p in perm)
        return max(inputs, key=math.prod) if node.op in _SCALES | _SUMS | {"Neg", "Identity"} else whole

    # -- time -------------------------------------------------------------------------------------------------------

    def _sum(self, nodes: Sequence[_Node], dims: Mapping[str, Dims], readers: Mapping[str, int]) -> float:
        """Return the seconds of some nodes, in order."""
        total, hosts = 0.0, set[str]()
        for node in nodes:
            alone = [name for name in node.read if name in hosts and readers.get(name, 0) == 1]
            sizes = [math.prod(dims.get(name) or self._dims(name)) for name in node.read]
            made = math.prod(dims.get(node.output) or self._dims(node.output))
            if node.op in _CONVOLUTIONS | _PRODUCTS and len(node.weight) > 1:
                hosts.add(node.output)
                total += self._rates.launch + self._work(node, made, sum(sizes))
            elif node.op in _SCALES and len(node.read) == 1 and alone and self._rates.fuses_scales:
                hosts.add(node.output)
            elif node.op in _SUMS and len(node.read) == 2 and alone and self._rates.fuses_sums:
                total += made / self._rates.elements
            else:
                moved = 0 if node.op in _RENAMED else sum(sizes) + made
                total += self._rates.launch + moved / self._rates.elements
        return total

    def _work(self, node: _Node, made: int, read: int) -> float:
        """Return the seconds in which a convolution or product that makes and reads so many elements calculates."""
        weight, group = node.weight, int(node.attributes.get("group", 1))
        if node.op in _PRODUCTS:
            return made * weight[1 if node.attributes.get("transB", 0) else -2] / self._rates.macs(PRODUCT)
        dilated = any(d > 1 for d in node.attributes.get("dilations") or ())
        positions = read if node.op == "ConvTranspose" else made
        speed = self._rates.macs(kind_of(weight, group), dilated=dilated)
        return positions * math.prod(weight[1:]) / speed


def _windows(node: _Node, sizes: Sequence[int]) -> list[int]:
    """Return the sizes of the image that a convolution makes of one."""
    axes, found = len(sizes), node.attributes
    strides, dilations = (list(found.get(key) or [1] * axes) for key in ("strides", "dilations"))
    if found.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
    pads = list(found.get("pads") or [0] * 2 * axes)
    columns = zip(sizes, node.weight[2:], strides, dilations, pads[:axes], pads[axes:], strict=True)
    return [max((n + b + e - d * (k - 1) - 1) // s + 1, 0) for n, k, s, d, b, e in columns]
