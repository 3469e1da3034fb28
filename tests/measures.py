"""What is measured of a model without the package under test: arithmetic, nodes, and whether float32 is exact."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

COUNTED = ("AveragePool", "Conv", "ConvTranspose", "MatMul", "Gemm")
EXACT_BELOW = 2.0**23


def nodes(model: onnx.ModelProto) -> int:
    """Return the number of nodes, constants left out."""
    return sum(n.op_type != "Constant" for n in model.graph.node)


def observed(model: onnx.ModelProto, every: bool = False) -> onnx.ModelProto:
    """Return a copy whose outputs are also what the convolutions, pools and products read and write, or all values."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    known = {t.name for t in model.graph.initializer} | {o.name for o in model.graph.output}
    names = [v for n in model.graph.node if n.op_type in COUNTED for v in (*n.input, n.output[0])]
    names += [n.input[0] for n in model.graph.node if n.op_type == "Pad"]
    known |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"} | {i.name for i in model.graph.input}
    if every:
        names = [v for n in model.graph.node for v in n.output]
    twin.graph.output.extend(
        map(helper.make_empty_tensor_value_info, dict.fromkeys(n for n in names if n not in known))
    )
    return twin


def macs(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Return the multiply-accumulates of a model, from the values of :func:`observed` and its inputs.

    Counted in three ways: without taps on padding by the reader, also without those on a Pad's frame, and with all. A
    pad that changes its place makes a difference to one or two of them. An AveragePool is counted as the convolution
    that it is.
    """
    shapes = {k: v.shape for k, v in values.items()} | {t.name: tuple(t.dims) for t in model.graph.initializer}
    frames = _frames(model)
    inside = unframed = full = 0
    for node in model.graph.node:
        if node.op_type not in COUNTED:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        if node.op_type in ("AveragePool", "Conv"):
            pool = node.op_type == "AveragePool"
            weight = (after[1], 1, *attributes["kernel_shape"]) if pool else shapes[node.input[1]]
            axes = len(before) - 2
            begins = np.array(attributes.get("pads", [0] * 2 * axes)[:axes])
            each = after[0] * math.prod(weight[:2])
            inside += each * _taps(attributes, weight[2:], before[2:], after[2:], begins)
            if node.input[0] in frames:
                source, frame = frames[node.input[0]]
                before, begins = shapes[source], begins + frame
            unframed += each * _taps(attributes, weight[2:], before[2:], after[2:], begins)
            full += math.prod(after) * math.prod(weight[1:])
            continue
        work = math.prod(after) * before[-1]
        if node.op_type == "ConvTranspose":
            work = math.prod(before) * math.prod(shapes[node.input[1]][1:])
        inside, unframed, full = inside + work, unframed + work, full + work
    return inside, unframed, full


def _frames(model):
    """Return what each Pad of spatial axes reads, and how many pixels it adds in front."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Pad":
            pads = [a.ints for a in node.attribute if a.name == "pads"] or [constants[node.input[1]]]
            half = len(pads[0]) // 2
            whole = len(node.input) < 4 or not node.input[3]
            found[node.output[0]] = node.input[0], np.array(pads[0][2 * whole : half])
    return found


def _taps(attributes, kernel, before, after, begins) -> int:
    """Return how many pairs of an output position and a tap fall on the image."""
    axes, pairs = len(kernel), 1
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    for k, n, p, s, d, b in zip(kernel, before, after, strides, dilations, begins, strict=True):
        at = s * np.arange(p)[:, None] + d * np.arange(k) - b
        pairs *= int(np.sum((at >= 0) & (at < n)))
    return pairs


def is_exact(model: onnx.ModelProto, largest_input: float = 3.0) -> bool:
    """Whether float32 rounds nowhere in a model, nor in what its linear ops combine to.

    Every value is a multiple of ``2**-digits`` of at most ``size``, cancellations not counted.
    """
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    bounds = {i.name: (largest_input, 0) for i in model.graph.input}
    worst = 0.0
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
            continue
        size, digits = _bound(node, attributes, constants, bounds)
        bounds.update(dict.fromkeys(node.output, (size, digits)))
        worst = max(worst, size * 2.0**digits)
    return worst < EXACT_BELOW


def _bound(node, attributes, constants, bounds):
    data = [bounds[i] for i in node.input if i in bounds]
    fixed = [constants[i] for i in node.input if i in constants and constants[i].dtype.kind == "f"]
    if not data:
        return 0.0, 0
    size, digits = max(s for s, _ in data), max(d for _, d in data)
    more = sum(map(_digits, fixed))
    largest = [float(np.max(np.abs(f), initial=0)) for f in fixed]
    match node.op_type:
        case "Conv" | "ConvTranspose" | "MatMul" | "Gemm" if fixed:
            weight = fixed[0].astype(np.float64)
            reach = float(np.max(_row_sums(node.op_type, weight, attributes, node.input[0] in bounds), initial=0))
            scales = [abs(attributes.get(k, 1.0)) for k in ("alpha", "beta")]
            shift = largest[1] if len(fixed) > 1 else 0.0
            return size * reach * scales[0] + shift * scales[1], digits + more + sum(map(_digits, scales))
        case "BatchNormalization":
            gamma, beta, mean, variance = (f.astype(np.float64) for f in fixed)
            factor = gamma / np.sqrt(variance + attributes["epsilon"])
            shift = np.abs(beta) + np.abs(factor * mean)
            return size * np.max(np.abs(factor)) + np.max(shift), digits + _digits(factor) + 1
        case "Mul":
            return size * max(largest, default=1.0), digits + more
        case "Div":
            return size * float(np.max(1 / np.abs(fixed[0]))), digits + _digits(1 / fixed[0])
        case "Add" | "Sub" | "Sum":
            return sum(s for s, _ in data) + sum(largest), max([digits, *map(_digits, fixed)])
        case "Mean":
            return size, digits + _digits(1 / len(data))
        case "AveragePool":
            return size, digits + round(math.log2(math.prod(attributes["kernel_shape"])))
        case "Pad":
            return max([size, abs(attributes.get("value", 0.0)), *largest]), max([digits, *map(_digits, fixed)])
        case _:
            return size, digits


def _row_sums(op, weight, attributes, data_first):
    weight = np.abs(weight)
    if op == "Conv":
        return weight.reshape(len(weight), -1).sum(1)
    if op == "ConvTranspose":
        return weight.sum(axis=(0, *range(2, weight.ndim)))
    if op == "Gemm":
        return weight.sum(1 if attributes.get("transB") else 0)
    return weight.sum(-2 if data_first else -1)


def _digits(values) -> int:
    values = np.abs(np.asarray(values, np.float64))
    for digits in range(12):
        if np.all(values * 2**digits == np.floor(values * 2**digits)):
            return digits
    return 64
