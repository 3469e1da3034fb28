"""Which values of a graph are constant, and what they are.

A constant is an initializer that no caller can override, the output of a Constant node, or what a deterministic op
makes of constants alone. Values are computed when asked for, once, in their own type, and only if of bounded size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxrep.files import array
from onnxrep.graph import DEFAULT_DOMAINS, Scope

_WIDEST = 8.0
"""Bytes of the widest element."""
_MOST_GROWTH, _SMALL = 4, 1 << 16
MEMORY_LIMIT = 1 << 28
"""Bytes that one computed constant may take."""
TOTAL_LIMIT = 1 << 30
"""Bytes that all computed constants of a graph and those inside it take together; then no more are computed."""
_MOST_WORK = 1 << 29
"""Products of numbers that the evaluation of one node may take."""

_MOVES = "Identity Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Concat Slice Split Gather GatherElements"
_MOVES += " GatherND ScatterND ScatterElements Pad Shape Size ConstantOfShape Range Cast CastLike Trilu DepthToSpace"
_MOVES += " SpaceToDepth EyeLike OneHot Dropout"
_MATHS = "Add Sub Mul Div Neg Abs Sqrt Reciprocal Exp Log Pow Sigmoid Tanh Relu Softplus Softmax HardSigmoid Erf Clip"
_MATHS += (
    " Min Max Sum Mean Floor Ceil Round Sign Sin Cos Mod Where Equal Less Greater LessOrEqual GreaterOrEqual And Or"
)
_MATHS += " Not MatMul Gemm Einsum Conv ReduceSum ReduceMean ReduceProd ReduceMax ReduceMin ReduceL2 ReduceSumSquare"
_MATHS += " BatchNormalization"
EVALUABLE = frozenset(f"{_MOVES} {_MATHS}".split())
"""Deterministic ops of the default domain that are worth evaluating on constants."""


_SINCE = {"BatchNormalization": 14, "Softmax": 13}
"""Opsets from which on the evaluator has the meaning of an op."""

_CARRIERS = frozenset(
    "Identity Reshape Flatten Squeeze Unsqueeze Transpose Cast CastLike Expand Shape Constant".split()
)
"""Ops that only hand a constant on: nothing is won by storing what they make."""


@cache
def _element_type(dtype: np.dtype[Any]) -> int:
    """Return a tensor's element type for one of numpy's."""
    return int(helper.np_dtype_to_tensor_dtype(dtype))


class Constant:
    """A constant value: its dims and type at once, its values when asked for."""

    def __init__(self, scope: Scope, tensor: TensorProto | None, values: NDArray[Any] | None = None) -> None:
        self._scope, self._tensor, self._values = scope, tensor, values
        if tensor is not None:
            self.dims, self.data_type = tuple(tensor.dims), int(tensor.data_type)
        elif values is not None:
            self.dims, self.data_type = values.shape, _element_type(values.dtype)

    def values(self) -> NDArray[Any]:
        """Return the values in the stored type."""
        if self._values is not None:
            return self._values
        assert self._tensor is not None
        return array(self._tensor, self._scope.model.folder)

    def floats(self) -> NDArray[np.float64]:
        """Return the values as float64."""
        return np.asarray(self.values(), dtype=np.float64)


class _Account:
    """Bytes that the computed constants of some scopes take."""

    spent = 0


class Constants:
    """The constants that one scope can see."""

    def __init__(
        self,
        scope: Scope,
        inferred: onnx.GraphProto | None,
        outer: Constants | None,
        dims: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """State what is constant in a scope.

        Args:
            scope: the scope.
            inferred: its graph with ONNX's inferred types, see :func:`onnxrep.shapes.infer`.
            outer: the constants of the scope around it.
            dims: further values of which the shape is known.
        """
        self._dims = dims or {}
        self._account: _Account = _Account() if outer is None else outer._account
        self._scope, self._outer = scope, outer
        self._known: dict[str, Constant | None] = {}
        self._derivable: set[str] = set()
        self._types = {} if inferred is None else {v.name: v.type.tensor_type for v in _typed(inferred)}
        for node in scope.nodes:
            if node.domain in DEFAULT_DOMAINS and self._is_derivable(node):
                self._derivable.update(v.name for v in node.outputs if v.name)

    def _is_derivable(self, node: gs.Node) -> bool:
        """Whether a node's outputs depend on no data. Of what CastLike and Shape read, only type or dims count."""
        inputs = [v.name for v in node.inputs if v.name]
        if node.op == "Constant":
            return True
        if node.op not in EVALUABLE or not inputs or not self._has_one_meaning(node):
            return False
        if node.op == "CastLike" and len(inputs) == 2:
            return self.has(inputs[0]) and (self.has(inputs[1]) or self._stand_in(node, inputs[1]) is not None)
        if node.op == "Shape":
            return self.has(inputs[0]) or self._stand_in(node, inputs[0]) is not None
        return all(map(self.has, inputs))

    def _has_one_meaning(self, node: gs.Node) -> bool:
        """Whether the evaluator computes a node as a runtime does: some ops meant something else in older opsets."""
        opset = self._scope.model.opset
        if node.op == "BatchNormalization":
            return opset >= _SINCE[node.op] and not node.attrs.get("training_mode", 0)
        if node.op == "Dropout":
            return len(node.inputs) < 3
        return opset >= _SINCE.get(node.op, 0)

    def _stand_in(self, node: gs.Node | onnx.NodeProto, name: str) -> Constant | None:
        """Return a constant with the type (CastLike) or dims (Shape) of a value that is data, None if unknown."""
        kind = self._types.get(name)
        if kind is None or not kind.elem_type:
            return None
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if (node.op if isinstance(node, gs.Node) else node.op_type) == "CastLike":
            return Constant(self._scope, None, np.zeros((), dtype))
        dims = self._dims.get(name)
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            dims = tuple(d.dim_value for d in kind.shape.dim)
        return None if dims is None else Constant(self._scope, None, np.broadcast_to(np.zeros((), dtype), dims))

    def has(self, name: str) -> bool:
        """Whether a value is constant, without computing it."""
        if name in self._derivable or self._scope.initializer(name) is not None:
            return True
        return not self._scope.defines(name) and self._outer is not None and self._outer.has(name)

    def generators(self, name: str) -> list[int]:
        """Return the positions of the nodes of this scope that calculate a constant.

        None if it is only handed on, or has many more elements than what it is calculated from: better not stored.
        """
        found: set[int] = set()
        stack, seen, elements = [name], {name}, 0
        while stack:
            value = stack.pop()
            position = self._scope.producer.get(value)
            if position is None or self._scope.nodes[position].op == "Constant":
                leaf = self.get(value)
                elements += math.prod(leaf.dims) if leaf is not None else 0
                continue
            found.add(position)
            node = self._scope.nodes[position]
            inputs = {v.name for v in node.inputs if v.name and self.has(v.name)} - seen  # not what gives type or size
            seen |= inputs
            stack.extend(inputs)
        calculated = any(self._scope.nodes[p].op not in _CARRIERS for p in found)
        result = self.get(name) if calculated else None
        if result is None or math.prod(result.dims) > max(_MOST_GROWTH * elements, _SMALL):
            return []
        return sorted(found)

    def get(self, name: str) -> Constant | None:
        """Return a constant, or None if the value depends on data (or is too large to compute)."""
        if name not in self._known:
            self._resolve(name)
        return self._known[name]

    def _resolve(self, name: str) -> None:
        """Compute a value and what it rests on, in an order that needs no recursion."""
        stack = [name]
        while stack:
            top = stack[-1]
            if top in self._known:
                stack.pop()
                continue
            tensor = self._scope.initializer(top)
            if tensor is not None:
                self._known[top] = Constant(self._scope, tensor)
                continue
            if top not in self._derivable:
                outer = None if self._scope.defines(top) or self._outer is None else self._outer.get(top)
                self._known[top] = outer
                continue
            node = self._scope.proto.node[self._scope.producer[top]]
            if node.op_type == "Constant":
                self._known[top] = self._from_attribute(node)
                continue
            stands_in = {n: self._stand_in(node, n) for n in node.input if n and not self.has(n)}
            missing = [n for n in node.input if n and n not in stands_in and n not in self._known]
            if missing:
                stack.extend(missing)
                continue
            inputs = {n: stands_in[n] if n in stands_in else self._known[n] for n in node.input if n}
            feeds = {n: c.values() for n, c in inputs.items() if c is not None}
            computable = len(feeds) == len(inputs) and self._account.spent <= TOTAL_LIMIT
            outputs = evaluate(node, feeds, self._scope.model.opset) if computable else {}
            self._account.spent += sum(v.nbytes for v in outputs.values() if not _is_view(v, feeds))
            for output in filter(None, node.output):
                values = outputs.get(output)
                self._known[output] = None if values is None else Constant(self._scope, None, values)

    def _from_attribute(self, node: onnx.NodeProto) -> Constant | None:
        """Return the value of a Constant node, whichever attribute holds it."""
        for attribute in node.attribute:
            if attribute.name == "value":
                return Constant(self._scope, attribute.t)
            if attribute.name in ("value_float", "value_floats"):
                return Constant(self._scope, None, np.asarray(helper.get_attribute_value(attribute), np.float32))
            if attribute.name in ("value_int", "value_ints"):
                return Constant(self._scope, None, np.asarray(helper.get_attribute_value(attribute), np.int64))
        return None


def _is_view(values: NDArray[Any], feeds: Mapping[str, NDArray[Any]]) -> bool:
    """Whether what a node made is another view of what it read, and takes no memory of its own."""
    return any(np.may_share_memory(values, feed) for feed in feeds.values())


def _typed(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Yield the tensor-typed values of a graph."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            yield value


_remembered: dict[object, dict[str, NDArray[Any]]] = {}
_MOST_REMEMBERED, _LITTLE = 1024, 1 << 12
"""Results that are remembered, and the bytes up to which one, or what it is made of, counts as little."""


def evaluate(node: onnx.NodeProto, feeds: Mapping[str, NDArray[Any]], opset: int) -> dict[str, NDArray[Any]]:
    """Run one node on arrays; empty if it cannot be run or its result would be too large.

    What is little is remembered, since each round of folding asks for the same again. It cannot be changed.
    """
    if any(v.nbytes > _LITTLE or v.dtype.kind not in "iubf" for v in feeds.values()):
        return _evaluated(node, feeds, opset)
    given = tuple((name, v.dtype.str, v.shape, v.tobytes()) for name, v in feeds.items())
    key = node.SerializeToString(deterministic=True), given, opset
    found = _remembered.get(key)
    if found is None:
        found = _evaluated(node, feeds, opset)
        if all(v.nbytes <= _LITTLE for v in found.values()):
            if len(_remembered) >= _MOST_REMEMBERED:
                _remembered.clear()
            found = _remembered[key] = {name: _owned(v) for name, v in found.items()}
    return dict(found)


def _owned(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that cannot be changed: what an op hands on may be a part of a weight, or of a file."""
    copy = np.array(values)
    copy.flags.writeable = False
    return copy


def _evaluated(node: onnx.NodeProto, feeds: Mapping[str, NDArray[Any]], opset: int) -> dict[str, NDArray[Any]]:
    """Run one node; see :func:`evaluate`."""
    from onnx.reference import ReferenceEvaluator

    try:
        size = _result_bytes(node, feeds, opset)
        if size > MEMORY_LIMIT or _work(node, feeds, size / _WIDEST) > _MOST_WORK:
            return {}
        infos = [helper.make_tensor_value_info(n, _element_type(a.dtype), a.shape) for n, a in feeds.items()]
        outputs = [onnx.ValueInfoProto(name=o) for o in node.output if o]
        graph = helper.make_graph([node], "constant", infos, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, dict(feeds))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  whatever an op of the reference does on odd constants: then the value is not known
        return {}
    return {
        o.name: np.asarray(r) for o, r in zip(outputs, results, strict=True) if isinstance(r, np.ndarray | np.generic)
    }


def _work(node: onnx.NodeProto, feeds: Mapping[str, NDArray[Any]], results: float) -> float:
    """Return how many products a node takes that makes ``results`` elements."""
    shapes = [feeds[name].shape for name in node.input if name]
    if node.op_type in ("MatMul", "Gemm"):
        return results * max(shapes[0], default=1)
    if node.op_type == "Conv":
        return results * math.prod(shapes[1][1:])
    return float(math.prod(map(math.prod, shapes))) if node.op_type == "Einsum" else results


def _result_bytes(node: onnx.NodeProto, feeds: Mapping[str, NDArray[Any]], opset: int) -> float:
    """Return how much memory the results of a node take, infinity where ONNX's shape inference cannot say."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    types, data = {}, {}
    for name, values in feeds.items():
        types[name] = helper.make_tensor_type_proto(_element_type(values.dtype), values.shape)
        if values.dtype == np.int64 and values.size <= 1024:
            data[name] = numpy_helper.from_array(values, name)
    opsets = [helper.make_opsetid("", opset)]
    inferred = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
    total = 0.0
    for output in inferred.values():
        tensor = output.tensor_type
        if not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim):
            return math.inf
        total += _WIDEST * math.prod(d.dim_value for d in tensor.shape.dim)
    return total
