"""A model in float16: every float32 tensor, input and output made half as wide, as converters do."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, TensorProto, helper, numpy_helper

_HALF, _SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
_SINGLE_INPUTS = {"Resize": (1, 2), "Upsample": (1,), "NonMaxSuppression": (0, 1, 3, 4)}
"""Inputs that an op takes in float32 only."""

_LARGEST_RMS = 32.0
_BATCH, _SIDE = 1, 64
"""Stand for dynamic sizes when values are measured."""


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
    for node in reversed(graph.node):  # what such an input is calculated from stays in float32 too
        if kept.intersection(node.output):
            kept.update(node.input)
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


def tamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a float32 model in which no convolution makes large values of normal inputs.

    Trained weights keep what they make in range; random ones need not, and float16 would overflow. The model runs once
    with every result of a convolution scaled down where it exceeds the limit; the weights then take over those scales.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {t.name: t for t in copy.graph.initializer}
    convolutions = [n for n in copy.graph.node if n.op_type == "Conv" and n.input[1] in tensors]
    for node, scale in zip(convolutions, _scales(copy, convolutions), strict=True):
        if scale < 1.0:
            for index, name in enumerate(node.input):
                if index and name in tensors:
                    values = (numpy_helper.to_array(tensors[name]) * scale).astype(np.float32)
                    node.input[index] = f"{node.output[0]}/{index}"
                    copy.graph.initializer.append(numpy_helper.from_array(values, node.input[index]))
    return copy


def _scales(model: onnx.ModelProto, convolutions: list[onnx.NodeProto]) -> list[float]:
    """Return what to multiply each convolution with, given that those before it are scaled too."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    wanted = {node.output[0] for node in convolutions}
    nodes = list(probe.graph.node)
    del probe.graph.node[:], probe.graph.value_info[:], probe.graph.output[:]
    for name, value in (("limit", _LARGEST_RMS), ("tiny", 1e-30), ("one", 1.0)):
        probe.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"tamed/{name}"))
    for node in nodes:
        probe.graph.node.append(node)
        y = node.output[0]
        if y in wanted and node.op_type == "Conv":
            probe.graph.node[-1].output[0] = f"{y}/raw"
            probe.graph.node.extend(_limited(y))
            probe.graph.output.append(helper.make_tensor_value_info(f"{y}/scale", _SINGLE, None))
    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.standard_normal(
            [d if isinstance(d, int) else _BATCH if axis == 0 else _SIDE for axis, d in enumerate(i.shape)]
        ).astype(np.float32)
        for i in session.get_inputs()
    }
    found = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
    return [float(found[f"{node.output[0]}/scale"]) for node in convolutions]


def _limited(y: str) -> list[onnx.NodeProto]:
    """Return nodes that make ``y`` of ``y/raw``, scaled by ``y/scale`` so that its rms is within the limit."""
    return [
        helper.make_node("Mul", [f"{y}/raw", f"{y}/raw"], [f"{y}/squares"]),
        helper.make_node("ReduceMean", [f"{y}/squares"], [f"{y}/mean"], keepdims=0),
        helper.make_node("Max", [f"{y}/mean", "tamed/tiny"], [f"{y}/positive"]),
        helper.make_node("Sqrt", [f"{y}/positive"], [f"{y}/rms"]),
        helper.make_node("Div", ["tamed/limit", f"{y}/rms"], [f"{y}/ratio"]),
        helper.make_node("Min", [f"{y}/ratio", "tamed/one"], [f"{y}/scale"]),
        helper.make_node("Mul", [f"{y}/raw", f"{y}/scale"], [y]),
    ]


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
