"""Models in number types that ONNX Runtime's CPU provider has no kernels for, made to run all the same."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, inliner, numpy_helper

from onnxrep import files
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.shapes import inferred

_BFLOAT16, _FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def number_types(model: onnx.ModelProto) -> set[int]:
    """Return the element types of a model's weights and inputs."""
    kinds = {t.data_type for t in files.tensors(model)}
    return kinds | {v.type.tensor_type.elem_type for v in model.graph.input}


def in_bfloat16(model: onnx.ModelProto, folder: files.Folder | None) -> onnx.ModelProto:
    """Return a float32 model that computes what a bfloat16 model does: each op's result is rounded to bfloat16."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    types = {v.name: v.type.tensor_type.elem_type for v in _values(inferred(model).graph)}
    types.update((t.name, t.data_type) for t in files.tensors(model))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rounded(copy.graph, types, folder)
    del copy.graph.value_info[:]
    return copy


def _values(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the typed values of a graph, bodies included."""
    found = [*graph.input, *graph.value_info, *graph.output]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found += _values(attribute.g)
    return found


def _rounded(graph: onnx.GraphProto, types: dict[str, int], folder: files.Folder | None) -> None:
    """Make a graph's bfloat16 values float32, rounded behind each op."""
    for tensor in graph.initializer:
        _widen(tensor, folder)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _BFLOAT16:
            value.type.tensor_type.elem_type = _FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _rounded(attribute.g, types, folder)
            elif attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t, folder)
            elif attribute.name in ("to", "dtype") and attribute.i == _BFLOAT16:
                attribute.i = _FLOAT
        nodes.append(node)
        if node.op_type in ("Constant", "If", "Loop", "Scan") or node.domain not in DEFAULT_DOMAINS:
            continue
        for index, name in enumerate(node.output):
            if name and types.get(name) == _BFLOAT16:
                node.output[index] = f"{name}|exact"
                nodes.append(helper.make_node("Cast", [f"{name}|exact"], [f"{name}|rounded"], to=_BFLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}|rounded"], [name], to=_FLOAT))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _widen(tensor: onnx.TensorProto, folder: files.Folder | None) -> None:
    """Store a bfloat16 tensor as float32."""
    if tensor.data_type == _BFLOAT16:
        values = files.array(tensor, folder).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
