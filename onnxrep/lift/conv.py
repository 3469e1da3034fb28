"""Conv and ConvTranspose, and the matrix products that are convolutions of kernel size 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.constants import Constant
from onnxrep.lattice import Array, Form, Geometry, Map
from onnxrep.lift.base import FIRST, Branch, Decline, Facts, Lifted, allow, elements, finite, inputs
from onnxrep.shapes import UnknownWindow, lengths_of, window

_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@dataclass(frozen=True)
class _Parameters:
    """What both convolutions have."""

    source: str
    weight: Constant
    bias: Constant | None
    group: int
    kernel: Sequence[int]
    outputs: int
    inputs: int
    generators: tuple[int, tuple[int, ...]]

    def lifted(self, geometry: Geometry, anchor: str) -> Lifted:
        """Return the lifted op."""

        def numbers() -> Form:
            values = finite(self.weight.floats(), "the weight")
            if geometry.mode == "transpose":
                height, width = self.inputs // self.group, self.outputs // self.group
                values = values.reshape(self.group, height, width, *self.kernel).swapaxes(1, 2)
            bias = None if self.bias is None else finite(self.bias.floats(), "the bias")
            return Form((Map(geometry, values.reshape(geometry.weight_shape)),), bias)

        branches = (Branch(self.source, geometry),)
        count, alone = self.generators
        biased = self.bias is not None
        return Lifted(branches, numbers, anchor, geometry.macs, nodes=1 + count, biased=biased, within=alone)


def lift_conv(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Conv: ``taps = dilation * k - pad_begin``, weight ``[Co, Ci / group, *kernel]``, bias ``[Co]`` or none.

    https://onnx.ai/onnx/operators/onnx__Conv.html
    """
    allow(node, _ATTRIBUTES)
    found = _parameters(node, facts, transposed=False)
    return found.lifted(_geometry(node, facts, found), "Conv")


def _geometry(node: gs.Node, facts: Facts, found: _Parameters) -> Geometry:
    """Return the geometry of a Conv."""
    shape = facts.shapes.of(found.source)
    try:
        taps, stride, size, mode = window(node.attrs, found.kernel, None if shape is None else shape[2:])
    except UnknownWindow as error:
        raise Decline("unknown-attribute", f"{node.op}: {error}") from None
    return Geometry(found.outputs, found.inputs, found.group, taps, stride, size, mode)


def lift_conv_transpose(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a ConvTranspose: weight ``[Ci, Co / group, *kernel]``, input ``p`` writes to output ``stride * p + tap``.

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    allow(node, (*_ATTRIBUTES, "output_padding", "output_shape"))
    auto = node.attrs.get("auto_pad", "NOTSET")
    if node.attrs.get("output_shape") or auto not in ("NOTSET", "VALID"):
        raise Decline(
            "unknown-attribute", "the pads of a ConvTranspose with output_shape or auto_pad depend on the size"
        )
    found = _parameters(node, facts, transposed=True)
    axes = len(found.kernel)
    try:
        taps, stride, _, _ = window(node.attrs, found.kernel, None)
    except UnknownWindow as error:
        raise Decline("unknown-attribute", f"{node.op}: {error}") from None
    pads = list(node.attrs.get("pads") or [0] * 2 * axes) if auto == "NOTSET" else [0] * 2 * axes
    extra = list(node.attrs.get("output_padding") or [0] * axes)
    steps = node.attrs.get("dilations") or [1] * axes
    if len(extra) != axes:
        raise Decline("unknown-attribute", "output_padding does not fit the kernel")
    columns = zip(found.kernel, steps, extra, pads[:axes], pads[axes:], strict=True)
    size = tuple(d * (k - 1) + 1 + o - b - e for k, d, o, b, e in columns)
    geometry = Geometry(found.outputs, found.inputs, found.group, taps, stride, size, "transpose")
    return found.lifted(geometry, "ConvTranspose")


def _parameters(node: gs.Node, facts: Facts, transposed: bool) -> _Parameters:
    """Return what both convolutions have, checked for contradictions: a graph with one does not run."""
    source, weight_name, bias_name = inputs(node, 2, 3)
    if facts.is_constant(source):
        raise Decline("constant")
    weight = facts.constant(weight_name, "the weight")
    bias = facts.constant(bias_name, "the bias") if bias_name else None
    group = int(node.attrs.get("group", 1))
    kernel = weight.dims[2:]
    if len(weight.dims) < 3 or group < 1 or min(weight.dims) < 1:
        raise Decline("unknown-attribute", f"a weight of shape {list(weight.dims)} in {group} groups")
    if list(node.attrs.get("kernel_shape") or kernel) != list(kernel):
        raise Decline("unknown-attribute", "kernel_shape differs from the weight's shape")
    own, across = weight.dims[0], weight.dims[1] * group
    outputs, inputs_ = (across, own) if transposed else (own, across)
    if inputs_ % group or outputs % group:
        raise Decline("unknown-attribute", f"{group} groups do not divide {inputs_} and {outputs} channels")
    shape = facts.shapes.of(source)
    if shape is not None and (len(shape) != len(weight.dims) or shape[1] not in (inputs_, shape[1])):
        raise Decline("unknown-shape", f"the shape of {source} does not fit the weight")
    if shape is not None and isinstance(shape[1], int) and shape[1] != inputs_:
        raise Decline("unknown-shape", f"the shape of {source} does not fit the weight")
    if bias is not None and bias.dims != (outputs,):
        raise Decline("unknown-attribute", f"a bias of shape {list(bias.dims)} for {outputs} channels")
    generators = facts.generators(str(node.outputs[0].name), (weight_name, bias_name))
    return _Parameters(source, weight, bias, group, kernel, outputs, inputs_, generators)


def lift_matmul_from_left(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift ``MatMul(W[O, C], x[N, C, L])``, a convolution of kernel size 1 on images with one axis."""
    allow(node, ())
    left, source = inputs(node, 2, 2)
    if not facts.is_constant(left) or facts.is_constant(source):
        raise Decline("not-linear")
    weight = facts.constant(left, "the left factor")
    channels, axes = facts.image(source)
    if axes != 1 or len(weight.dims) != 2 or weight.dims[1] != channels:
        raise Decline("not-linear")
    geometry = Geometry.pointwise(weight.dims[0], channels, 1, 1)

    def numbers() -> Form:
        values: Array = finite(weight.floats(), "the left factor").reshape(geometry.weight_shape)
        return Form((Map(geometry, values),), None)

    return Lifted((Branch(source, geometry),), numbers, "MatMulFromLeft", geometry.macs)


def lift_conv_flat(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Conv of a static size as the matrix that it is: ``[Co * pixels, Ci * pixels]``, one row per output pixel.

    Only for sums with such a matrix (RepMLP): alone, the matrix does far more arithmetic.
    """
    allow(node, _ATTRIBUTES)
    found = _parameters(node, facts.within(FIRST), transposed=False)
    geometry = _geometry(node, facts, found)
    lengths = lengths_of(facts.shapes.of(found.source))
    if lengths is None or geometry.mode != "conv":
        raise Decline("unknown-shape", f"the size of {found.source} is not static")
    sizes = geometry.result(lengths)
    rows, cols = found.outputs * elements(sizes), found.inputs * elements(lengths)
    if facts.image(found.source)[0] != cols or rows != facts.layout.size:
        raise Decline("not-linear")
    matrix = Geometry.pointwise(rows, cols, found.group, 0)
    inner = found.lifted(geometry, "Conv")

    def numbers() -> Form:
        form = inner.numbers()
        bias = None if form.bias is None else np.repeat(form.bias, elements(sizes))
        return Form((Map(matrix, _materialized(form.maps[0], lengths, sizes)),), bias)

    return Lifted(
        (Branch(found.source, matrix),), numbers, "Conv", geometry.macs * elements(sizes), biased=inner.biased
    )


def _materialized(map_: Map, lengths: Sequence[int], sizes: Sequence[int]) -> Array:
    """Return a map as a matrix ``[outputs * sizes, inputs / group * lengths]``."""
    g, weight = map_.geometry, map_.weight
    total = np.zeros((g.outputs, elements(sizes), g.inputs // g.group, elements(lengths)))
    for place, spot in enumerate(np.ndindex(*sizes)):
        for tap in np.ndindex(*map(len, g.taps)):
            at = [s * p + t[k] for s, p, t, k in zip(g.stride, spot, g.taps, tap, strict=True)]
            if all(0 <= a < n for a, n in zip(at, lengths, strict=True)):
                total[:, place, :, np.ravel_multi_index(at, tuple(lengths))] += weight[(..., *tap)]
    return total.reshape(g.outputs * elements(sizes), -1)
