"""AveragePool, where it is a convolution with equal weights."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.lattice import Form, Geometry, Map
from onnxrep.lift.base import Branch, Decline, Facts, Lifted, allow, inputs
from onnxrep.shapes import UnknownWindow, lengths_of, window


def lift_average_pool(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift an AveragePool that divides by the same number everywhere and rounds no size up.

    Raises:
        Decline: at the border it divides by the number of real pixels, or the last window may hang over the edge.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    allow(node, ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"))
    source = inputs(node, 1, 1)[0]
    if facts.is_constant(source):
        raise Decline("constant")
    channels, axes = facts.image(source)
    kernel = list(node.attrs.get("kernel_shape") or ())
    shape = facts.shape(source)
    if len(kernel) != axes:
        raise Decline("unknown-attribute", "kernel_shape does not fit the rank")
    try:
        taps, stride, size, mode = window(node.attrs, kernel, shape[2:])
    except UnknownWindow as error:
        raise Decline("unknown-attribute", f"AveragePool: {error}") from None
    lengths = lengths_of(shape)
    if node.attrs.get("ceil_mode", 0) and (
        lengths is None or any((n + c) % s for n, c, s in zip(lengths, size, stride, strict=True))
    ):
        raise Decline("pool", "AveragePool rounds its size up: the last window may hang over the edge")
    padded = any(t[0] < 0 for t in taps) or any(c + t[-1] >= 0 for c, t in zip(size, taps, strict=True))
    if mode != "conv" or (padded and not node.attrs.get("count_include_pad", 0)):
        raise Decline("pool", "AveragePool divides by the number of real pixels at the border")
    geometry = Geometry(channels, channels, channels, taps, stride, size)

    def numbers() -> Form:
        return Form((Map(geometry, np.full(geometry.weight_shape, 1.0 / math.prod(kernel))),), None)

    return Lifted((Branch(source, geometry),), numbers, macs=geometry.macs, averages=not padded)
