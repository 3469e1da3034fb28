"""A model in float16: every float32 tensor, input and output made half as wide, as converters do."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

_HALF, _SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
_SINGLE_INPUTS = {"Resize": (1, 2), "Upsample": (1,), "NonMaxSuppression": (0, 1, 3, 4)}
"""Inputs that an op takes in float32 only."""


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float16 copy of a float32 model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept = {
        node.input[i]
        for node in graph.node
        for i in _SINGLE_INPUTS.get(node.op_type, ())
        if i < len(node.input) and node.input[i]
    }
    for tensor in graph.initializer:
        if tensor.name not in kept:
            _narrow(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _SINGLE:
            value.type.tensor_type.elem_type = _HALF
    for node in graph.node:
        if not kept.intersection(node.output):
            _narrow_attributes(node)
    del graph.value_info[:]
    return copy


def _narrow_attributes(node: onnx.NodeProto) -> None:
    """Store what a node holds in float32 as float16."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _narrow(attribute.t)
        elif attribute.name in ("to", "dtype") and attribute.i == _SINGLE:
            attribute.i = _HALF
        elif attribute.name == "value_float" and node.op_type == "Constant":
            values = np.array(attribute.f, np.float16)
            attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))


def _narrow(tensor: TensorProto) -> None:
    """Store a float32 tensor as float16; what is out of range becomes the largest number."""
    if tensor.data_type == _SINGLE:
        limit = float(np.finfo(np.float16).max)
        values = np.clip(numpy_helper.to_array(tensor), -limit, limit).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
