"""What ONNX says an op does, written as naively as possible: loops over output positions, in float64.

Imports nothing from the package under test, and shares no way of thinking with it: no taps, no size constants, no maps.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
from onnx import helper, numpy_helper


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a model for the given inputs."""
    values = {t.name: _wide(numpy_helper.to_array(t)) for t in model.graph.initializer}
    values.update({k: _wide(v) for k, v in feeds.items()})
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = [values[i] if i else None for i in node.input]
        found = SEVERAL[node.op_type](inputs, attributes, len(node.output)) if node.op_type in SEVERAL else None
        found = [OPS[node.op_type](inputs, attributes)] if found is None else found
        values.update(zip(node.output, found, strict=True))
    return [values[o.name] for o in model.graph.output]


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind in "fV" else array  # V: bfloat16


def conv(inputs, attributes):
    x, w = inputs[0], inputs[1]
    b = inputs[2] if len(inputs) > 2 else None
    axes = x.ndim - 2
    kernel = w.shape[2:]
    strides = attributes.get("strides", [1] * axes)
    dilations = attributes.get("dilations", [1] * axes)
    begins, ends = _pads(attributes, x.shape[2:], kernel, strides, dilations)
    padded = np.zeros((*x.shape[:2], *(n + p + q for n, p, q in zip(x.shape[2:], begins, ends, strict=True))))
    padded[(slice(None), slice(None), *(slice(p, p + n) for p, n in zip(begins, x.shape[2:], strict=True)))] = x
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    sizes = [max((n - e) // s + 1, 0) for n, e, s in zip(padded.shape[2:], extents, strides, strict=True)]
    group = attributes.get("group", 1)
    outputs, width = w.shape[0], w.shape[1]
    y = np.zeros((x.shape[0], outputs, *sizes))
    for o in range(outputs):
        first = o // (outputs // group) * width
        for place in itertools.product(*map(range, sizes)):
            total = np.zeros(x.shape[0])
            for k in itertools.product(*map(range, kernel)):
                at = tuple(p * s + i * d for p, s, i, d in zip(place, strides, k, dilations, strict=True))
                total += padded[(slice(None), slice(first, first + width), *at)] @ w[(o, slice(None), *k)]
            y[(slice(None), o, *place)] = total + (0.0 if b is None else b[o])
    return y


def _pads(attributes, sizes, kernel, strides, dilations):
    axes = len(kernel)
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
            begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
            ends.append(total - begins[-1])
        return begins, ends
    pads = attributes.get("pads", [0] * 2 * axes) if auto == "NOTSET" else [0] * 2 * axes
    return pads[:axes], pads[axes:]


def conv_transpose(inputs, attributes):
    x, w = inputs[0], inputs[1]
    b = inputs[2] if len(inputs) > 2 else None
    axes = x.ndim - 2
    kernel = w.shape[2:]
    strides = attributes.get("strides", [1] * axes)
    dilations = attributes.get("dilations", [1] * axes)
    pads = attributes.get("pads", [0] * 2 * axes)
    extra = attributes.get("output_padding", [0] * axes)
    group = attributes.get("group", 1)
    outputs = w.shape[1] * group
    full = [
        s * (n - 1) + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(x.shape[2:], strides, dilations, kernel, extra, strict=True)
    ]
    y = np.zeros((x.shape[0], outputs, *full))
    for i in range(x.shape[1]):
        block = i // (x.shape[1] // group)
        for place in itertools.product(*map(range, x.shape[2:])):
            for k in itertools.product(*map(range, kernel)):
                at = tuple(p * s + j * d for p, s, j, d in zip(place, strides, k, dilations, strict=True))
                for o in range(w.shape[1]):
                    y[(slice(None), block * w.shape[1] + o, *at)] += x[(slice(None), i, *place)] * w[(i, o, *k)]
    cut = tuple(slice(p, n - q) for n, p, q in zip(full, pads[:axes], pads[axes:], strict=True))
    y = y[(slice(None), slice(None), *cut)]
    return y if b is None else y + b.reshape(-1, *[1] * axes)


def batch_normalization(inputs, attributes):
    x, gamma, beta, mean, variance = inputs
    epsilon = float(np.float32(attributes.get("epsilon", 1e-5)))
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        y[:, c] = gamma[c] * (x[:, c] - mean[c]) / math.sqrt(variance[c] + epsilon) + beta[c]
    return y


def pad(inputs, attributes):
    x = inputs[0]
    pads = list(inputs[1]) if len(inputs) > 1 else attributes["pads"]
    value = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else attributes.get("value", 0.0)
    rank = x.ndim
    axes = [int(a) % rank for a in inputs[3]] if len(inputs) > 3 else list(range(rank))
    for index, axis in enumerate(axes):
        for amount, side in ((int(pads[index]), 0), (int(pads[len(axes) + index]), 1)):
            if amount > 0:
                frame = np.full([amount if a == axis else n for a, n in enumerate(x.shape)], value)
                x = np.concatenate([frame, x] if side == 0 else [x, frame], axis)
            elif amount < 0:
                x = np.take(x, range(-amount, x.shape[axis]) if side == 0 else range(x.shape[axis] + amount), axis)
    return x


def average_pool(inputs, attributes):
    x = inputs[0]
    kernel = attributes["kernel_shape"]
    axes = len(kernel)
    strides = attributes.get("strides", [1] * axes)
    dilations = attributes.get("dilations", [1] * axes)
    begins, ends = _pads(attributes, x.shape[2:], kernel, strides, dilations)
    rounded = math.ceil if attributes.get("ceil_mode", 0) else math.floor
    sizes = []
    for n, k, s, d, b, e in zip(x.shape[2:], kernel, strides, dilations, begins, ends, strict=True):
        size = rounded((n + b + e - d * (k - 1) - 1) / s) + 1
        sizes.append(size - 1 if attributes.get("ceil_mode", 0) and (size - 1) * s >= n + b else size)
    y = np.zeros((*x.shape[:2], *sizes))
    for place in itertools.product(*map(range, sizes)):
        total, count = np.zeros(x.shape[:2]), 0
        for k in itertools.product(*map(range, kernel)):
            at = [p * s + i * d - b for p, s, i, d, b in zip(place, strides, k, dilations, begins, strict=True)]
            if all(0 <= a < n for a, n in zip(at, x.shape[2:], strict=True)):
                total += x[(slice(None), slice(None), *at)]
                count += 1
            elif attributes.get("count_include_pad", 0):
                count += all(a < n + e for a, n, e in zip(at, x.shape[2:], ends, strict=True))
        y[(slice(None), slice(None), *place)] = total / count
    return y


def slice_(inputs, attributes):
    x = inputs[0]
    lists = inputs[1:] if len(inputs) > 1 else [attributes["starts"], attributes["ends"], attributes.get("axes")]
    starts, ends = lists[0], lists[1]
    axes = lists[2] if len(lists) > 2 and lists[2] is not None else range(len(starts))
    steps = lists[3] if len(lists) > 3 and lists[3] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        first, last = (min(max(int(p) + size if p < 0 else int(p), 0), size) for p in (start, end))
        x = np.take(x, range(first, last, int(step)), int(axis))
    return x


def split(inputs, attributes, count):
    x, axis = inputs[0], attributes.get("axis", 0)
    parts = attributes.get("split") if len(inputs) < 2 else inputs[1]
    if parts is None:
        width = -(-x.shape[axis] // count)
        parts = [width] * (count - 1) + [x.shape[axis] - width * (count - 1)]
    edges = [0, *itertools.accumulate(int(p) for p in parts)]
    return [np.take(x, range(a, b), axis) for a, b in itertools.pairwise(edges)]


def reshape(inputs, _):
    x, shape = inputs
    return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])


def space_to_depth(inputs, attributes):
    x, q = inputs[0], attributes["blocksize"]
    return np.concatenate([x[:, :, i::q, j::q] for i in range(q) for j in range(q)], 1)


def gemm(inputs, attributes):
    a, b = inputs[0], inputs[1]
    y = (
        attributes.get("alpha", 1.0)
        * (a.T if attributes.get("transA") else a)
        @ (b.T if attributes.get("transB") else b)
    )
    return y if len(inputs) < 3 else y + attributes.get("beta", 1.0) * inputs[2]


SEVERAL = {"Split": split}
"""Ops with several outputs."""

OPS = {
    "Add": lambda i, _: i[0] + i[1],
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Concat": lambda i, a: np.concatenate(i, a["axis"]),
    "Constant": lambda _, a: _wide(numpy_helper.to_array(a["value"])),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Div": lambda i, _: i[0] / i[1],
    "Dropout": lambda i, _: i[0],
    "Gather": lambda i, a: np.take(i[0], i[1], a.get("axis", 0)),
    "Gemm": gemm,
    "Identity": lambda i, _: i[0],
    "MatMul": lambda i, _: i[0] @ i[1],
    "Mean": lambda i, _: sum(i) / len(i),
    "Mul": lambda i, _: i[0] * i[1],
    "Neg": lambda i, _: -i[0],
    "Pad": pad,
    "Relu": lambda i, _: np.maximum(i[0], 0),
    "Reshape": reshape,
    "Shape": lambda i, _: np.array(i[0].shape),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Sub": lambda i, _: i[0] - i[1],
    "Sum": lambda i, _: sum(i),
    "Transpose": lambda i, a: np.transpose(i[0], a.get("perm")),
}
