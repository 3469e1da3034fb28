"""Pad, as the map that moves an image within a larger (or smaller) one filled with zeros."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.lattice import Form, Geometry, Map
from onnxrep.lift.base import Branch, Decline, Facts, Lifted, allow, inputs
from onnxrep.shapes import pad_margins


def lift_pad(node: gs.Node, facts: Facts) -> Lifted:
    """Lift a Pad of spatial axes with the constant zero: one tap at ``-begin``, size constant ``begin + end - 1``.

    Pads are an attribute before opset 11, an input since; negative pads crop.

    https://onnx.ai/onnx/operators/onnx__Pad.html
    """
    allow(node, ("mode", "pads", "value"))
    if node.attrs.get("mode", "constant") != "constant":
        raise Decline("not-linear", f"Pad in mode {node.attrs['mode']}")
    source, _, value_name, _ = inputs(node, 1, 4)
    if facts.is_constant(source):
        raise Decline("constant")
    channels, axes = facts.image(source)
    value = facts.constant(value_name, "the value").floats() if value_name else np.float64(node.attrs.get("value", 0.0))
    if np.any(value):
        raise Decline("frame", "Pad with a value other than zero")
    margins = pad_margins(node, facts.constants, axes + 2)
    if margins is None:
        raise Decline("not-constant", "the pads are computed from data")
    if any(map(any, margins[:2])):
        raise Decline("not-linear", "Pad on the batch or channel axis")
    begins, ends = zip(*margins[2:], strict=True) if axes else ((), ())
    geometry = Geometry(
        channels,
        channels,
        channels,
        tuple((-b,) for b in begins),
        (1,) * axes,
        tuple(b + e - 1 for b, e in zip(begins, ends, strict=True)),
    )
    form = Form((Map(geometry, np.ones(geometry.weight_shape)),), None)
    return Lifted((Branch(source, geometry),), lambda: form)
