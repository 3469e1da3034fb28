"""MatMul and Gemm with a constant right factor: maps of the last axis, all other axes are batch.

Flattened, an image is one such vector; then the result must have as many elements.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.lattice import Array, Form, Geometry, Map
from onnxrep.lift.base import Branch, Decline, Facts, Lifted, allow, finite, inputs


def lift_matmul(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift ``MatMul(x, W)``, ``W : [K, N]`` or with leading ones that do not raise the rank.

    https://onnx.ai/onnx/operators/onnx__MatMul.html
    """
    allow(node, ())
    source, right = inputs(node, 2, 2)
    if facts.is_constant(source) or not facts.is_constant(right):
        raise Decline("not-linear")
    weight = facts.constant(right, "the right factor")
    channels, _ = facts.image(source)
    dims = weight.dims
    if len(dims) < 2 or dims[-2] != channels or len(dims) > len(facts.shape(source)) or any(d != 1 for d in dims[:-2]):
        raise Decline("not-linear", f"a right factor of shape {list(dims)}")
    _check_size(facts, dims[-1])
    geometry = Geometry.pointwise(dims[-1], channels, 1, 0)

    def numbers() -> Form:
        return Form((Map(geometry, finite(weight.floats(), "the right factor").reshape(dims[-2:]).T.copy()),), None)

    count, alone = facts.generators(output, (right,))
    return Lifted((Branch(source, geometry),), numbers, "MatMul", geometry.macs, nodes=1 + count, within=alone)


def lift_gemm(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift ``alpha * x * op(B) + beta * C``; a transposed left factor would mix the batch.

    https://onnx.ai/onnx/operators/onnx__Gemm.html
    """
    allow(node, ("alpha", "beta", "transA", "transB", "broadcast"))
    source, right, bias_name = inputs(node, 2, 3)
    if facts.is_constant(source) or not facts.is_constant(right) or node.attrs.get("transA", 0):
        raise Decline("not-linear")
    weight = facts.constant(right, "the right factor")
    bias = facts.constant(bias_name, "the summand") if bias_name else None
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    flip = bool(node.attrs.get("transB", 0))
    channels, _ = facts.image(source)
    if len(weight.dims) != 2 or len(facts.shape(source)) != 2:
        raise Decline("unknown-shape", f"a right factor of shape {list(weight.dims)}")
    outputs, inputs_ = weight.dims if flip else weight.dims[::-1]
    if inputs_ != channels:
        raise Decline("unknown-shape", f"a right factor of shape {list(weight.dims)} for {channels} channels")
    if bias is not None and (len(bias.dims) > 2 or bias.dims not in ((), (1,), (outputs,), (1, outputs), (1, 1))):
        raise Decline("not-per-channel", f"a summand of shape {list(bias.dims)} varies along the batch")
    _check_size(facts, outputs)
    geometry = Geometry.pointwise(outputs, inputs_, 1, 0)

    def numbers() -> Form:
        values = finite(weight.floats(), "the right factor")
        shift: Array | None = None
        if bias is not None:
            flat = finite(bias.floats(), "the summand").reshape(-1)
            shift = beta * np.broadcast_to(flat, (outputs,))
        return Form((Map(geometry, alpha * (values if flip else values.T)),), shift)

    count, alone = facts.generators(output, (right, bias_name))
    branches = (Branch(source, geometry),)
    biased = bias is not None
    return Lifted(branches, numbers, "Gemm", geometry.macs, nodes=1 + count, biased=biased, within=alone)


def _check_size(facts: Facts, outputs: int) -> None:
    """Decline a flattened result of another size than the layout's."""
    if facts.layout.kind == "flat" and outputs != facts.layout.size:
        raise Decline("not-linear")
