"""The tensors of a model, wherever they are, and the sizes that they claim."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxrep.errors import InvalidModel
from onnxrep.escape import printable

_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_COMPLEX = frozenset((TensorProto.COMPLEX64, TensorProto.COMPLEX128))
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

_Holder: TypeAlias = "onnx.GraphProto | onnx.AttributeProto"


def _holders(model: onnx.ModelProto) -> Iterator[_Holder]:
    """Yield every graph and attribute of a model, which hold tensors: bodies, functions and training graphs too."""
    stack: list[_Holder | onnx.NodeProto] = [model.graph]
    for info in model.training_info:
        stack += [info.initialization, info.algorithm]
    for function in model.functions:
        stack += [*function.node, *function.attribute_proto]
    while stack:
        part = stack.pop()
        if isinstance(part, onnx.NodeProto):
            stack.extend(part.attribute)
            continue
        yield part
        if isinstance(part, onnx.GraphProto):
            stack.extend(part.node)
        else:
            stack.extend(part.graphs)
            if part.HasField("g"):
                stack.append(part.g)


def sparse_tensors(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Yield every sparse tensor of a model."""
    for part in _holders(model):
        if isinstance(part, onnx.GraphProto):
            yield from part.sparse_initializer
        else:
            yield from part.sparse_tensors
            if part.HasField("sparse_tensor"):
                yield part.sparse_tensor


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every dense tensor of a model: initializers and attributes, and the parts of sparse tensors."""
    for part in _holders(model):
        if isinstance(part, onnx.GraphProto):
            yield from part.initializer
        else:
            yield from part.tensors
            if part.HasField("t"):
                yield part.t
    for sparse in sparse_tensors(model):
        yield from (sparse.values, sparse.indices)


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's data lies in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def refer(tensor: TensorProto, location: str, offset: int) -> None:
    """Make a tensor take its data from a file instead of from the message."""
    size = tensor_bytes(tensor)
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))


def bits(data_type: int) -> int | None:
    """Return the size of one element, or None where it is not fixed."""
    if data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    try:
        name = TensorProto.DataType.Name(data_type)
        return _PACKED.get(name) or 8 * int(np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize)
    except (KeyError, ValueError):
        return None


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes that the dims ask for, in Python integers (0 where the type has no fixed size)."""
    return (math.prod(tensor.dims) * (bits(tensor.data_type) or 0) + 7) // 8


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the size of all tensors of a model in bytes, external ones included."""
    return sum(map(tensor_bytes, tensors(model)))


def described(tensor: TensorProto) -> str:
    """Return a tensor's name for people."""
    return printable(tensor.name or "(unnamed)")


def check_inside(tensor: TensorProto, label: str) -> None:
    """Check what a tensor says of itself, and its dims against the data that it holds.

    Raises:
        InvalidModel: its dims, type and data do not fit together.

    """
    name = described(tensor)
    if any(d < 0 for d in tensor.dims):
        raise InvalidModel(f"{label}: tensor {name} has a negative dimension")
    if tensor.data_type not in _TYPES:
        raise InvalidModel(f"{label}: tensor {name} has the unknown type {tensor.data_type}")
    if is_external(tensor):
        return
    if tensor.HasField("segment"):
        raise InvalidModel(f"{label}: tensor {name} is a segment, which nothing reads")
    if not tensor.HasField("raw_data"):
        _check_typed(tensor, name, label)
    elif len(tensor.raw_data) != tensor_bytes(tensor) or not bits(tensor.data_type):
        raise InvalidModel(
            f"{label}: tensor {name} has {len(tensor.raw_data)} bytes of data for dims {list(tensor.dims)}: damaged"
        )


def _check_typed(tensor: TensorProto, name: str, label: str) -> None:
    """Check the element count of a tensor whose values lie in the field of its type."""
    stored = {field: len(getattr(tensor, field)) for field in _FIELDS}
    count = stored.pop(helper.tensor_dtype_to_field(tensor.data_type))
    wanted = math.prod(tensor.dims) * (2 if tensor.data_type in _COMPLEX else 1)
    size = bits(tensor.data_type) or 8
    if size < 8:
        wanted = -(-wanted * size // 8)
    if count != wanted or any(stored.values()):
        raise InvalidModel(f"{label}: tensor {name} has {count} values for dims {list(tensor.dims)}: it is damaged")


def check_sparse(sparse: onnx.SparseTensorProto, label: str) -> None:
    """Check the dims of a sparse tensor against its parts, which are checked elsewhere.

    Raises:
        InvalidModel: they do not fit together.

    """
    count, rank = math.prod(sparse.values.dims), len(sparse.dims)
    fits = list(sparse.indices.dims) in ([count], [count, rank]) and len(sparse.values.dims) == 1
    if not fits or any(d < 0 for d in sparse.dims) or sparse.indices.data_type != TensorProto.INT64:
        raise InvalidModel(f"{label}: the sparse tensor {described(sparse.values)} does not fit its dims")
