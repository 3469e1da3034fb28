"""Sizes followed through the graph where ONNX's inference leaves them open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto

from onnxrep.constants import Constants
from onnxrep.graph import DEFAULT_DOMAINS, Scope
from onnxrep.shapes.sizes import Dim, Enlarged, Shape, Size, broadcast, counted, product_of, resolved
from onnxrep.shapes.windows import UnknownWindow, pad_margins, window

_SAME = (
    "Relu LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Softplus Softsign Mish Gelu Swish Erf Clip"
)
_SAME += " Identity Cast Dropout BatchNormalization InstanceNormalization LayerNormalization GroupNormalization LRN Neg"
_SAME += " Abs Sqrt Reciprocal Exp Log Floor Ceil Round Sign Softmax LogSoftmax ThresholdedRelu LpNormalization CumSum"
_SAME += " ScatterND RMSNormalization Sin Cos Not IsNaN QuantizeLinear DequantizeLinear Shrink"
SAME = frozenset(_SAME.split())
"""Ops whose first output has the shape of their first input."""

BROADCAST = frozenset(
    "Add Sub Mul Div Sum Mean Max Min Pow Where Equal Less Greater LessOrEqual GreaterOrEqual".split()
)
"""Ops that broadcast their inputs against each other."""

WINDOWS = frozenset(("Conv", "MaxPool", "AveragePool", "LpPool"))
"""Ops that slide a window over the spatial axes."""

_ENLARGING = (("strides", 1), ("dilations", 1), ("output_padding", 0))
"""Attributes of a ConvTranspose that its size depends on, with their defaults."""

_WITH_WEIGHTS = WINDOWS | {"ConvTranspose"}
_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div"))
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_VECTORS = frozenset(("Shape", "Gather", "Cast", "Identity", "Concat", "Slice", *_RESHAPES, *_ARITHMETIC))

FOLLOWED = SAME | BROADCAST | WINDOWS | _RESHAPES | {"Concat", "Gather", "Pad", "Shape", "Slice"}
FOLLOWED |= {"SpaceToDepth", "DepthToSpace", "ScatterND", "Split", "Transpose", "ConvTranspose", "MatMul", "Gemm"}
FOLLOWED |= {"GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum", "Resize", "Upsample"}


def enlarges(scales: Sequence[float]) -> bool:
    """Whether all scales are whole numbers from one on."""
    return all(math.isfinite(s) and s >= 1 and s == int(s) for s in scales)


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
            if scope.is_overridable(tensor.name):
                continue
            self._shapes[tensor.name] = tuple(tensor.dims)
            self._types[tensor.name] = tensor.data_type
        infos = [*inferred.input, *inferred.value_info, *inferred.output] if inferred is not None else []
        for info in infos:
            kind = info.type.tensor_type
            if info.type.HasField("tensor_type") and (
                info.name not in scope.initializers or scope.is_overridable(info.name)
            ):
                self._types[info.name] = kind.elem_type
                if kind.HasField("shape"):
                    self._shapes[info.name] = tuple(
                        d.dim_value if d.HasField("dim_value") else Size((info.name, axis))
                        for axis, d in enumerate(kind.shape.dim)
                    )
        for node in scope.nodes:
            if node.op in ("Conv", "ConvTranspose") and node.domain in DEFAULT_DOMAINS:
                self._read(node)
        self._follow_all()

    def refine(self, constants: Constants) -> None:
        """Follow anew what is not static yet, as more constants are known."""
        self._constants = constants
        self._vectors.clear()
        self._follow_all()

    def _follow_all(self) -> None:
        """Follow the sizes of all nodes, in the order of the graph."""
        for node in self._scope.nodes:
            if node.op in FOLLOWED and node.domain in DEFAULT_DOMAINS:
                self._follow(node)

    def _read(self, node: Any) -> None:
        """State what a convolution's weight says about the image that it reads: the graph would not run otherwise."""
        names = [v.name for v in node.inputs]
        weight = self.of(names[1]) if len(names) > 1 else None
        if weight is None or len(weight) < 3 or not self._scope.defines(names[0]):
            return
        channels = weight[0] if node.op == "ConvTranspose" else weight[1]
        known = self._shapes.get(names[0])
        if node.op == "Conv" and isinstance(channels, int):
            channels *= int(node.attrs.get("group", 1))
        if not isinstance(channels, int) or (known is not None and len(known) != len(weight)):
            return
        dims = known or tuple(Size((names[0], axis)) for axis in range(len(weight)))
        if not isinstance(dims[1], int):
            self._shapes[names[0]] = (dims[0], channels, *dims[2:])

    def of(self, name: str) -> Shape | None:
        """Return a value's shape, or None if not even its rank is known."""
        if name in self._shapes or self._scope.defines(name) or self._outer is None:
            return self._shapes.get(name)
        return self._outer.of(name)

    def newly_static(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield values with known sizes whose Shape does not count as a constant yet."""
        for node in self._scope.nodes:
            if node.op != "Shape" or node.domain not in DEFAULT_DOMAINS or self._constants.has(node.outputs[0].name):
                continue
            name = node.inputs[0].name
            shape = self.of(name) if self.type_of(name) else None
            if shape is not None and all(isinstance(d, int) for d in shape):
                yield name, tuple(d for d in shape if isinstance(d, int))

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
        if node.op in SAME:
            return first
        if node.op in BROADCAST:
            present = [s for s in shapes if s is not None]
            return broadcast(present, node.outputs[0].name) if len(present) == len(shapes) else None
        if node.op in _RESHAPES:
            return self._reshaped(node, first)
        if node.op.startswith("Reduce"):
            return self._reduced(node, first)
        if node.op in _WITH_WEIGHTS:
            return self._slide(node, first, shapes)
        if node.op == "Slice":
            return self._sliced(node, first)
        return self._rearranged(node, first, shapes)

    def _rearranged(self, node: Any, first: Shape, shapes: list[Shape | None]) -> Shape | None:
        """Return the shape of a product, or of what an op makes that moves positions about or joins images."""
        if node.op in ("MatMul", "Gemm"):
            return _product_shape(node, first, shapes[1] if len(shapes) > 1 else None)
        if node.op in ("Resize", "Upsample"):
            return self._resized(node, first)
        if node.op in ("GlobalAveragePool", "GlobalMaxPool"):
            return (*first[:2], *(1,) * len(first[2:]))
        if node.op == "SpaceToDepth":
            q = int(node.attrs.get("blocksize", 1))
            channels = first[1] * q * q if isinstance(first[1], int) else Size((node.outputs[0].name, 1))
            return (first[0], channels, *(d // q if isinstance(d, int) else d.through(q, -q) for d in first[2:]))
        if node.op == "Transpose":
            order = node.attrs.get("perm") or tuple(reversed(range(len(first))))
            return tuple(first[i] for i in order) if sorted(order) == list(range(len(first))) else None
        if node.op == "Concat":
            return _joined(node, first, shapes)
        margins = pad_margins(node, self._constants, len(first)) if node.op == "Pad" else None
        if margins is None:
            return None
        columns = zip(first, margins, strict=True)
        return tuple(d + b + e if isinstance(d, int) else d.through(1, b + e - 1) for d, (b, e) in columns)

    def _reshaped(self, node: Any, first: Shape) -> Shape | None:
        """Return the shape of a Reshape, Flatten, Squeeze or Unsqueeze."""
        if node.op == "Flatten":
            axis = int(node.attrs.get("axis", 1))
            if not -len(first) <= axis <= len(first):
                return None
            axis += len(first) if axis < 0 else 0
            halves = product_of(first[:axis]), product_of(first[axis:])
            return None if None in halves else tuple(h for h in halves if h is not None)
        if node.op == "Reshape":
            target = self.vector(node.inputs[1].name) if len(node.inputs) > 1 else node.attrs.get("shape")
            return None if target is None or node.attrs.get("allowzero", 0) else resolved(first, target)
        axes = node.attrs.get("axes")
        if len(node.inputs) > 1 and node.inputs[1].name:
            axes = self.vector(node.inputs[1].name)
        if node.op == "Squeeze" and axes is None:
            return None
        if axes is None:
            return None
        rank = len(first) + (len(axes) if node.op == "Unsqueeze" else 0)
        where = counted(axes, rank)
        if where is None:
            return None
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
        where = counted(range(count) if axes is None else axes, len(first))
        columns = [starts, ends, where or (), steps or [1] * count]
        if not all(isinstance(v, int) for column in columns for v in column) or {len(c) for c in columns} != {count}:
            return None
        result = list(first)
        for start, end, axis, step in zip(*columns, strict=True):
            if not step:
                return None
            dim = result[axis]
            if isinstance(dim, int):
                result[axis] = len(range(dim)[slice(start, end, step)])
            elif step > 0 and start >= 0 and (end < 0 or end >= (1 << 31) - 1):
                result[axis] = dim.through(step, -start + min(end, 0) - 1)
            else:
                result[axis] = Size((node.outputs[0].name, axis))
        return tuple(result)

    def _resized(self, node: Any, first: Shape) -> Shape | None:
        """Return the sizes to which a Resize is told to go, or to which whole factors take it or an Upsample."""
        names, place = [v.name for v in node.inputs], 1 if node.op == "Upsample" else 2
        if node.attrs.get("axes") or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        if place == 2 and len(names) == 4:
            wanted = self.vector(names[3])
            return wanted if wanted is not None and len(wanted) == len(first) else None
        given = node.attrs.get("scales") if place == 1 else None
        if len(names) == place + 1 and (constant := self._constants.get(names[place])) is not None:
            given = constant.floats().reshape(-1).tolist()
        if given is None or len(given) != len(first) or not enlarges(given):
            return None
        columns = [(d, int(s)) for d, s in zip(first, given, strict=True)]
        return tuple(d * s if isinstance(d, int) else d if s == 1 else Size(Enlarged(d, s, s)) for d, s in columns)

    def _reduced(self, node: Any, first: Shape) -> Shape | None:
        """Return the shape behind a reduction over known axes."""
        axes = node.attrs.get("axes")
        if len(node.inputs) > 1 and node.inputs[1].name:
            axes = self.vector(node.inputs[1].name)
        where = counted(axes or (), len(first))
        if not where:
            return None
        kept = [1 if i in where else d for i, d in enumerate(first)]
        return tuple(kept) if node.attrs.get("keepdims", 1) else tuple(d for i, d in enumerate(first) if i not in where)

    def vector(self, name: str) -> tuple[Dim, ...] | None:
        """Return a vector of integers, some of which may be sizes that are only named; None if it is not known."""
        if name not in self._vectors:
            self._vectors[name] = self._vector(name)
        return self._vectors[name]

    def _vector(self, name: str) -> tuple[Dim, ...] | None:
        """Follow shape arithmetic: Shape, Gather, Slice and Concat of vectors."""
        constant = self._constants.get(name) if self._constants.has(name) else None
        if constant is not None:
            known = len(constant.dims) < 2 and constant.data_type in _INTEGERS
            return tuple(int(v) for v in constant.values().reshape(-1)) if known else None
        position = self._scope.producer.get(name)
        node = self._scope.nodes[position] if position is not None else None
        if node is None or node.op not in _VECTORS or node.domain not in DEFAULT_DOMAINS:
            return None
        if node.op == "Cast" and node.attrs.get("to") not in _INTEGERS:
            return None
        if node.op == "Shape":
            shape = self.of(node.inputs[0].name)
            return None if shape is None else shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
        if node.op in _ARITHMETIC:
            return _calculated(node.op, *(self.vector(v.name) for v in node.inputs))
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
        if node.op in ("Conv", "ConvTranspose"):
            weight = shapes[1] if len(shapes) > 1 else None
            if weight is None or len(weight) < 3 or not all(isinstance(d, int) for d in weight):
                return None
            channels, kernel = weight[0], [d for d in weight[2:] if isinstance(d, int)]
            if node.op == "ConvTranspose" and isinstance(weight[1], int):
                return _enlarged(node, first, weight[1] * int(node.attrs.get("group", 1)), kernel)
        if not kernel or len(first) != len(kernel) + 2:
            return None
        try:
            taps, stride, size, mode = window(node.attrs, kernel, first[2:])
        except UnknownWindow:
            return None
        sizes: list[Dim] = []
        if node.attrs.get("ceil_mode", 0):
            if mode != "conv":
                return None
            columns = zip(first[2:], stride, size, [-t[0] for t in taps], strict=True)
            sizes += [_rounded_up(*c) or Size((node.outputs[0].name, axis)) for axis, c in enumerate(columns, 2)]
            return (first[0], channels, *sizes)
        for length, s, c in zip(first[2:], stride, size, strict=True):
            if mode == "conv":
                sizes.append(max((length + c) // s + 1, 0) if isinstance(length, int) else length.through(s, c))
            else:  # SAME with an unknown size: ceil(L / s)
                sizes.append(-(-length // s) if isinstance(length, int) else length.through(s, -1))
        return (first[0], channels, *sizes)

    def _split(self, node: Any, first: Shape) -> None:
        """Give each output of a Split the sizes of its input on the axes that are not split."""
        where = counted([int(node.attrs.get("axis", 0))], len(first))
        if where is None:
            return
        axis = where[0]
        for output in node.outputs:
            known = self._shapes.get(output.name)
            here = known[axis] if known is not None and len(known) == len(first) else Size((output.name, axis))
            self._shapes[output.name] = tuple(here if i == axis else d for i, d in enumerate(first))


def _rounded_up(length: Dim, stride: int, size: int, begin: int) -> int | None:
    """Return how many windows there are if the last may hang over the end, though not lie behind it altogether."""
    if not isinstance(length, int):
        return None
    count = -(-(length + size) // stride) + 1
    return count - 1 if (count - 1) * stride >= length + begin else count


def _calculated(op: str, first: tuple[Dim, ...] | None, second: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Return what integer arithmetic makes of two vectors; one operand of each pair must be a known number."""
    if not first or not second or (len(first) != len(second) and 1 not in (len(first), len(second))):
        return None
    count = max(len(first), len(second))
    results = []
    for a, b in zip(first * (count // len(first)), second * (count // len(second)), strict=True):
        size, number = (b, a) if isinstance(a, int) and op in ("Add", "Mul") else (a, b)
        if not isinstance(number, int) or (op == "Div" and number < 1):
            return None
        results.append(_with_number(op, size, number))
    return None if None in results else tuple(r for r in results if r is not None)


def _with_number(op: str, size: Dim, number: int) -> Dim | None:
    """Return a size plus, minus, times or divided by a number; sizes are not negative, so that division is floor."""
    if op == "Mul":
        return product_of((size, number))
    if op == "Div":
        if isinstance(size, int):
            return size // number if size >= 0 else None
        return size.through(number, -number)
    change = number if op == "Add" else -number
    return size + change if isinstance(size, int) else size.through(1, change - 1)


def _joined(node: Any, first: Shape, shapes: list[Shape | None]) -> Shape | None:
    """Return the shape of a Concat."""
    where = counted([int(node.attrs.get("axis", 1))], len(first))
    if where is None:
        return None
    axis = where[0]
    parts = [s[axis] if s is not None and len(s) == len(first) else None for s in shapes]
    total: Dim = Size((node.outputs[0].name, axis))
    if all(isinstance(p, int) for p in parts):
        total = sum(p for p in parts if isinstance(p, int))
    return tuple(total if i == axis else d for i, d in enumerate(first))


def _product_shape(node: Any, first: Shape, second: Shape | None) -> Shape | None:
    """Return the shape of a MatMul or Gemm."""
    if second is None or len(first) < 2 or len(second) < 2:
        return None
    if node.op == "Gemm":
        return first[1 if node.attrs.get("transA", 0) else 0], second[0 if node.attrs.get("transB", 0) else 1]
    batch = broadcast([first[:-2], second[:-2]], node.outputs[0].name) if len(first) > 2 or len(second) > 2 else ()
    return (*batch, first[-2], second[-1])


def _enlarged(node: Any, first: Shape, channels: int, kernel: list[int]) -> Shape | None:
    """Return the shape of a ConvTranspose; a size that is only named gives another one, equal for equal attributes."""
    if node.attrs.get("output_shape") or node.attrs.get("auto_pad", "NOTSET") not in ("", "NOTSET", "VALID"):
        return None
    axes = len(kernel)
    pads = tuple(node.attrs.get("pads") or (0,) * (2 * axes))
    if node.attrs.get("auto_pad") == "VALID":
        pads = (0,) * (2 * axes)
    columns = [tuple(node.attrs.get(k) or (d,) * axes) for k, d in _ENLARGING]
    if len(first) != axes + 2 or len(pads) != 2 * axes or any(len(c) != axes for c in columns):
        return None
    sizes: list[Dim] = []
    for length, k, s, d, extra, b, e in zip(first[2:], kernel, *columns, pads[:axes], pads[axes:], strict=True):
        constant = d * (k - 1) + 1 + extra - b - e
        enlarged = s * (length - 1) + constant if isinstance(length, int) else Size(Enlarged(length, s, constant))
        sizes.append(enlarged)
    return (first[0], channels, *sizes)
