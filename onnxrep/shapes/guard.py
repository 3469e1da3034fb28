"""Windows larger than their image, hidden from ONNX's inference: of a negative size, its Slice ends the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import onnx
from onnx import AttributeProto

from onnxrep.graph import DEFAULT_DOMAINS

HIDDEN = "hidden"
"""A domain that inference does not know."""

_MOST_ROUNDS = 64
_OPEN = -1
_WINDOWS = frozenset("Conv ConvInteger QLinearConv MaxPool AveragePool LpPool DeformConv Col2Im MaxUnpool".split())
_OTHERS = frozenset("ConvTranspose Pad".split())

Dims = Mapping[str, list[int]]
"""Value -> its sizes, ``_OPEN`` for each that is not known; values of unknown rank are missing."""


def guard(model: onnx.ModelProto, infer: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Hide nodes of ``model`` whose result might have a negative size, if a Slice could read it.

    What may become negative is hidden first; then, round by round, what the sizes found so far show to be harmless is
    shown again. Nodes of local functions stay hidden.

    Args:
        model: changed in place: the domain of the nodes.
        infer: ONNX's inference.

    """
    bodies = [list(nodes) for nodes in ([*_nodes(model.graph)], *(f.node for f in model.functions))]
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.Clear()
    everything = [node for nodes in bodies for node in nodes]
    if not any(node.op_type == "Slice" for node in everything):
        return
    constants = {t.name: t for t in model.graph.initializer}
    constants |= {
        n.output[0]: a.t for n in everything if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
    }
    weights = {name: list(t.dims) for name, t in constants.items()}
    hidden = {id(node): node.domain for node in everything if _risky(node, weights, constants)}
    for node in everything:
        if id(node) in hidden:
            node.domain = HIDDEN
    waiting = [node for node in bodies[0] if id(node) in hidden]
    for _ in range(_MOST_ROUNDS if waiting else 0):
        dims = _sizes(infer(model).graph, {name for node in waiting for name in node.input})
        harmless = [node for node in waiting if _harmless(node, dims)]
        if not harmless:
            return
        for node in harmless:
            node.domain = hidden[id(node)]
        waiting = [node for node in waiting if node.domain == HIDDEN]
        if not waiting:
            return


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the bodies inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


def _sizes(graph: onnx.GraphProto, wanted: Set[str]) -> dict[str, list[int]]:
    """Return the sizes that inference found of some values, in the graph and in the bodies inside it."""
    found = {t.name: list(t.dims) for t in graph.initializer if t.name in wanted}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name not in wanted:
            continue
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            found[value.name] = [d.dim_value if d.HasField("dim_value") else _OPEN for d in kind.shape.dim]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found |= _sizes(attribute.g, wanted)
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes that a window has."""
    names = ("kernel_shape", "pads", "strides", "dilations", "auto_pad", "output_padding", "output_shape", "ceil_mode")
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name in names and a.type}


def _risky(node: onnx.NodeProto, weights: Dims, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node's result can have a negative size for some size of its input."""
    if node.domain not in DEFAULT_DOMAINS or node.op_type not in _WINDOWS | _OTHERS:
        return False
    if node.op_type == "Pad":
        return _cuts(node, constants)
    short = _shortage(node, weights)
    return short is None or any(n > 0 for n in short)


def _cuts(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a Pad has negative margins. Margins that are computed are taken for none: exporters write such Pads."""
    pads = _attributes(node).get("pads")
    if pads is None and len(node.input) > 1 and node.input[1] in constants:
        pads = onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    return any(n < 0 for n in pads or ())


def _harmless(node: onnx.NodeProto, dims: Dims) -> bool:
    """Whether the sizes found show that a node's result has no negative one."""
    image, short = dims.get(node.input[0] if node.input else ""), _shortage(node, dims)
    if image is None or short is None or len(image) != len(short) + 2:
        return False
    return all(size == _OPEN or size >= n for size, n in zip(image[2:], short, strict=True))


def _shortage(node: onnx.NodeProto, dims: Dims) -> list[int] | None:
    """Return per spatial axis the smallest size that a window needs of its image, or None if that is not known."""
    attributes = _attributes(node)
    weight = {"QLinearConv": 3}.get(node.op_type, 1)
    kernel = list(attributes.get("kernel_shape") or [])
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose") and len(node.input) > weight:
        kernel = kernel or dims.get(node.input[weight], [])[2:]
    axes = len(kernel)
    strides = list(attributes.get("strides") or [1] * axes)
    dilations = list(attributes.get("dilations") or [1] * axes)
    pads = list(attributes.get("pads") or [0] * (2 * axes))
    simple = node.op_type in ("Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool")
    if not axes or min(kernel) < 1 or not (simple or node.op_type == "ConvTranspose"):
        return None
    if (len(strides), len(dilations), len(pads)) != (axes, axes, 2 * axes) or min(*strides, *dilations) < 1:
        return None
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        return [0] * axes
    pads = [0] * (2 * axes) if auto == b"VALID" else pads
    reach = [d * (k - 1) + 1 - b - e for k, d, b, e in zip(kernel, dilations, pads[:axes], pads[axes:], strict=True)]
    if simple:
        return [r if r > 1 else 0 for r in reach]
    if attributes.get("output_shape"):
        return None
    return [max(1 - r // s, 0) for r, s in zip(reach, strides, strict=True)]
