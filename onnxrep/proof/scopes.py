"""Names of one model made unique: those in the bodies of its nodes may repeat each other's, and hide those outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from onnxrep.graph import bodies


def distinct(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which no two values have one name; the model itself where that is so already.

    Names of the main graph stay as they are.
    """
    taken: set[str] = set()
    repeated = False
    for graph in graphs(model.graph):
        mine = set(_defined(graph))
        repeated |= not mine.isdisjoint(taken)
        taken |= mine
    if not repeated:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    used = set(_defined(copy.graph))
    for body in _inside(copy.graph):
        _rename(body, {}, used, taken)
    return copy


def _inside(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a graph's nodes hold."""
    return (body for node in graph.node for _, body in bodies(node))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all inside it."""
    yield graph
    for body in _inside(graph):
        yield from graphs(body)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a graph itself gives to values."""
    inputs = {v.name for v in graph.input}
    yield from inputs
    yield from (t.name for t in graph.initializer if t.name not in inputs)
    yield from (name for node in graph.node for name in node.output if name)


def _rename(graph: onnx.GraphProto, outer: Mapping[str, str], used: set[str], taken: set[str]) -> None:
    """Give the values of a body, and of those inside it, names that nothing else has.

    Args:
        graph: the body.
        outer: what values around it that have been renamed are called now.
        used: names of values that have kept theirs; those of the body are added.
        taken: names that no new one may be; new ones are added.

    """
    names = dict(outer)
    for name in list(_defined(graph)):
        names.pop(name, None)
        if name not in used:
            used.add(name)
            continue
        count = 1
        while f"{name}/{count}" in taken:
            count += 1
        names[name] = f"{name}/{count}"
        taken.add(names[name])
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for body in _inside(graph):
        _rename(body, names, used, taken)
