"""ONNX's own shape inference, on a copy without weights and without shapes that are only declared."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import lru_cache

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto

from onnxrep.files import is_external
from onnxrep.graph import DEFAULT_DOMAINS, Model, overridable
from onnxrep.shapes.guard import HIDDEN, guard

_PAYLOAD_LIMIT = 64
_POOLS = ("MaxPool", "AveragePool", "LpPool")
_FOLLOWING = frozenset("Add Cast Concat Gather Mul Shape Size Slice Squeeze Sub Unsqueeze".split())
"""Ops whose results inference calculates from the values of lists."""
_LONGEST = 1 << 14
"""Elements of a list whose values are followed."""
_LAST, _LIGHT = 4, 1 << 25
"""Models whose shapes are remembered, and how many bytes one may have for that."""


def inferred(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """Return a copy of a model without weights, with ONNX's inferred shapes; ``shapes`` fixes those of inputs.

    It is not to be changed: those found last are remembered, as a check asks again for what folding has asked for.
    """
    copy = onnx.ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    if all(entry.domain != HIDDEN for entry in copy.opset_import):
        copy.opset_import.add(domain=HIDDEN, version=1)
    for function in proto.functions:
        copy.functions.add().CopyFrom(function)
    _light(proto.graph, copy.graph, inner=False, overridable=overridable(proto))
    for value in copy.graph.input:
        if shapes and value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    try:
        light = copy.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):  # bodies of local functions, of more than 2 GiB
        return copy
    try:
        return _remembered(light) if len(light) <= _LIGHT else _inferred(light)
    except DecodeError:  # graphs are nested too deep
        return copy


def _inferred(light: bytes) -> onnx.ModelProto:
    """Return the model of these bytes, which has no weights, with ONNX's inferred shapes."""
    copy = onnx.ModelProto.FromString(light)
    try:
        guard(copy, onnx.shape_inference.infer_shapes)
    except Exception:  # noqa: BLE001  as below
        return copy
    while True:
        try:
            _hide_long(copy.graph, onnx.shape_inference.infer_shapes(copy).graph, {})
            result = onnx.shape_inference.infer_shapes(copy, data_prop=True)
        except Exception:  # noqa: BLE001  inference of a hostile or unusual model: no static sizes then
            return copy
        if not _hide_misread(copy.graph, result.graph):
            return result


_remembered = lru_cache(maxsize=_LAST)(_inferred)


def _hide_long(copy: onnx.GraphProto, result: onnx.GraphProto, outer: Mapping[str, int]) -> None:
    """Hide from inference what reads a list of many elements: to follow their values, it allocates room for all."""
    lengths = dict(outer)
    for value in (*result.input, *result.value_info, *result.output):
        dims = value.type.tensor_type.shape.dim
        lengths[value.name] = dims[0].dim_value if len(dims) == 1 else 0
    lengths.update((t.name, t.dims[0] if len(t.dims) == 1 else 0) for t in result.initializer)
    for mine, theirs in zip(copy.node, result.node, strict=True):
        for a, b in zip(mine.attribute, theirs.attribute, strict=True):
            if a.type == AttributeProto.GRAPH:
                _hide_long(a.g, b.g, lengths)
        if mine.op_type in _FOLLOWING and any(lengths.get(name, 0) > _LONGEST for name in mine.input):
            mine.domain = HIDDEN


def _hide_misread(copy: onnx.GraphProto, result: onnx.GraphProto) -> bool:
    """Hide from inference the pools whose size it got wrong; return whether there are any.

    Before opset 22 it counts, where sizes are rounded up, a last window that lies in the padding alone; runtimes, and
    the operator's later text, do not.
    """
    dims = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*result.input, *result.value_info, *result.output)
    }
    found = False
    for mine, theirs in zip(copy.node, result.node, strict=True):
        for a, b in zip(mine.attribute, theirs.attribute, strict=True):
            found |= a.type == AttributeProto.GRAPH and _hide_misread(a.g, b.g)
        if mine.op_type not in _POOLS or mine.domain not in DEFAULT_DOMAINS:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in mine.attribute}
        before, after = dims.get(mine.input[0], []), dims.get(mine.output[0], [])
        if not attributes.get("ceil_mode", 0) or len(before) != len(after):
            continue
        axes = len(before) - 2
        strides, pads = attributes.get("strides") or [1] * axes, attributes.get("pads") or [0] * (2 * axes)
        columns = zip(before[2:], after[2:], strides, pads, strict=False)
        if any(n and p and (p - 1) * stride >= n + begin for n, p, stride, begin in columns):
            mine.domain, found = HIDDEN, True
    return found


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
