"""Parameters and arithmetic of a whole model, before and after: what folding gains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import onnx
from onnx import AttributeProto, TensorProto

from onnxrep import files
from onnxrep.escape import printable
from onnxrep.folding import known_facts
from onnxrep.graph import DEFAULT_DOMAINS, Model
from onnxrep.lift import LIFTED, Facts
from onnxrep.report.records import Totals
from onnxrep.shapes import FOLLOWED, Known, assign, inferred

_COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
_Dims = Mapping[str, tuple[int, ...]]


def totals(
    model: onnx.ModelProto,
    folder: files.Folder | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    facts: Facts | None = None,
) -> Totals:
    """Return the size of a model; a dynamic batch size (the first of an input with other sizes) counts as 1.

    Args:
        model: left as it is.
        folder: where its external data lies, or None.
        shapes: input name -> shape, for inputs with dynamic dimensions.
        facts: what is known about its graph, where that has been found out already.

    """
    given = dict(shapes or {})
    weights = {t.name for t in model.graph.initializer}
    assumed = False
    for value in model.graph.input:
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name in weights or value.name in given or not sizes:
            continue
        if len(sizes) > 1 and not sizes[0] and all(sizes[1:]):
            given[value.name], assumed = (1, *sizes[1:]), True
    facts = facts or known_facts(Model(model, folder, LIFTED | FOLLOWED))[0]
    dims = _followed(facts, given) | _dims(model.graph)
    known, unknown = _arithmetic(model, dims)
    if unknown and given:  # sizes that are not followed, but that inference calculates from given ones
        dims = _dims(inferred(model, given).graph, inferred=True) | dims
        known, unknown = _arithmetic(model, dims)
    read = {v.name: dims[v.name] for v in model.graph.input if v.name not in weights and dims.get(v.name)}
    named = {printable(name): sizes for name, sizes in read.items()}
    return Totals(_parameters(model), None if unknown else known, unknown, named, assumed and not unknown)


def _arithmetic(model: onnx.ModelProto, dims: _Dims) -> tuple[int, int]:
    """Return the multiply-accumulates of a model, and of how many nodes they are not known."""
    functions = {(f.domain, f.name): f for f in model.functions}
    known, unknown = 0, 0
    for node in model.graph.node:
        hidden = sum(n.op_type in _COUNTED for n in _inside(node, functions))
        macs = _macs(node, dims) if node.op_type in _COUNTED and node.domain in DEFAULT_DOMAINS else 0
        known += macs or 0
        unknown += hidden + (macs is None)
    return known, unknown


def _followed(facts: Facts, given: _Dims) -> dict[str, tuple[int, ...]]:
    """Return the sizes of values as they follow from those of the inputs."""
    known: Known = {}
    for name, sizes in given.items():
        for dim, size in zip(facts.shapes.of(name) or (), sizes, strict=False):
            assign(dim, size, known)
    found: dict[str, tuple[int, ...]] = {}
    for name in (*given, *facts.scope.producer):
        shape = facts.shapes.of(name)
        if shape is not None:
            with contextlib.suppress(KeyError):
                found[name] = tuple(d if isinstance(d, int) else d.number(known) for d in shape)
    return found


def _dims(graph: onnx.GraphProto, *, inferred: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the sizes of inputs and constants, and of other values if they are inferred, for which all are known."""
    found = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        values = [a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
        found.update(zip(node.output, (tuple(t.dims) for t in values), strict=False))
    for value in (*graph.input, *graph.value_info, *graph.output) if inferred else graph.input:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            sizes = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
            if min(sizes, default=0) >= 0:
                found.setdefault(value.name, sizes)
    return found


def _macs(node: onnx.NodeProto, dims: _Dims) -> int | None:
    """Return the multiply-accumulates of a convolution or product; None if a size is not known."""
    if len(node.input) < 2 or not node.output:
        return None
    first, second, result = (dims.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "ConvTranspose":
        return None if first is None or second is None else math.prod(first) * math.prod(second[1:])
    if result is None:
        return None
    if node.op_type == "Conv":
        return None if second is None else math.prod(result) * math.prod(second[1:])
    if first is None:
        return None
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(result) * first[0 if turned else -1] if first else None


def _inside(node: onnx.NodeProto, functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes in the bodies of a node, and in the local functions that it calls."""
    stack, called = [node], set[tuple[str, str]]()
    while stack:
        top = stack.pop()
        bodies = [a.g for a in top.attribute if a.type == AttributeProto.GRAPH]
        inner = [n for body in bodies for n in body.node]
        key = (top.domain, top.op_type)
        if key in functions and key not in called:
            called.add(key)
            inner += functions[key].node
        yield from inner
        stack += inner


def _parameters(model: onnx.ModelProto) -> int:
    """Return the elements of all float tensors that nodes read: initializers and constants."""
    total = 0
    graphs = [model.graph]
    read: set[str] = set()
    found: list[onnx.TensorProto] = []
    nodes = [n for f in model.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            found += graph.initializer
            read.update(v.name for v in graph.output)
            nodes += graph.node
            continue
        node = nodes.pop()
        read.update(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                graphs.append(attribute.g)
            elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in _FLOATS:
                total += math.prod(attribute.t.dims)
    return total + sum(math.prod(t.dims) for t in found if t.name in read and t.data_type in _FLOATS)
