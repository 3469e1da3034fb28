"""ONNX's own shape inference, on a copy without weights and without shapes that are only declared."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import onnx
from onnx import AttributeProto

from onnxrep.files import is_external
from onnxrep.graph import Model, overridable

_PAYLOAD_LIMIT = 64


def inferred(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """Return a copy of a model without weights, with ONNX's inferred shapes; ``shapes`` fixes those of inputs."""
    copy = onnx.ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    for function in proto.functions:
        copy.functions.add().CopyFrom(function)
    _light(proto.graph, copy.graph, inner=False, overridable=overridable(proto))
    for value in copy.graph.input:
        if shapes and value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # noqa: BLE001  inference of a hostile or unusual model: no static sizes then
        return copy


def infer(model: Model) -> dict[int, onnx.GraphProto]:
    """Return per scope (by its id) the graph message with ONNX's inferred shapes."""
    result = inferred(model.proto)
    graphs: dict[int, onnx.GraphProto] = {}
    for scope in model.scopes:
        if scope.parent is None:
            graphs[id(scope)] = result.graph
        else:
            holder = graphs[id(scope.parent)].node[scope.owner]
            held = scope.parent.proto.node[scope.owner]
            for mine, theirs in zip(held.attribute, holder.attribute, strict=True):
                if mine.type == AttributeProto.GRAPH and mine.g is scope.proto:
                    graphs[id(scope)] = theirs.g
    return graphs


def _light(source: onnx.GraphProto, target: onnx.GraphProto, inner: bool, overridable: Collection[str] = ()) -> None:
    """Copy a graph without large payloads, without any shape that is only declared, and without default inputs."""
    target.name = source.name
    for tensor in source.initializer:
        if tensor.name not in overridable:
            _light_tensor(tensor, target.initializer.add())
    for value in source.input:
        copy = target.input.add()
        copy.CopyFrom(value)
        if inner and copy.type.HasField("tensor_type"):
            copy.type.tensor_type.ClearField("shape")
    for value in source.output:
        copy = target.output.add(name=value.name)
        if value.type.HasField("tensor_type"):
            copy.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        else:
            copy.type.CopyFrom(value.type)
    for node in source.node:
        copy_node = target.node.add(op_type=node.op_type, domain=node.domain, name=node.name)
        copy_node.input.extend(node.input)
        copy_node.output.extend(node.output)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                inside = copy_node.attribute.add(name=attribute.name, type=AttributeProto.GRAPH)
                _light(attribute.g, inside.g, inner=True)
            elif attribute.type == AttributeProto.TENSOR:
                inside = copy_node.attribute.add(name=attribute.name, type=AttributeProto.TENSOR)
                _light_tensor(attribute.t, inside.t)
            else:
                copy_node.attribute.add().CopyFrom(attribute)


def _light_tensor(source: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """Copy a tensor, its payload only if it is small."""
    if math.prod(source.dims) <= _PAYLOAD_LIMIT and not is_external(source):
        target.CopyFrom(source)
    else:
        target.name, target.data_type = source.name, source.data_type
        target.dims.extend(source.dims)
