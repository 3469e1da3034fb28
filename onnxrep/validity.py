"""Is a model one that can be worked on at all? Versions that have a known meaning, and a graph that hangs together."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain

import onnx

from onnxrep.errors import InvalidModel, UnsupportedModel
from onnxrep.escape import printable
from onnxrep.graph import DEFAULT_DOMAINS

NEWEST_OPSET = onnx.defs.onnx_opset_version()
_BROKEN = "; the graph is broken: export the model again, or mend what edited it"


def check(model: onnx.ModelProto, label: str) -> None:
    """Check versions and graphs; graphs whose nodes are out of order are put in order, which ONNX demands anyway.

    Raises:
        InvalidModel: no opset import, a value made twice or never, a cycle, a node name used twice.
        UnsupportedModel: an IR version or opset newer than the installed onnx package.

    """
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedModel(
            f"{label}: IR version {model.ir_version}; the installed onnx knows up to "
            f"{onnx.IR_VERSION}: pip install --upgrade onnx"
        )
    versions = [o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS]
    if not model.HasField("graph") or not (model.graph.node or model.graph.output or model.graph.input):
        raise InvalidModel(f"{label}: no graph in it; not an ONNX model")
    if not model.opset_import:
        raise InvalidModel(f"{label}: no opset import; export the model again")
    if len(set(versions)) > 1:
        raise InvalidModel(
            f"{label}: the default operator set is imported in versions {sorted(set(versions))}; export it again"
        )
    if versions and versions[0] > NEWEST_OPSET:
        raise UnsupportedModel(
            f"{label}: opset {versions[0]}; the installed onnx knows up to {NEWEST_OPSET}: pip install --upgrade onnx, "
            "or export with an older opset"
        )
    if versions and versions[0] < 1:
        raise UnsupportedModel(f"{label}: opset {versions[0]}; export the model again with opset 7 or later")
    for function in model.functions:
        _check_names(function.node, (function.name, function.domain, *function.input, *function.output), label)
    pending: list[tuple[onnx.GraphProto, frozenset[str]]] = [(model.graph, frozenset())]
    while pending:
        graph, outer = pending.pop()
        own = _check_graph(graph, outer, label)
        inside = frozenset(outer | own)
        pending.extend((body, inside) for node in graph.node for body in _bodies(node))


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_graph(graph: onnx.GraphProto, outer: frozenset[str], label: str) -> set[str]:
    """Check one graph, given the values of the graphs around it; return the values that it defines."""
    given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    given |= {s.values.name for s in graph.sparse_initializer}
    _check_names(graph.node, given, label)
    for kind in ([v.name for v in graph.input], [t.name for t in graph.initializer]):
        if len(set(kind)) < len(kind):
            name = next(n for n, count in Counter(kind).items() if count > 1)
            raise InvalidModel(f"{label}: {printable(name)} is declared twice{_BROKEN}")
    makers: dict[str, int] = {}
    names: set[str] = set()
    for position, node in enumerate(graph.node):
        if node.name and node.name in names:
            raise InvalidModel(f"{label}: two nodes are named {printable(node.name)}, which ONNX Runtime refuses")
        names.add(node.name)
        for output in filter(None, node.output):
            if output in makers or output in given:
                raise InvalidModel(f"{label}: the value {printable(output)} is made twice{_BROKEN}")
            makers[output] = position
    known = given | makers.keys() | outer
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known:
                where = printable(node.name or node.op_type)
                raise InvalidModel(f"{label}: node {where} reads {printable(name)}, which nothing makes{_BROKEN}")
    for value in graph.output:
        if value.name not in known:
            raise InvalidModel(f"{label}: the output {printable(value.name)} is made by nothing{_BROKEN}")
    _sort(graph, makers, label)
    return given | makers.keys()


def _check_names(nodes: Iterable[onnx.NodeProto], names: Iterable[str], label: str) -> None:
    """Check that all names are text: protobuf hands out bytes for what is no UTF-8."""
    inside = (n for node in nodes for n in (node.name, node.op_type, node.domain, *node.input, *node.output))
    for name in chain(names, inside):
        if not isinstance(name, str):
            raise InvalidModel(f"{label}: the name {printable(name)} is no UTF-8 text")


def _needs(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that its bodies read included."""
    yield from node.input
    stack = list(_bodies(node))
    while stack:
        body = stack.pop()
        yield from (v.name for v in body.output)
        for inner in body.node:
            yield from inner.input
            stack.extend(_bodies(inner))


def _sort(graph: onnx.GraphProto, makers: dict[str, int], label: str) -> None:
    """Put nodes after what they read, otherwise in their present order; refuse a cycle."""
    needed = [{makers[n] for n in _needs(node) if n in makers} for node in graph.node]
    if all(all(m < position for m in need) for position, need in enumerate(needed)):
        return
    readers: dict[int, list[int]] = {}
    for position, need in enumerate(needed):
        for maker in need:
            readers.setdefault(maker, []).append(position)
    waiting = [len(need) for need in needed]
    ready = deque(p for p, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        position = ready.popleft()
        order.append(position)
        for reader in readers.get(position, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(order) < len(needed):
        stuck = graph.node[next(p for p, count in enumerate(waiting) if count)]
        raise InvalidModel(
            f"{label}: node {printable(stuck.name or stuck.op_type)} depends on itself (a cycle){_BROKEN}"
        )
    nodes = [graph.node[p] for p in order]
    del graph.node[:]
    graph.node.extend(nodes)
