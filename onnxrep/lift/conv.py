"""Conv and ConvTranspose."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnxrep.constants import Constant
from onnxrep.lattice import Array, Form, Geometry, Map
from onnxrep.lift.base import Branch, Decline, Facts, Lifted, allow, finite, inputs
from onnxrep.shapes import UnknownWindow, window

_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def lift_conv(node: gs.Node, facts: Facts) -> Lifted:
    """Lift a Conv: ``taps = dilation * k - pad_begin``, weight ``[Co, Ci / group, *kernel]``, bias ``[Co]`` or none.

    https://onnx.ai/onnx/operators/onnx__Conv.html
    """
    allow(node, _ATTRIBUTES)
    source, weight, bias, group, kernel = _parameters(node, facts)
    outputs, inputs_ = weight.dims[0], weight.dims[1] * group
    _check_channels(node, facts, source, inputs_, outputs, group)
    shape = facts.shapes.of(source)
    try:
        taps, stride, size, mode = window(node.attrs, kernel, None if shape is None else shape[2:])
    except UnknownWindow as error:
        raise Decline("unknown-attribute", f"{node.op}: {error}") from None
    geometry = Geometry(outputs, inputs_, group, taps, stride, size, mode)

    def numbers() -> Form:
        values = finite(weight.floats(), "the weight").reshape(geometry.weight_shape)
        return Form((Map(geometry, values),), _bias(bias, outputs))

    return Lifted((Branch(source, geometry),), numbers, anchor=True, macs=geometry.macs)


def lift_conv_transpose(node: gs.Node, facts: Facts) -> Lifted:
    """Lift a ConvTranspose: weight ``[Ci, Co / group, *kernel]``, input ``p`` writes to output ``stride * p + tap``.

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    allow(node, (*_ATTRIBUTES, "output_padding", "output_shape"))
    if node.attrs.get("output_shape") or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Decline(
            "unknown-attribute", "a ConvTranspose with output_shape or auto_pad has pads that depend on the size"
        )
    source, weight, bias, group, kernel = _parameters(node, facts)
    inputs_, outputs = weight.dims[0], weight.dims[1] * group
    _check_channels(node, facts, source, inputs_, outputs, group)
    axes = len(kernel)
    try:
        taps, stride, _, _ = window(node.attrs, kernel, None)
    except UnknownWindow as error:
        raise Decline("unknown-attribute", f"{node.op}: {error}") from None
    pads = list(node.attrs.get("pads") or [0] * 2 * axes)
    if node.attrs.get("auto_pad", "NOTSET") == "VALID":
        pads = [0] * 2 * axes
    extra = list(node.attrs.get("output_padding") or [0] * axes)
    steps = node.attrs.get("dilations") or [1] * axes
    if len(extra) != axes:
        raise Decline("unknown-attribute", "output_padding does not fit the kernel")
    size = tuple(
        d * (k - 1) + 1 + o - b - e
        for k, d, o, b, e in zip(kernel, steps, extra, pads[:axes], pads[axes:], strict=True)
    )
    geometry = Geometry(outputs, inputs_, group, taps, stride, size, "transpose")

    def numbers() -> Form:
        values = finite(weight.floats(), "the weight")
        grouped = values.reshape(group, inputs_ // group, outputs // group, *kernel).swapaxes(1, 2)
        return Form((Map(geometry, grouped.reshape(geometry.weight_shape)),), _bias(bias, outputs))

    return Lifted((Branch(source, geometry),), numbers, anchor=True, macs=geometry.macs)


def _parameters(node: gs.Node, facts: Facts) -> tuple[str, Constant, Constant | None, int, Sequence[int]]:
    """Return ``(source, weight, bias, group, kernel shape)`` of either convolution."""
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
    return source, weight, bias, group, kernel


def _check_channels(node: gs.Node, facts: Facts, source: str, inputs_: int, outputs: int, group: int) -> None:
    """Decline channel counts that contradict each other: such a graph does not run."""
    shape = facts.shapes.of(source)
    rank = len(node.attrs.get("kernel_shape") or ()) + 2
    fits = shape is None or (len(shape) >= 3 and (shape[1] == inputs_ or not isinstance(shape[1], int)))
    if not fits or (shape is not None and node.attrs.get("kernel_shape") and len(shape) != rank):
        raise Decline("unknown-shape", f"the shape of {source} does not fit the weight")
    if inputs_ % group or outputs % group:
        raise Decline("unknown-attribute", f"{group} groups do not divide {inputs_} and {outputs} channels")


def _bias(bias: Constant | None, outputs: int) -> Array | None:
    """Return the bias vector ``[outputs]``."""
    if bias is None:
        return None
    if bias.dims != (outputs,):
        raise Decline("unknown-attribute", f"a bias of shape {list(bias.dims)} for {outputs} channels")
    return finite(bias.floats(), "the bias")
