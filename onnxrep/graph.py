"""The onnx-graphsurgeon view of an owned ModelProto, and :func:`commit`: the only code that changes a model.

We own the message; what no fold touches stays in it byte for byte. onnx-graphsurgeon sees a skeleton without any tensor
payload: its nodes are what lifts read, and new nodes are built as its nodes and exported one by one. A node's identity
is its position in the message, because names are optional in ONNX and not unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import AttributeProto, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER

from onnxrep import files
from onnxrep.escape import printable

G_LOGGER.severity = G_LOGGER.CRITICAL  # it prints to stdout

DEFAULT_DOMAINS = ("", "ai.onnx")
PROVENANCE = "onnxrep.folded_from"
_PLAIN = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.STRING)
_METADATA_IR = 10
_INITIALIZERS_ARE_INPUTS_IR = 3


class Scope:
    """One graph of a model: the main graph, or the body of an If, Loop or Scan.

    Attributes:
        proto: the owned message.
        nodes: its nodes as onnx-graphsurgeon sees them, in the message's order.
        model: the model it belongs to.
        parent: the scope around it, or None.
        owner: position of the node of ``parent`` that holds this graph.
        body: which of that node's graphs it is.
        producer: value -> position of the node that makes it.
        readers: value -> positions of the nodes of this scope that read it, once per reading input.
        outputs: the graph's outputs.
        pinned: values that must survive: the outputs, and what graphs inside this one read.
        initializers: name -> tensor, those of this graph only.

    """

    def __init__(
        self, model: Model, proto: onnx.GraphProto, view: gs.Graph, parent: Scope | None, owner: int, body: str
    ) -> None:
        if len(view.nodes) != len(proto.node):
            raise AssertionError("the view lost a node")  # position is identity
        self.model, self.proto, self.parent, self.owner, self.body = model, proto, parent, owner, body
        self.nodes: list[gs.Node] = list(view.nodes)
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        self.outputs = {v.name for v in proto.output}
        self.pinned: set[str] = set(self.outputs)
        self.initializers: dict[str, onnx.TensorProto] = {t.name: t for t in proto.initializer}
        self.inputs = {v.name for v in proto.input}
        for position, node in enumerate(self.nodes):
            for value in node.inputs:
                if value.name:
                    self.readers.setdefault(value.name, []).append(position)
            for value in node.outputs:
                if value.name:
                    self.producer[value.name] = position

    def defines(self, name: str) -> bool:
        """Whether this very graph makes or declares the value."""
        return name in self.producer or name in self.initializers or name in self.inputs

    def home(self, name: str) -> Scope | None:
        """Return the scope that defines a value, looking outwards."""
        scope: Scope | None = self
        while scope is not None and not scope.defines(name):
            scope = scope.parent
        return scope

    def initializer(self, name: str) -> onnx.TensorProto | None:
        """Return the initializer behind a name, here or further out, unless a caller may override it."""
        home = self.home(name)
        if home is None or name not in home.initializers or home.is_overridable(name):
            return None
        return home.initializers[name]

    def is_overridable(self, name: str) -> bool:
        """Whether a caller may feed another value for this initializer: it is a graph input too (IR version 4 on)."""
        return name in self.inputs and self.model.proto.ir_version > _INITIALIZERS_ARE_INPUTS_IR

    @cached_property
    def label(self) -> str:
        """Where the scope is, for people: the names of the nodes around it; empty for the main graph.

        Behind the name of a node that holds several graphs stands which one it is.
        """
        if self.parent is None:
            return ""
        several = sum(1 for _ in bodies(self.parent.proto.node[self.owner])) > 1
        parts = self.parent.label, self.parent.node_label(self.owner), printable(self.body) if several else ""
        return "/".join(filter(None, parts))

    def outputs_of(self, position: int) -> list[str]:
        """Return the names of a node's outputs, those left out aside."""
        return [v.name for v in self.nodes[position].outputs if v.name]

    def serving(
        self, positions: Iterable[int], last: int, goes: Callable[[int, set[int]], bool] | None = None
    ) -> list[int]:
        """Return which of some nodes nothing needs but the node ``last``.

        ``goes`` says of a reader whether it does not count because it serves the nodes in a set alone.
        """
        inside = {last}
        for position in sorted(positions, reverse=True):
            outputs = self.outputs_of(position)
            users = {r for o in outputs for r in self.readers.get(o, ())} - inside
            if not self.pinned.intersection(outputs) and all(goes is not None and goes(u, inside) for u in users):
                inside.add(position)
        return sorted(inside - {last})

    def node_label(self, position: int) -> str:
        """Return a node's name, or what else tells it from others."""
        node, outputs = self.nodes[position], self.outputs_of(position)
        return printable(node.name or (f"{node.op} -> {outputs[0]}" if outputs else f"{node.op} #{position}"))


class Model:
    """An owned ModelProto with its scopes.

    Attributes:
        proto: the message; :func:`commit` is the only one to change it.
        folder: where external data lies, or None.
        scopes: the main graph first, then the bodies inside it.
        opset: version of the default operator set (0 if it is not imported).

    """

    def __init__(self, proto: onnx.ModelProto, folder: files.Folder | None, lifted: Collection[str]) -> None:
        """``lifted``: the op types whose attributes the view must show."""
        self.proto, self.folder = proto, folder
        self._used: dict[str, int] = {}
        self.opset = max((o.version for o in proto.opset_import if o.domain in DEFAULT_DOMAINS), default=0)
        skeleton = onnx.ModelProto(ir_version=proto.ir_version)
        skeleton.opset_import.add(domain="", version=self.opset or 1)
        _skeleton(proto.graph, skeleton.graph, lifted)
        self.scopes: list[Scope] = []
        pending: list[tuple[onnx.GraphProto, gs.Graph, Scope | None, int, str]] = [
            (proto.graph, gs.import_onnx(skeleton), None, -1, "")
        ]
        while pending:
            scope = Scope(self, *pending.pop())
            self.scopes.append(scope)
            for position, node in enumerate(scope.proto.node):
                inner = scope.nodes[position].attrs
                held = dict(bodies(node))
                pending.extend((body, inner[name], scope, position, name) for name, body in held.items())
        for scope in self.scopes:
            if scope.parent is not None:
                _pin_captures(scope)
        main = self.scopes[0]
        main.pinned.update(n for node in _training_nodes(proto) for n in node.input if n in main.producer)

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return a tensor's values in its own type."""
        return files.array(tensor, self.folder)

    @cached_property
    def names(self) -> set[str]:
        """Every name in use anywhere: values, initializers, inputs and nodes, also in local functions."""
        taken: set[str] = set()
        for scope in self.scopes:
            graph = scope.proto
            taken.update(t.name for t in graph.initializer)
            taken.update(v.name for v in (*graph.input, *graph.output, *graph.value_info))
            taken.update(s.values.name for s in graph.sparse_initializer)
        for node in _all_nodes(self):
            taken.update((node.name, *node.input, *node.output))
        return taken

    def fresh(self, base: str) -> str:
        """Return an unused name, ``base`` or ``base_1``, ``base_2`` and so on, and mark it as used."""
        name, count = base, self._used.get(base, 0)
        while name in self.names:
            count += 1
            name = f"{base}_{count}"
        self._used[base] = count
        self.names.add(name)
        return name


def overridable(proto: onnx.ModelProto) -> set[str]:
    """Return the initializers for which a caller may feed another value: graph inputs too (IR version 4 on)."""
    if proto.ir_version <= _INITIALIZERS_ARE_INPUTS_IR:
        return set()
    return {v.name for v in proto.graph.input} & {t.name for t in proto.graph.initializer}


def _skeleton(source: onnx.GraphProto, target: onnx.GraphProto, lifted: Collection[str]) -> None:
    """Copy names, types, dims and the plain attributes of lifted ops; no tensor payload."""
    for tensor in source.initializer:
        target.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    for values, copies in ((source.input, target.input), (source.output, target.output)):
        for value in values:
            copies.add(name=value.name)
    for node in source.node:
        copy = target.node.add(
            op_type=node.op_type, domain=node.domain, name=node.name, input=node.input, output=node.output
        )
        for name, body in bodies(node):
            _skeleton(body, copy.attribute.add(name=name, type=AttributeProto.GRAPH).g, lifted)
        if node.op_type in lifted and node.domain in DEFAULT_DOMAINS:
            copy.attribute.extend(a for a in node.attribute if a.type in _PLAIN)


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield the graphs that a node holds, each under a name that is unique within the node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for index, body in enumerate(attribute.graphs):
            yield f"{attribute.name}#{index}", body


def _pin_captures(scope: Scope) -> None:
    """Mark the values that ``scope`` reads from the scopes around it."""
    assert scope.parent is not None
    used = {*scope.readers, *(v.name for v in scope.proto.output)}
    for name in used:
        if not scope.defines(name):
            home = scope.parent.home(name)
            if home is not None:
                home.pinned.add(name)


def _training_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of training graphs, which read weights and values of the main graph."""
    for info in proto.training_info:
        yield from info.initialization.node
        yield from info.algorithm.node


def _all_nodes(model: Model) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of all scopes, training graphs and local functions."""
    yield from _training_nodes(model.proto)
    for scope in model.scopes:
        yield from scope.proto.node
    stack = [node for function in model.proto.functions for node in function.node]
    while stack:
        node = stack.pop()
        yield node
        for _, body in bodies(node):
            stack.extend(body.node)


@dataclass(frozen=True)
class Edit:
    """A region of one scope and what takes its place.

    Attributes:
        removed: positions of the region's nodes.
        at: position of the region's last node, behind which no new node stands.
        nodes: the new nodes, in order; the last one makes the region's output value.
        tensors: the new initializers, already in their stored type.
        heirs: per new node the position of the removed node whose doc string and metadata it inherits, or None.
        keep: the node at ``at`` stays (unless another edit removes it), and the new ones stand behind it.
        reads: edits that make values which this one reads.
        exact: of the new initializers that hold reals, what was calculated, before it was rounded.
    """

    removed: frozenset[int]
    at: int
    nodes: Sequence[gs.Node]
    tensors: Sequence[tuple[str, NDArray[Any]]]
    heirs: Sequence[int | None] = field(default=())
    keep: bool = False
    reads: Sequence[Edit] = field(default=())
    exact: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def rounded(self) -> Edit:
        """The edit without what was calculated."""
        return replace(self, exact={}, reads=tuple(edit.rounded for edit in self.reads))

    @property
    def calculated(self) -> int:
        """How many numbers were calculated, what it reads aside."""
        return sum(values.size for values in self.exact.values())

    @property
    def whole(self) -> tuple[Edit, ...]:
        """The edit, behind those that make what it reads."""
        return (*self.reads, self)

    @property
    def written(self) -> list[gs.Node]:
        """The new nodes in order, with those that make what they read."""
        return [node for edit in self.whole for node in edit.nodes]


def commit(model: Model, edits: Sequence[tuple[Scope, Edit]]) -> None:
    """Apply edits to the model's message in one pass; its scopes and view are out of date afterwards.

    Besides the region's nodes, only what nothing else reads any more goes: constants that the region read, their value
    infos, quantization annotations, and (IR version 3) their listing as graph inputs.
    """
    doomed: dict[int, set[int]] = {id(scope): set() for scope in model.scopes}
    for scope, edit in edits:
        doomed[id(scope)] |= edit.removed
    dead = _dead_constants(model, edits, doomed)
    by_scope: dict[int, list[Edit]] = {}
    for scope, edit in edits:
        by_scope.setdefault(id(scope), []).append(edit)
    for scope in reversed(model.scopes):  # bodies first: rewriting a graph copies its nodes with what they hold
        if doomed[id(scope)] or dead[id(scope)] or id(scope) in by_scope:
            _rewrite(scope, by_scope.get(id(scope), []), doomed[id(scope)], dead[id(scope)])


def _dead_constants(
    model: Model, edits: Sequence[tuple[Scope, Edit]], doomed: dict[int, set[int]]
) -> dict[int, set[str]]:
    """Return per scope the initializers that only removed nodes read; add nodes that only made such to ``doomed``."""
    reads: Counter[str] = Counter()
    for node in _all_nodes(model):
        reads.update(n for n in node.input if n)
    for _, edit in edits:
        reads.update(v.name for node in edit.nodes for v in node.inputs)
    kept = {v.name for s in model.scopes for v in s.proto.output}
    dead: dict[int, set[str]] = {id(scope): set() for scope in model.scopes}
    stack = [(scope, position) for scope, edit in edits for position in edit.removed]
    while stack:
        scope, position = stack.pop()
        for name in filter(None, scope.proto.node[position].input):
            reads[name] -= 1
            home = scope.home(name)
            if reads[name] or home is None or name in kept:
                continue
            if name in home.initializers and not home.is_overridable(name):
                dead[id(home)].add(name)
            producer = home.producer.get(name)
            if producer is None or producer in doomed[id(home)]:
                continue
            if not any(reads[o] or o in kept for o in home.proto.node[producer].output if o):
                doomed[id(home)].add(producer)
                stack.append((home, producer))
    return dead


def _rewrite(scope: Scope, edits: Sequence[Edit], doomed: set[int], dead: set[str]) -> None:
    """Rewrite one graph message: nodes replaced in place, new initializers added, dead ones gone."""
    graph, ir_version = scope.proto, scope.model.proto.ir_version
    old = list(graph.node)
    moved = {o.name: edit.at for edit in edits if edit.keep for node in edit.nodes for o in node.outputs}
    at: dict[int, list[onnx.NodeProto]] = {}
    for edit in sorted(edits, key=lambda e: not e.keep):  # what others at the same place may read comes first
        for place, proto in zip(_places(scope, edit, moved), _export(edit, old, ir_version), strict=True):
            at.setdefault(place, []).append(proto)
    kept: list[onnx.NodeProto] = []
    for position, proto in enumerate(old):
        if position not in doomed:
            kept.append(proto)
        kept.extend(at.get(position, ()))
    gone = dead.union(*(old[p].output for p in doomed)) - {o for node in kept for o in node.output}
    _replace(graph.node, kept)
    _replace(graph.value_info, [v for v in graph.value_info if v.name not in gone])
    _replace(graph.quantization_annotation, [q for q in graph.quantization_annotation if q.tensor_name not in gone])
    for index in reversed(range(len(graph.initializer))):  # not rebuilt: that would copy every weight
        if graph.initializer[index].name in dead:
            del graph.initializer[index]
    new = [tensor for edit in edits for tensor in edit.tensors]
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in new)  # one at a time
    if ir_version <= _INITIALIZERS_ARE_INPUTS_IR and scope.parent is None:
        _replace(graph.input, [v for v in graph.input if v.name not in dead])
        for name, values in new:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))


def _places(scope: Scope, edit: Edit, moved: Mapping[str, int]) -> Iterator[int]:
    """Yield per new node of an edit the old node behind which it stands.

    That is the one it inherits from, if what it reads (``moved``: where edits make values for others) is there by then,
    because the place of a node decides when runtimes run it, while what it reads is still in their caches.
    """
    inner = {o.name for node in edit.nodes for o in node.outputs}
    for node, heir in zip(edit.nodes, edit.heirs or [None] * len(edit.nodes), strict=True):
        reads = [v.name for v in node.inputs]
        if heir is None or not inner.isdisjoint(reads):
            yield edit.at
            continue
        ready = (moved.get(name, scope.producer.get(name, -1) + 1) for name in reads)
        yield min(edit.at, max(heir, *ready))


def _replace(items: Any, wanted: Sequence[Any]) -> None:
    """Make a repeated field hold ``wanted``, which are messages of its own or new ones."""
    del items[:]
    items.extend(wanted)


def _export(edit: Edit, old: Sequence[onnx.NodeProto], ir_version: int) -> Iterator[onnx.NodeProto]:
    """Yield the messages of an edit's new nodes."""
    origin = ", ".join(old[p].name or old[p].output[0] for p in sorted(edit.removed))
    for node, heir in zip(edit.nodes, edit.heirs or [None] * len(edit.nodes), strict=True):
        proto = exported(node)
        if heir is not None:
            said = old[heir].doc_string
            proto.doc_string = said if isinstance(said, str) else printable(said)  # no UTF-8
            proto.metadata_props.extend(p for p in old[heir].metadata_props if p.key != PROVENANCE)
        if ir_version >= _METADATA_IR and origin:
            proto.metadata_props.add(key=PROVENANCE, value=origin)
        yield proto


def exported(node: gs.Node) -> onnx.NodeProto:
    """Return the message of a new node."""
    proto: onnx.NodeProto = OnnxExporter.export_node(node)
    return proto


def stored(values: NDArray[np.float64], data_type: int) -> NDArray[Any]:
    """Return float64 values rounded once to a tensor type.

    Raises:
        OverflowError: a value is not finite in that type.

    """
    with np.errstate(over="ignore"):
        rounded = values.astype(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    known = rounded if rounded.dtype.kind == "f" else rounded.astype(np.float64)  # bfloat16 is not numpy's own
    if not np.all(np.isfinite(known)):
        name = onnx.TensorProto.DataType.Name(data_type)
        raise OverflowError(f"a merged weight or bias is not finite in {name}")
    return rounded
