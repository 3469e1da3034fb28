"""From a region's maps to ONNX nodes, and from there to the edit that replaces the region."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.graph import Edit, Scope, stored
from onnxrep.lattice import Array, Map
from onnxrep.lift import Facts
from onnxrep.plan import Region, Summand

SUFFIX = "_folded"
_ANCHOR_OPS = ("Conv", "ConvTranspose")


def emit(facts: Facts, region: Region) -> Edit:
    """Return the edit for a region: one convolution per anchored summand, joined by Adds where there are several.

    The bias goes to the first convolution. The last node makes the region's output under its old name.

    Raises:
        OverflowError: a weight or bias is not finite in the model's type.

    """
    return _Emitter(facts, region).edit()


class _Emitter:
    """Builds the nodes of one region."""

    def __init__(self, facts: Facts, region: Region) -> None:
        self._scope: Scope = facts.scope
        self._region = region
        self._nodes: list[gs.Node] = []
        self._heirs: list[int | None] = []
        self._tensors: list[tuple[str, Any]] = []
        self._anchors = {p for p in region.removed if self._scope.nodes[p].op in _ANCHOR_OPS}
        self._free_heirs = set(self._anchors)
        self._facts = facts
        weight = facts.constants.get(self._weight_name(min(self._free_heirs)))
        assert weight is not None
        self._type = weight.data_type

    def edit(self) -> Edit:
        """Build the nodes: convolutions, then what is added to them."""
        region = self._region
        root = self._scope.nodes[region.root]
        output = str(root.outputs[0].name)
        ordered = sorted(region.summands, key=lambda s: (not s.anchored, s.unit == -1.0))
        bias = region.bias
        total = ""
        for index, summand in enumerate(ordered):
            last = index == len(ordered) - 1
            if summand.anchored:
                value = self._convolution(summand, bias, output if len(ordered) == 1 else self._value(output))
                bias = np.zeros(summand.map.geometry.outputs)
            elif summand.unit is None:
                value = self._scaled(summand, self._value(output))
            else:
                value = summand.source
            if not total:
                total = value
                continue
            result = output if last else self._value(output)
            name = root.name if last and region.root not in self._anchors else self._node_name(root.name)
            self._add("Sub" if summand.unit == -1.0 else "Add", name, [total, value], result)
            total = result
        return Edit(frozenset(region.removed), region.root, self._nodes, self._tensors, self._heirs)

    def _weight_name(self, position: int) -> str:
        return str(self._scope.nodes[position].inputs[1].name)

    def _value(self, output: str) -> str:
        """Return a fresh name for an inner value."""
        return self._scope.model.fresh(f"{output}_part")

    def _node_name(self, base: str) -> str:
        """Return a fresh node name; unnamed nodes stay unnamed."""
        return self._scope.model.fresh(base) if base else ""

    def _tensor(self, name: str, values: Array) -> str:
        """Add an initializer in the model's type under a fresh name and return that."""
        name = self._scope.model.fresh(name)
        self._tensors.append((name, stored(values, self._type)))
        return name

    def _add(self, op: str, name: str, inputs: list[str], output: str, **attributes: Any) -> None:
        """Add a node."""
        self._nodes.append(gs.Node(op, name, attributes, [gs.Variable(i) for i in inputs], [gs.Variable(output)]))
        if len(self._heirs) < len(self._nodes):
            self._heirs.append(None)

    def _heir(self, summand: Summand) -> tuple[int, bool]:
        """Return the removed convolution that a new one stands for, the widest, and whether its name is still free."""

        def width(position: int) -> tuple[int, int]:
            weight = self._facts.constants.get(self._weight_name(position))
            return (math.prod(weight.dims) if weight else 0, -position)

        own = self._free_heirs & set(summand.members)
        every = own or self._free_heirs or self._anchors
        heir = max(every, key=width)
        free = heir in self._free_heirs
        self._free_heirs.discard(heir)
        return heir, free

    def _convolution(self, summand: Summand, bias: Array | None, output: str) -> str:
        """Add one Conv or ConvTranspose and return its output."""
        heir, free = self._heir(summand)
        old = self._scope.nodes[heir]
        base = self._weight_name(heir).removesuffix(SUFFIX) + SUFFIX
        geometry = summand.map.geometry
        attributes = attributes_of(summand.map)
        weight = self._tensor(base, weight_of(summand.map))
        vector = self._tensor(f"{base}_bias", np.zeros(geometry.outputs) if bias is None else bias)
        op = "ConvTranspose" if geometry.mode == "transpose" else "Conv"
        self._heirs.append(heir)
        name = old.name if free else self._node_name(old.name)
        self._add(op, name, [summand.source, weight, vector], output, **attributes)
        return output

    def _scaled(self, summand: Summand, output: str) -> str:
        """Add the product of a source with a constant per channel and return its output."""
        values = summand.map.weight.reshape(-1, *(1,) * summand.map.geometry.axes)
        factor = self._tensor(f"{summand.source}_scale{SUFFIX}", values)
        self._add("Mul", self._node_name(self._scope.nodes[self._region.root].name), [summand.source, factor], output)
        return output


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
    grouped = dense.reshape(groups, geometry.outputs // groups, geometry.inputs // groups, *kernel).swapaxes(1, 2)
    return grouped.reshape(geometry.inputs, geometry.outputs // groups, *kernel)
