"""Pad, as the map that moves an image within a larger (or smaller) one filled with zeros."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.lattice import Array, Form, Geometry, Map
from onnxrep.lift.base import Branch, Decline, Facts, Lifted, allow, elements, finite, inputs
from onnxrep.shapes import pad_margins


def lift_pad(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Pad of spatial axes with a constant: one tap at ``-begin``, size constant ``begin + end - 1``.

    Pads are an attribute before opset 11, an input since; negative pads crop. A value ``v`` other than zero is
    ``pad(x - v) + v``: inside the image ``v`` cancels.

    https://onnx.ai/onnx/operators/onnx__Pad.html
    """
    allow(node, ("mode", "pads", "value"))
    if node.attrs.get("mode", "constant") != "constant":
        raise Decline("not-linear", f"Pad in mode {node.attrs['mode']}")
    source, _, value_name, _ = inputs(node, 1, 4)
    if facts.is_constant(source):
        raise Decline("constant")
    channels, axes = facts.image(source)
    value = facts.constant(value_name, "the value") if value_name else None
    if value is not None and elements(value.dims) != 1:
        raise Decline("unknown-attribute", "the value of a Pad is no scalar")
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
    scalar = float(node.attrs.get("value", 0.0))

    def numbers() -> Form:
        filled = scalar if value is None else float(value.floats().reshape(()))
        map_ = Map(geometry, np.ones(geometry.weight_shape))
        return frame(map_, finite(np.full(channels, filled), "the value"))

    return Lifted((Branch(source, geometry),), numbers, biased=value is not None or bool(scalar))


def frame(map_: Map, values: Array) -> Form:
    """Return the form of an image moved by ``map_`` into a border of constant ``values : [inputs]``.

    The map takes each output from one input with factor 1.
    """
    return Form((map_,), map_.response(values), (-values,)) if np.any(values) else Form((map_,), None)
