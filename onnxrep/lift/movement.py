"""Ops that move positions about and leave channels whole: what is pointwise passes them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxrep.lattice import Form, Geometry, Map
from onnxrep.lift.base import FIRST, LAST, Branch, Decline, Facts, Layout, Lifted, suffix


def lift_reshape(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Reshape, Flatten, Squeeze or Unsqueeze that keeps the channels of the present layout together."""
    source = node.inputs[0].name
    if facts.is_constant(source):
        raise Decline("constant")
    before, after = facts.shape(source), facts.shape(output)
    if facts.layout == FIRST:
        keeps = len(before) > 1 and len(after) > 1 and before[:2] == after[:2]
    elif facts.layout == LAST:
        keeps = len(before) > 1 and len(after) > 1 and isinstance(before[-1], int) and before[-1] == after[-1]
    else:
        keeps = suffix(before, facts.layout.size) is not None and suffix(after, facts.layout.size) is not None
    if not keeps:
        raise Decline("not-linear")
    return _moved(facts, source, output, facts.layout, kernels=0.0)


def lift_transpose(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Transpose that takes the channel axis from one layout to another (or leaves it where it is)."""
    source = node.inputs[0].name
    if facts.is_constant(source) or facts.layout.kind == "flat":
        raise Decline("not-linear")
    rank = len(facts.shape(source))
    order = [int(p) for p in node.attrs.get("perm") or reversed(range(rank))]
    if sorted(order) != list(range(rank)) or rank < 3:
        raise Decline("not-linear")
    origin = order[1 if facts.layout == FIRST else rank - 1]
    if origin not in (1, rank - 1):
        raise Decline("not-linear")
    return _moved(facts, source, output, FIRST if origin == 1 else LAST, kernels=1.0)


def _moved(facts: Facts, source: str, output: str, layout: Layout, kernels: float) -> Lifted:
    """Return the identity from one layout to another."""
    channels, axes = facts.image(output)
    if facts.within(layout).image(source)[0] != channels:
        raise Decline("not-linear")
    geometry = Geometry.identity(channels, axes)
    form = Form((Map.identity(channels, axes),), None)
    branch = Branch(source, geometry, 1.0, layout)
    return Lifted((branch,), lambda: form, kernels=kernels, moves=True)
