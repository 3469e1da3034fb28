"""Parts of models as models of their own: what makes one value from some others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx
from onnx import helper


def places_of(
    before: onnx.ModelProto, after: onnx.ModelProto, folds: Sequence[tuple[str, Sequence[str]]]
) -> dict[str, list[str]]:
    """Return what each fold rests on: values of the original that it reads, or from which its own sources are made."""
    present = {v.name for v in before.graph.input} - {t.name for t in before.graph.initializer}
    sources = {name for _, reads in folds for name in reads}
    stops = present | {o for node in before.graph.node for o in node.output if o in sources}
    found = {}
    for output, _ in folds:
        _, reads = behind(after.graph, output, stops)
        found[output] = sorted(reads | behind(before.graph, output, reads | present)[1])
    return found


def behind(graph: onnx.GraphProto, output: str, stops: Set[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that make a value, in order, and the stops at which the search ended."""
    wanted: set[str] = {output}
    reads: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            for name in read(node):
                (reads if name in stops else wanted).add(name)
    return nodes[::-1], reads


def read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, in its bodies too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from read(inner)


def part(model: onnx.ModelProto, output: str, given: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the part of a model that makes one value from others, for just these sizes."""
    nodes, _ = behind(model.graph, output, given.keys())
    used = {name for node in nodes for name in read(node)}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(v).dtype), np.shape(v))
        for name, v in given.items()
    ]
    weights = [t for t in model.graph.initializer if t.name in used and t.name not in given]
    graph = helper.make_graph(nodes, "part", inputs, [onnx.ValueInfoProto(name=output)], weights)
    return helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4), functions=model.functions
    )
