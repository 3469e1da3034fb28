"""What is known for certain about the shape and type of each value.

Static sizes come from ONNX's shape inference, run on a copy from which every declared inner shape was removed: such
declarations are claims, and exporters get them wrong. Where a size is not static, it is followed through the graph in
the normal form ``floor((base + size) / stride) + 1`` of :mod:`onnxrep.lattice`: two values whose sizes have the same
normal form have equal sizes for every input that the model accepts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from onnxrep.constants import Constants
from onnxrep.files import is_external
from onnxrep.graph import DEFAULT_DOMAINS, Model, Scope
from onnxrep.lattice import Mode, Taps

_PAYLOAD_LIMIT = 64


@dataclass(frozen=True)
class Size:
    """The size ``floor((base + size) / stride) + 1`` for a base size that is not known, only named."""

    base: Hashable
    stride: int = 1
    size: int = -1

    def through(self, stride: int, size: int) -> Size:
        """Return the size after one more map with this stride and size constant."""
        return Size(self.base, self.stride * stride, self.size + self.stride * (1 + size))


Dim = int | Size
Shape = tuple[Dim, ...]

_SAME = (
    "Relu LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Softplus Softsign Mish Gelu Swish Erf Clip"
)
_SAME += " Identity Cast Dropout BatchNormalization InstanceNormalization LayerNormalization GroupNormalization LRN Neg"
_SAME += " Abs Sqrt Reciprocal Exp Log Floor Ceil Round Sign Softmax LogSoftmax ThresholdedRelu LpNormalization CumSum"
_SAME += " RMSNormalization Sin Cos Not IsNaN QuantizeLinear DequantizeLinear Shrink"
SAME = frozenset(_SAME.split())
"""Ops whose first output has the shape of their first input."""

BROADCAST = frozenset(
    "Add Sub Mul Div Sum Mean Max Min Pow Where Equal Less Greater LessOrEqual GreaterOrEqual".split()
)
"""Ops that broadcast their inputs against each other."""

WINDOWS = frozenset(("Conv", "MaxPool", "AveragePool", "LpPool"))
"""Ops that slide a window over the spatial axes."""

_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
_VECTORS = frozenset(("Shape", "Gather", "Cast", "Identity", "Concat", "Slice", *_RESHAPES))

FOLLOWED = SAME | BROADCAST | WINDOWS | _RESHAPES | {"Concat", "Gather", "Pad", "Shape", "Slice"}
FOLLOWED |= {"SpaceToDepth", "Split", "Transpose"}


class UnknownWindow(ValueError):
    """The attributes of a sliding window do not say where it reads."""


def window(
    attributes: Mapping[str, Any], kernel: Sequence[int], lengths: Sequence[Dim] | None
) -> tuple[Taps, tuple[int, ...], tuple[int, ...], Mode]:
    """Return ``(taps, stride, size, mode)`` of a sliding window from ONNX attributes.

    Args:
        attributes: of the node; ``strides``, ``dilations``, ``pads`` and ``auto_pad`` are read.
        kernel: the kernel's shape, one entry per spatial axis.
        lengths: the input's sizes if known; SAME with a stride needs them.

    Raises:
        UnknownWindow: an attribute has a value without a meaning here.

    """
    axes = len(kernel)
    strides = tuple(attributes.get("strides") or (1,) * axes)
    dilations = tuple(attributes.get("dilations") or (1,) * axes)
    pads = tuple(attributes.get("pads") or (0,) * (2 * axes))
    auto: str = attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes:
        raise UnknownWindow("strides, dilations or pads do not fit the kernel")
    if min((*strides, *dilations, *kernel, 1)) < 1:
        raise UnknownWindow("a stride, dilation or kernel size below 1")
    if auto == "VALID":
        pads = (0,) * (2 * axes)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for axis in range(axes):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            if strides[axis] == 1:
                total = reach - 1
            else:
                length = lengths[axis] if lengths else None
                if not isinstance(length, int):
                    free = tuple(tuple(d * k for k in range(n)) for d, n in zip(dilations, kernel, strict=True))
                    return free, strides, (-1,) * axes, "SAME_UPPER" if auto == "SAME_UPPER" else "SAME_LOWER"
                total = max((-(-length // strides[axis]) - 1) * strides[axis] + reach - length, 0)
            small, large = total // 2, total - total // 2
            begins.append(small if auto == "SAME_UPPER" else large)
            ends.append(large if auto == "SAME_UPPER" else small)
        pads = (*begins, *ends)
    elif auto != "NOTSET":
        raise UnknownWindow(f"auto_pad {auto}")
    taps = tuple(tuple(d * k - b for k in range(n)) for n, d, b in zip(kernel, dilations, pads[:axes], strict=True))
    size = tuple(
        b + e - d * (n - 1) - 1 for n, d, b, e in zip(kernel, dilations, pads[:axes], pads[axes:], strict=True)
    )
    return taps, strides, size, "conv"


def pad_margins(node: gs.Node, constants: Constants, rank: int) -> list[tuple[int, int]] | None:
    """Return ``(begin, end)`` per axis of a Pad, or None if they are not known.

    Pads are an attribute before opset 11 and an input since; opset 18 adds the axes that they are for.
    """
    names = [v.name for v in node.inputs] + [""] * 4
    pads = node.attrs.get("pads")
    where = list(range(rank))
    if names[1]:
        constant = constants.get(names[1])
        pads = None if constant is None else constant.values().reshape(-1).tolist()
    if names[3]:
        constant = constants.get(names[3])
        if constant is None:
            return None
        where = [int(a) % rank for a in constant.values().reshape(-1)]
    if pads is None or len(pads) != 2 * len(where):
        return None
    margins = [(0, 0)] * rank
    for axis, begin, end in zip(where, pads[: len(where)], pads[len(where) :], strict=True):
        margins[axis] = (int(begin), int(end))
    return margins


class Shapes:
    """Shapes and element types of the values of one scope."""

    def __init__(
        self, scope: Scope, constants: Constants, inferred: onnx.GraphProto | None, outer: Shapes | None
    ) -> None:
        self._scope, self._constants, self._outer = scope, constants, outer
        self._shapes: dict[str, Shape] = {}
        self._types: dict[str, int] = {}
        self._vectors: dict[str, tuple[Dim, ...] | None] = {}
        for tensor in scope.proto.initializer:
            self._shapes[tensor.name] = tuple(tensor.dims)
            self._types[tensor.name] = tensor.data_type
        infos = [*inferred.input, *inferred.value_info, *inferred.output] if inferred is not None else []
        for info in infos:
            kind = info.type.tensor_type
            if info.type.HasField("tensor_type") and info.name not in scope.initializers:
                self._types[info.name] = kind.elem_type
                if kind.HasField("shape"):
                    self._shapes[info.name] = tuple(
                        d.dim_value if d.HasField("dim_value") else Size((info.name, axis))
                        for axis, d in enumerate(kind.shape.dim)
                    )
        for node in scope.nodes:
            if node.op in FOLLOWED and node.domain in DEFAULT_DOMAINS:
                self._follow(node)

    def of(self, name: str) -> Shape | None:
        """Return a value's shape, or None if not even its rank is known."""
        if name in self._shapes or self._scope.defines(name) or self._outer is None:
            return self._shapes.get(name)
        return self._outer.of(name)

    def type_of(self, name: str) -> int:
        """Return a value's element type, 0 if unknown."""
        if name in self._types or self._scope.defines(name) or self._outer is None:
            return self._types.get(name, 0)
        return self._outer.type_of(name)

    def equal(self, first: str, second: str) -> bool:
        """Whether two values have the same shape for every input."""
        return first == second or ((shape := self.of(first)) is not None and shape == self.of(second))

    def _follow(self, node: Any) -> None:
        """Replace sizes of a node's output that are only named by sizes that follow from its inputs."""
        output = node.outputs[0].name if node.outputs else ""
        inputs = [v.name for v in node.inputs]
        known = self._shapes.get(output)
        if known is not None and all(isinstance(d, int) for d in known):
            return
        shapes = [self.of(n) if n else None for n in inputs]
        if not shapes or shapes[0] is None:
            return
        if node.op == "Split":
            self._split(node, shapes[0])
            return
        derived = self._derive(node, shapes)
        if derived is not None and output:
            if known is not None and len(known) == len(derived):
                derived = tuple(k if isinstance(k, int) else d for k, d in zip(known, derived, strict=True))
            self._shapes[output] = derived

    def _derive(self, node: Any, shapes: list[Shape | None]) -> Shape | None:
        """Return the shape of a node's first output from those of its inputs, or None."""
        first = shapes[0]
        assert first is not None
        name = node.outputs[0].name
        if node.op in SAME:
            return first
        if node.op in BROADCAST:
            present = [s for s in shapes if s is not None]
            return broadcast(present, name) if len(present) == len(shapes) else None
        if node.op in _RESHAPES:
            return self._reshaped(node, first)
        if node.op == "Slice":
            return self._sliced(node, first)
        if node.op in ("Gather", "Shape"):
            return None
        if node.op == "SpaceToDepth":
            q = int(node.attrs.get("blocksize", 1))
            channels = first[1] * q * q if isinstance(first[1], int) else Size((name, 1))
            return (first[0], channels, *(d // q if isinstance(d, int) else d.through(q, -q) for d in first[2:]))
        if node.op == "Transpose":
            order = node.attrs.get("perm") or tuple(reversed(range(len(first))))
            return tuple(first[i] for i in order) if sorted(order) == list(range(len(first))) else None
        if node.op == "Pad":
            margins = pad_margins(node, self._constants, len(first))
            if margins is None:
                return None
            return tuple(
                d + b + e if isinstance(d, int) else d.through(1, b + e - 1)
                for d, (b, e) in zip(first, margins, strict=True)
            )
        if node.op == "Concat":
            axis = int(node.attrs.get("axis", 1))
            axis += len(first) if axis < 0 else 0
            parts = [s[axis] if s is not None and len(s) == len(first) else None for s in shapes]
            total: Dim = Size((name, axis))
            if all(isinstance(p, int) for p in parts):
                total = sum(p for p in parts if isinstance(p, int))
            return tuple(total if i == axis else d for i, d in enumerate(first))
        return self._slide(node, first, shapes)

    def _reshaped(self, node: Any, first: Shape) -> Shape | None:
        """Return the shape of a Reshape, Flatten, Squeeze or Unsqueeze."""
        if node.op == "Flatten":
            axis = int(node.attrs.get("axis", 1))
            axis += len(first) if axis < 0 else 0
            halves = product_of(first[:axis]), product_of(first[axis:])
            return None if None in halves else tuple(h for h in halves if h is not None)
        if node.op == "Reshape":
            target = self.vector(node.inputs[1].name) if len(node.inputs) > 1 else node.attrs.get("shape")
            return None if target is None or node.attrs.get("allowzero", 0) else _resolved(first, target)
        axes = node.attrs.get("axes")
        if len(node.inputs) > 1 and node.inputs[1].name:
            axes = self.vector(node.inputs[1].name)
        if node.op == "Squeeze" and axes is None:
            return None
        if axes is None or not all(isinstance(a, int) for a in axes):
            return None
        rank = len(first) + (len(axes) if node.op == "Unsqueeze" else 0)
        where = {int(a) % rank for a in axes}
        if node.op == "Squeeze":
            return tuple(d for i, d in enumerate(first) if i not in where)
        rest = iter(first)
        return tuple(1 if i in where else next(rest) for i in range(rank))

    def _sliced(self, node: Any, first: Shape) -> Shape | None:
        """Return the shape of a Slice that counts its ends from the end."""
        if len(node.inputs) == 1:
            bounds = [node.attrs.get(key) for key in ("starts", "ends", "axes")]
        else:
            bounds = [self.vector(v.name) if v.name else None for v in node.inputs[1:]]
        starts, ends, axes, steps = [*bounds, *[None] * 4][:4]
        if starts is None or ends is None:
            return None
        count = len(starts)
        columns = [starts, ends, axes or range(count), steps or [1] * count]
        if not all(isinstance(v, int) for column in columns for v in column) or {len(c) for c in columns} != {count}:
            return None
        result = list(first)
        for start, end, axis, step in zip(*columns, strict=True):
            dim = result[axis]
            if isinstance(dim, int):
                result[axis] = len(range(dim)[slice(start, end, step)])
            elif step > 0 and start >= 0 and (end < 0 or end >= (1 << 31) - 1):
                result[axis] = dim.through(step, -start + min(end, 0) - 1)
            else:
                result[axis] = Size((node.outputs[0].name, axis))
        return tuple(result)

    def vector(self, name: str) -> tuple[Dim, ...] | None:
        """Return a vector of integers, some of which may be sizes that are only named; None if it is not known."""
        if name not in self._vectors:
            self._vectors[name] = self._vector(name)
        return self._vectors[name]

    def _vector(self, name: str) -> tuple[Dim, ...] | None:
        """Follow shape arithmetic: Shape, Gather, Slice and Concat of vectors."""
        constant = self._constants.get(name) if self._constants.has(name) else None
        if constant is not None:
            return tuple(int(v) for v in constant.values().reshape(-1)) if len(constant.dims) < 2 else None
        position = self._scope.producer.get(name)
        node = self._scope.nodes[position] if position is not None else None
        if node is None or node.op not in _VECTORS or node.domain not in DEFAULT_DOMAINS:
            return None
        if node.op == "Shape":
            shape = self.of(node.inputs[0].name)
            return None if shape is None else shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
        parts = [self.vector(v.name) for v in node.inputs[: None if node.op == "Concat" else 1]]
        if any(p is None for p in parts):
            return None
        whole = tuple(d for p in parts if p is not None for d in p)
        if node.op == "Gather":
            chosen = self.vector(node.inputs[1].name)
            ints = [c for c in chosen or () if isinstance(c, int) and -len(whole) <= c < len(whole)]
            return None if chosen is None or len(ints) != len(chosen) else tuple(whole[i] for i in ints)
        if node.op == "Slice":
            bounds = [self.vector(v.name) for v in node.inputs[1:]] or [
                node.attrs.get("starts"),
                node.attrs.get("ends"),
            ]
            flat = [b[0] if b is not None and len(b) == 1 and isinstance(b[0], int) else None for b in bounds]
            if len(flat) < 2 or None in flat[:2] or flat[3:] not in ([], [1]):
                return None
            return whole[slice(flat[0], flat[1])]
        return whole

    def _slide(self, node: Any, first: Shape, shapes: list[Shape | None]) -> Shape | None:
        """Return the shape of a convolution's or pool's output."""
        kernel = node.attrs.get("kernel_shape")
        channels: Dim = first[1] if len(first) > 1 else 1
        if node.op == "Conv":
            weight = shapes[1] if len(shapes) > 1 else None
            if weight is None or not all(isinstance(d, int) for d in weight):
                return None
            channels, kernel = weight[0], [d for d in weight[2:] if isinstance(d, int)]
        if not kernel or len(first) != len(kernel) + 2 or node.attrs.get("ceil_mode", 0):
            return None
        try:
            _, stride, size, mode = window(node.attrs, kernel, first[2:])
        except UnknownWindow:
            return None
        sizes: list[Dim] = []
        for length, s, c in zip(first[2:], stride, size, strict=True):
            if mode == "conv":
                sizes.append(max((length + c) // s + 1, 0) if isinstance(length, int) else length.through(s, c))
            else:  # SAME with an unknown size: ceil(L / s)
                sizes.append(-(-length // s) if isinstance(length, int) else length.through(s, -1))
        return (first[0], channels, *sizes)

    def _split(self, node: Any, first: Shape) -> None:
        """Give each output of a Split the sizes of its input on the axes that are not split."""
        axis = int(node.attrs.get("axis", 0))
        axis += len(first) if axis < 0 else 0
        for output in node.outputs:
            known = self._shapes.get(output.name)
            here = known[axis] if known is not None and len(known) == len(first) else Size((output.name, axis))
            self._shapes[output.name] = tuple(here if i == axis else d for i, d in enumerate(first))


def _factors(dim: Dim) -> tuple[int, Counter[Size]]:
    """Return a size as a number times named sizes."""
    if isinstance(dim, int):
        return dim, Counter()
    if isinstance(dim.base, _Product) and (dim.stride, dim.size) == (1, -1):
        return dim.base.times, Counter(dim.base.sizes)
    return 1, Counter([dim])


@dataclass(frozen=True)
class _Product:
    """The product of a number and sizes that are only named, in a fixed order."""

    times: int
    sizes: tuple[Size, ...]


def product_of(dims: Sequence[Dim], over: Sequence[Dim] = ()) -> Dim | None:
    """Return the product of sizes divided by that of others; None if it cannot be written."""
    times, sizes = 1, Counter[Size]()
    for dim in dims:
        number, named = _factors(dim)
        times, sizes = times * number, sizes + named
    for dim in over:
        number, named = _factors(dim)
        if not number or times % number or named - sizes:
            return None
        times, sizes = times // number, sizes - named
    if not sizes:
        return times
    left = sorted(sizes.elements(), key=repr)
    return left[0] if times == 1 and len(left) == 1 else Size(_Product(times, tuple(left)))


def _resolved(shape: Shape, target: Sequence[Dim]) -> Shape | None:
    """Return the shape that a Reshape gives: 0 copies a size, one -1 takes what is left."""
    if any(d == 0 and i >= len(shape) for i, d in enumerate(target)):
        return None
    dims = [shape[i] if d == 0 else d for i, d in enumerate(target)]
    open_ = [i for i, d in enumerate(dims) if d == -1]
    if len(open_) > 1:
        return None
    if open_:
        rest = product_of(shape, [d for d in dims if d != -1])
        if rest is None:
            return None
        dims[open_[0]] = rest
    return tuple(dims)


def broadcast(shapes: Sequence[Shape], name: str) -> Shape:
    """Return the shape to which shapes broadcast; an axis that cannot be told gets a size of its own."""
    rank = max(map(len, shapes))
    result: list[Dim] = []
    for axis in range(rank):
        dims = {s[axis - rank] for s in shapes if len(s) >= rank - axis} - {1}
        fixed = [d for d in dims if isinstance(d, int)]
        if len(dims) <= 1:
            result.append(dims.pop() if dims else 1)
        else:
            result.append(fixed[0] if len(fixed) == 1 else Size((name, axis)))
    return tuple(result)


def inferred(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """Return a copy of a model without weights, with ONNX's inferred shapes; ``shapes`` fixes those of inputs."""
    copy = onnx.ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    for function in proto.functions:
        copy.functions.add().CopyFrom(function)
    _light(proto.graph, copy.graph, inner=False)
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


def _light(source: onnx.GraphProto, target: onnx.GraphProto, inner: bool) -> None:
    """Copy a graph without large payloads and without any shape that is only declared."""
    target.name = source.name
    for tensor in source.initializer:
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


def lengths_of(shape: Shape | None) -> tuple[int, ...] | None:
    """Return the spatial sizes of a ``[N, C, ...]`` shape if all are static."""
    if shape is None:
        return None
    sizes = tuple(d for d in shape[2:] if isinstance(d, int))
    return sizes if len(sizes) == len(shape) - 2 else None
