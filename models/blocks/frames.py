"""Border frames as exporters write them: a constant per channel around an image, before an unpadded layer.

The constant is what the layer before makes of zeros, so that padding its result equals padding its input. Frames by
ScatterND or Concat are written for one size: that of the graph's input, which the framed value must share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.blocks.weights import numbers
from models.net import Net

Array = NDArray[Any]

Frame = Callable[[Net, str, Array, int], str]
"""Adds a frame to a net, given a value, one number per channel and the margin, and returns the framed value."""


def framed(net: Net, x: str, frame: Frame, margin: int) -> str:
    """Add the frame that continues the layer added last, whose result is ``x``: a Conv with bias, or BN.

    A :func:`pad_frame` has one number for all channels, so the layer is given such a shift first.
    """
    layer = net.nodes[-1]
    assert x in layer.output
    parameters = {t.name: t for t in net.initializers}
    if layer.op_type == "BatchNormalization":
        _, beta, mean, _ = (parameters[i] for i in layer.input[1:])
    else:
        beta, mean = parameters[layer.input[2]], None
    if frame is pad_frame:
        _set(beta, 2.0)
        if mean is not None:
            _set(mean, 0.0)
    return frame(net, x, _on_zeros(layer, parameters), margin)


def pad_frame(net: Net, x: str, border: Array, margin: int) -> str:
    """Add a Pad: any size, but the same number for all channels."""
    assert np.all(border == border[0])
    return net.op("Pad", x, _pads(net, x, margin), net.constant(border[0]))


def zero_frame(net: Net, x: str, _: Array, margin: int) -> str:
    """Add a Pad with zeros, which is no continuation of a layer with bias."""
    return net.op("Pad", x, _pads(net, x, margin), net.constant(0.0))


def scatter_frame(net: Net, x: str, border: Array, margin: int) -> str:
    """Add what optimised dynamo makes of ``y[:, :, 0:1, :] = b`` on each side of a zero Pad."""
    y = zero_frame(net, x, border, margin)
    for axis, rows, values in _sides(net, border, margin):
        perm = list(range(values.ndim))
        perm[0], perm[axis] = axis, 0
        indices = net.constant(rows[:, None], dtype=np.int64)
        updates = net.constant(values.transpose(perm))
        inner = net.op("ScatterND", net.op("Transpose", y, perm=perm), indices, updates)
        y = net.op("Transpose", inner, perm=perm)
    return y


def merged_scatter_frame(net: Net, x: str, border: Array, margin: int) -> str:
    """Add the same with neighbouring Transposes composed: both sides of an axis are written between one pair."""
    y = zero_frame(net, x, border, margin)
    order = list(range(net.axes[x] + 2))
    for axis, rows, values in _sides(net, border, margin):
        wanted = list(range(values.ndim))
        wanted[0], wanted[axis] = axis, 0
        if wanted != order:
            y = net.op("Transpose", y, perm=[order.index(i) for i in wanted])
            order = wanted
        updates = net.constant(values.transpose(wanted))
        y = net.op("ScatterND", y, net.constant(rows[:, None], dtype=np.int64), updates)
    perm = [order.index(i) for i in range(len(order))]
    return net.op("Transpose", y, perm=perm)


def index_frame(net: Net, x: str, border: Array, margin: int) -> str:
    """Add what ONNX Runtime leaves of the legacy exporter's form: an index for every element that is written."""
    y = zero_frame(net, x, border, margin)
    for axis, rows, values in _sides(net, border, margin):
        indices = np.moveaxis(np.indices(values.shape), 0, -1)
        indices[..., axis] += rows[0]
        y = net.op("ScatterND", y, net.constant(indices, dtype=np.int64), net.constant(values))
    return y


def concat_frame(net: Net, x: str, border: Array, margin: int) -> str:
    """Add what paddle2onnx writes: Concat(constant, x, constant) on H, then on W, through Identities."""
    shape = [*_shape(net, border)]
    y = x
    for axis in range(2, len(shape)):
        shape[axis], full = margin, shape[axis] + 2 * margin
        side = net.constant(_spread(border, shape), as_node=True)
        shape[axis] = full
        sides = [net.op("Identity", side) for _ in range(2)]
        y = net.op("Identity", net.op("Concat", sides[0], y, sides[1], axis=axis))
    return y


def legacy_pads(net: Net, margin: int) -> str:
    """Add what the legacy exporter writes for the operand of a Pad: four numbers, padded, reversed and transposed."""
    zeros = net.op("ConstantOfShape", numbers(net, 4), value=numpy_helper.from_array(np.zeros(1, np.int64)))
    pairs = net.op("Reshape", net.op("Concat", numbers(net, *[margin] * 4), zeros, axis=0), numbers(net, -1, 2))
    turned = net.op(
        "Slice", pairs, numbers(net, -1), numbers(net, np.iinfo(np.int64).min), numbers(net, 0), numbers(net, -1)
    )
    flat = net.op("Reshape", net.op("Transpose", turned, perm=[1, 0]), numbers(net, -1))
    return net.op("Cast", flat, to=TensorProto.INT64)


def _pads(net: Net, x: str, margin: int) -> str:
    """Add the pads of a Pad as a constant."""
    half = [0, 0, *[margin] * net.axes[x]]
    return net.constant(half * 2, dtype=np.int64)


def _sides(net: Net, border: Array, margin: int) -> Iterator[tuple[int, Array, Array]]:
    """Yield for each side of the padded image: axis, rows and what they are overwritten with."""
    padded = [d + 2 * margin * (i >= 2) for i, d in enumerate(_shape(net, border))]
    for axis in range(2, len(padded)):
        for first in (0, padded[axis] - margin):
            part = [margin if i == axis else d for i, d in enumerate(padded)]
            yield axis, np.arange(first, first + margin), _spread(border, part)


def _shape(net: Net, border: Array) -> list[int]:
    """Return the static shape of a value of the input's size."""
    dims = [d.dim_value for d in net.inputs[0].type.tensor_type.shape.dim]
    assert all(dims), "this frame is written for a static size"
    return [dims[0], len(border), *dims[2:]]


def _spread(border: Array, shape: list[int]) -> Array:
    """Return one number per channel, repeated to a shape."""
    return np.broadcast_to(border.reshape(-1, *[1] * (len(shape) - 2)), shape)


def _on_zeros(layer: NodeProto, parameters: Mapping[str, TensorProto]) -> Array:
    """Return what a layer makes of zeros, computed in the type of its parameters."""
    values = [numpy_helper.to_array(parameters[i]) for i in layer.input if i in parameters]
    if layer.op_type != "BatchNormalization":
        return values[-1]
    gamma, beta, mean, variance = values
    epsilon = next(helper.get_attribute_value(a) for a in layer.attribute if a.name == "epsilon")
    return np.asarray(beta - mean * gamma / np.sqrt(variance + variance.dtype.type(epsilon)))


def _set(tensor: TensorProto, value: float) -> None:
    """Overwrite all elements of an initializer."""
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, value), tensor.name))
