"""How much memory a run will take, estimated before anything is allocated: a model can declare what no machine has."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import helper

from onnxrep.files import weight_bytes
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.machine import memory
from onnxrep.proof.lowering import unfolding
from onnxrep.shapes import inferred

Dims = tuple[int, ...]

_DOUBLE = 8
_SHARE = 0.6
_LEAST = 64


def budget() -> float:
    """Return the bytes that a check may take: most of what the machine (or its control group) has."""
    return _SHARE * memory()


def needed(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the bytes that the float64 twin of a model takes at its peak, at fixed input shapes.

    Values whose size shape inference cannot tell count nothing: this finds what is absurd, not the last megabyte. Sizes
    that are not declared count as ``_LEAST`` at least: on images smaller than a kernel, inference may end the process.
    """
    fixed = {v.name: [d.dim_value > 0 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    known = {
        name: tuple(
            size if axis < 2 or (axis < len(fixed.get(name, ())) and fixed[name][axis]) else max(size, _LEAST)
            for axis, size in enumerate(dims)
        )
        for name, dims in shapes.items()
    }
    graph = inferred(model, known).graph
    found: dict[str, Dims] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    weights = 2.0 * weight_bytes(model)
    return weights + _peak(graph, found, {t.name: tuple(t.dims) for t in graph.initializer})


def _peak(graph: onnx.GraphProto, dims: Mapping[str, Dims], weights: Mapping[str, Dims]) -> float:
    """Return the largest sum of values alive at one time, what a lowered convolution unfolds included."""
    sizes = {name: float(_DOUBLE) * math.prod(d) for name, d in dims.items()}
    last = {name: position for position, node in enumerate(graph.node) for name in node.input}
    last.update((v.name, len(graph.node)) for v in graph.output)
    alive = sum(sizes.get(v.name, 0.0) for v in graph.input)
    peak = alive
    for position, node in enumerate(graph.node):
        alive += sum(sizes.get(name, 0.0) for name in node.output)
        extra = 0.0
        if node.op_type == "Conv" and node.domain in DEFAULT_DOMAINS and len(node.input) > 1:
            image, result = dims.get(node.input[0]), dims.get(node.output[0])
            weight = weights.get(node.input[1]) or dims.get(node.input[1])
            if image and weight and result:
                extra = sizes[node.output[0]] * _unfolded(node, image, weight, result)
        peak = max(peak, alive + extra)
        alive -= sum(sizes.get(n, 0.0) for n in {*node.input, *node.output} if last.get(n, position) == position)
    return peak


def _unfolded(node: onnx.NodeProto, image: Dims, weight: Dims, result: Dims) -> float:
    """Return how many times the size of its result a convolution takes while it runs."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    pads = given.get("pads") or [0, 0]
    edge = pads[0] + pads[len(pads) // 2]
    if given.get("auto_pad", b"NOTSET").startswith(b"SAME"):
        edge = (given.get("dilations") or [1])[0] * max(weight[2] - 1, 0)
    return unfolding(weight, given.get("group", 1), (image[2] + edge) / max(result[2], 1))
