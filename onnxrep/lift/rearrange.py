"""Chains of ops that only move data: channel shuffles, pixel unshuffles, images set into a border of constants.

Exporters write one such thing in many ways (Reshape, Transpose, ScatterND, Concat with constants ...). What a chain
does is found by running it on an image that holds its own indices, once for each of some sizes, and twice to tell what
comes from the image from what is constant. If that is a map, and the same one at all sizes, the chain is lifted as it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxrep.constants import EVALUABLE, evaluate
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.lattice import Array, Form
from onnxrep.lift.base import Branch, Facts, Lifted
from onnxrep.lift.indices import Sample, fitted
from onnxrep.lift.pad import frame
from onnxrep.shapes import Dim, Known, Shape, Size, assign

_DATA_INPUTS: Mapping[str, tuple[int, ...] | None] = {
    "Concat": None,
    "DepthToSpace": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Pad": (0,),
    "Reshape": (0,),
    "ScatterND": (0, 2),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
}
"""Ops that only move data, with the inputs that they move; None for all."""

_FREE = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
"""Ops that start no kernel of their own."""

_PLAIN = frozenset((*_FREE, "Transpose"))
"""Ops that :mod:`onnxrep.lift.movement` lifts one by one."""

_PICKING = frozenset(("Identity", "Slice", "Split"))
"""Ops that :mod:`onnxrep.lift.channels` lifts one by one."""

_INFINITE = 2**31 - 1
_LONGEST = 64
_LARGEST = 1 << 22
"""Elements of the image of indices."""
_LARGEST_REACH = 64
"""A chain with larger numbers in it than this may change its ways at a size that is not tried."""
_BOUNDS = ("starts", "ends", "pads", "split")
_WITHOUT_BOUNDS = frozenset((*_PLAIN, "Concat", "DepthToSpace", "SpaceToDepth"))
"""Ops that do the same at every size at which they run."""
_STEADY = frozenset("Shape Gather Slice Concat Squeeze Unsqueeze Cast Identity Reshape Add Sub Range Expand".split())
_STEADY |= frozenset(("CastLike", "ConstantOfShape", "Neg", "ScatterND", "Transpose"))
"""Ops that make nothing but sums of sizes and constants."""
_MOST_SERVANTS = 512
_SOURCES = 3
_BATCHES = (1, 2)
_LENGTHS = (1, 2, 3, 5, 7, 24, 36)
_ROUND = 24
"""What most steps divide."""

Values = dict[str, NDArray[Any]]


def is_mover(node: gs.Node) -> bool:
    """Whether a node only moves data."""
    moves = node.op in _DATA_INPUTS and node.domain in DEFAULT_DOMAINS
    return moves and node.attrs.get("reduction", "none") == "none"


def _takes_no_data(node: gs.Node, values: Collection[str]) -> bool:
    """Whether a node that reads some values takes their sizes or their type only."""
    return node.op == "Shape" or (node.op == "CastLike" and node.inputs[0].name not in values)


def serves(position: int, inside: set[int], facts: Facts) -> bool:
    """Whether a node takes the sizes (or type) of a value, or of a part of it, for nodes in ``inside`` alone."""
    scope = facts.scope
    first = scope.nodes[position]
    data = {v.name for v in first.inputs if not facts.is_constant(v.name)}
    seen, waiting = {position}, [position]
    sized = {position} if _takes_no_data(first, data) else set[int]()
    while waiting and len(seen) < _MOST_SERVANTS:
        current = waiting.pop()
        node = scope.nodes[current]
        outputs = scope.outputs_of(current)
        users = {r for o in outputs for r in scope.readers.get(o, ())}
        if not users or any(o in scope.pinned for o in outputs) or node.domain not in DEFAULT_DOMAINS:
            return False
        if current in sized:
            users -= inside
            sized |= users
        else:
            sized |= {u for u in users if _takes_no_data(scope.nodes[u], outputs)}
        if node.op not in EVALUABLE or (current not in sized and (node.op not in _DATA_INPUTS or users & inside)):
            return False
        waiting += users - seen
        seen |= users
    return not waiting


@dataclass(frozen=True)
class _Chain:
    """Nodes between a source and a value, ascending."""

    source: str
    value: str
    positions: tuple[int, ...]


class Rearranger:
    """Recognises chains of moving ops in one scope."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._scope, self._shapes = facts, facts.scope, facts.shapes
        self._free_of_data: dict[str, bool] = {}

    def lift(self, value: str, plain: Lifted | None) -> Lifted | None:
        """Lift the chain that ends in ``value``, or return None if there is none worth it.

        Args:
            value: the last op's output.
            plain: what the lift of the last op alone gave; preferred for Reshapes and Transposes alone.
        """
        shape, scope = self._shapes.of(value), self._scope
        readers = [scope.nodes[r] for r in scope.readers.get(value, ()) if scope.nodes[r].op != "Shape"]
        if shape is None or len(shape) < 3 or (readers and all(map(is_mover, readers))):
            return None
        for chain in self._chains(value):
            ops = {scope.nodes[p].op for p in chain.positions}
            if plain is not None and (len(chain.positions) == 1 or ops <= _PICKING):
                continue
            found = self._recognized(chain)
            idle = plain is not None and ops <= _PLAIN and found is not None and found.branches[0].geometry.is_diagonal
            if found is not None and not idle:
                return found
        return None

    def _chains(self, value: str) -> Iterator[_Chain]:
        """Yield chains that end in a value and have one source, the longest first."""
        found: list[_Chain] = []
        open_ = {value}
        positions: list[int] = []
        while open_ and len(positions) < _LONGEST:
            top = max(open_, key=lambda name: self._scope.producer.get(name, -1))
            position = self._scope.producer.get(top, -1)
            if position < 0 or not is_mover(self._scope.nodes[position]):
                break
            node = self._scope.nodes[position]
            positions.append(position)
            open_ -= {v.name for v in node.outputs}
            open_ |= {n for n in self._moved_inputs(node) if not self._is_free_of_data(n)}
            if len(open_) == 1:
                found.append(_Chain(next(iter(open_)), value, tuple(sorted(positions))))
        rank = len(self._shapes.of(value) or ())
        fitting = [c for c in reversed(found) if len(self._shapes.of(c.source) or ()) == rank]
        yield from fitting[:_SOURCES]

    @staticmethod
    def _moved_inputs(node: gs.Node) -> list[str]:
        """Return the inputs that a node moves to its output."""
        wanted = _DATA_INPUTS[node.op]
        return [v.name for i, v in enumerate(node.inputs) if v.name and (wanted is None or i in wanted)]

    def _is_free_of_data(self, name: str) -> bool:
        """Whether a value depends on constants and on the sizes of data only."""
        stack = [name]
        known = self._free_of_data
        while stack:
            top = stack[-1]
            if top in known:
                stack.pop()
                continue
            if self._facts.is_constant(top):
                known[top] = True
                continue
            position = self._scope.producer.get(top)
            node = None if position is None else self._scope.nodes[position]
            if node is None or node.op not in EVALUABLE or node.domain not in DEFAULT_DOMAINS:
                known[top] = False
                continue
            if node.op == "Shape":
                known[top] = True
                continue
            names = [v.name for v in node.inputs if v.name][: 1 if node.op == "CastLike" else None]
            missing = [n for n in names if n not in known]
            if any(known.get(n) is False for n in names) or not missing or len(stack) > _LONGEST:
                known[top] = bool(names) and not missing and all(known[n] for n in names)
                continue
            stack.append(missing[0])
        return known[name]

    # -- running ----------------------------------------------------------------------------------------------------

    def _recognized(self, chain: _Chain) -> Lifted | None:
        """Return a chain as a map if it is the same one at every size that was tried."""
        before = self._shapes.of(chain.source)
        if before is None or not isinstance(before[1], int):
            return None
        dynamic = [a for a in range(len(before)) if not isinstance(before[a], int)]
        reach = self._reach(chain) if dynamic else 0
        if reach is None or reach > _LARGEST_REACH:
            return None
        samples = [s for known in _environments(before) for s in [self._run(chain, before, known)] if s is not None]
        far = [self._run(chain, before, known) for known in _far(before, reach, dict.fromkeys(dynamic, range(1)))]
        samples += [s for s in far if s is not None]
        if (len(samples) < 2 and dynamic) or not samples or None in far:
            return None
        found = fitted(samples)
        if found is not None and dynamic:  # between two results of a stride lie sizes that are not told apart yet
            remainders = {axis: range(1, step) for axis, step in enumerate(found[0].stride, 2)}
            between = _far(before, reach, remainders)
            samples += [s for known in between for s in [self._run(chain, before, known)] if s is not None]
            found = fitted(samples)
        if found is None:
            return None
        geometry, map_, border = found
        *most, last = chain.positions
        inner = self._scope.serving(most, last, lambda reader, inside: serves(reader, inside, self._facts))
        ops = [self._scope.nodes[p].op for p in (*inner, last)]

        def numbers() -> Form:
            return frame(map_, border)

        return Lifted(
            (Branch(chain.source, geometry),),
            numbers,
            kernels=sum(op not in _FREE for op in ops),
            nodes=len(ops),
            biased=bool(np.any(border)),
            within=tuple(inner),
        )

    def _run(self, chain: _Chain, shape: Shape, known: Known) -> Sample | None:
        """Run a chain on indices; None if it does not run at this size."""
        try:
            before = tuple(_number(d, known) for d in shape)
        except KeyError:
            return None
        count = math.prod(before)
        if min(before, default=1) < 1 or count > _LARGEST:  # two negative sizes have a positive product
            return None
        plain = np.arange(count, dtype=np.float64).reshape(before)
        sizes: Values = {}
        first = self._moved(chain, plain, known, sizes)
        second = None if first is None else self._moved(chain, plain + count, known, sizes)
        if first is None or second is None or first.ndim != len(before) or not first.size:
            return None
        constant = second == first
        if not np.all(np.isfinite(first)) or not np.all(constant | (second == first + count)):
            return None
        if not np.all(constant | ((first >= 0) & (first < count) & (first % 1 == 0))):
            return None
        indices = np.where(constant, -1, first).astype(np.int64)
        return Sample(before, first.shape, indices, np.where(constant, first, 0.0))

    def _moved(self, chain: _Chain, image: Array, known: Known, sizes: Values) -> NDArray[Any] | None:
        """Run a chain on an image; ``sizes`` holds what was computed of what depends on no data."""
        values: Values = {chain.source: image}
        for position in chain.positions:
            feeds: Values = {}
            for value in self._scope.nodes[position].inputs:
                if not value.name:
                    continue
                found = values.get(value.name)
                if found is None:
                    found = self._parameter(value.name, known, sizes, values)
                if found is None:
                    return None
                feeds[value.name] = found
            values.update(evaluate(self._scope.proto.node[position], feeds, self._facts.opset))
        return values.get(chain.value)

    def _parameter(self, name: str, known: Known, sizes: Values, values: Values) -> NDArray[Any] | None:
        """Return a value that depends on constants and sizes only; numbers in float64.

        ``values``: those of the chain that are there already, whose sizes count as known.
        """
        stack = [name]
        while stack:
            top = stack[-1]
            if top in sizes:
                stack.pop()
                continue
            found = self._leaf(top, known, values)
            if found is not None:
                sizes[top] = found
                continue
            position = self._scope.producer.get(top)
            if position is None or not self._is_free_of_data(top) or len(stack) > _LONGEST:
                return None
            node = self._scope.nodes[position]
            names = [v.name for v in node.inputs if v.name]
            if node.op == "CastLike":
                sizes.setdefault(names[1], np.zeros((), np.float64))
            missing = [n for n in names if n not in sizes]
            if missing:
                if node.op == "Shape":
                    return None
                stack.append(missing[0])
                continue
            results = evaluate(self._scope.proto.node[position], {n: sizes[n] for n in names}, self._facts.opset)
            if top not in results:
                return None
            sizes.update({n: _wide(v) for n, v in results.items()})
        return sizes[name]

    def _leaf(self, name: str, known: Known, values: Values) -> NDArray[Any] | None:
        """Return a constant, or the dims of a value whose sizes are known."""
        if self._facts.is_constant(name):
            constant = self._facts.constants.get(name)
            return None if constant is None or math.prod(constant.dims) > _LARGEST else _wide(constant.values())
        position = self._scope.producer.get(name)
        if position is None or self._scope.nodes[position].op != "Shape":
            return None
        node = self._scope.nodes[position]
        if node.inputs[0].name in values:
            whole = values[node.inputs[0].name].shape
            return np.array(whole[slice(node.attrs.get("start", 0), node.attrs.get("end"))], np.int64)
        vector = self._shapes.vector(name)
        if vector is None:
            return None
        try:
            return np.array([_number(d, known) for d in vector], np.int64)
        except KeyError:
            return None

    def _reach(self, chain: _Chain) -> int | None:
        """Return a length behind which a chain cannot change its ways; None if there may be none.

        Ops that only reshape have no such length. Where the others read, write or cut is a sum of sizes and constants.
        """
        total = 0
        seen: set[str] = set()
        stack: list[str] = []
        for position in chain.positions:
            node = self._scope.nodes[position]
            if node.op in _WITHOUT_BOUNDS:
                continue
            total += sum(abs(int(v)) for key in _BOUNDS for v in node.attrs.get(key) or () if abs(int(v)) < _INFINITE)
            moved = self._moved_inputs(node)
            stack += [v.name for v in node.inputs if v.name and v.name not in moved]
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            if self._facts.is_constant(name):
                constant = self._facts.constants.get(name)
                if constant is None:
                    return None
                if np.issubdtype(constant.values().dtype, np.integer):
                    values = np.abs(constant.values().astype(np.float64))
                    total += int(np.max(values[values < _INFINITE], initial=0))
                continue
            maker = self._scope.nodes[self._scope.producer[name]] if name in self._scope.producer else None
            if maker is None or maker.op not in _STEADY:
                return None
            if maker.op != "Shape":
                stack += [v.name for v in maker.inputs if v.name]
        return total


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers in float64; integers and truth values stay."""
    return values if values.dtype.kind in "iub" else np.asarray(values, np.float64)


def _environments(shape: Shape) -> Iterator[Known]:
    """Yield sizes for those that are only named, such that the source gets various ones."""
    open_ = [a for a in range(2, len(shape)) if isinstance(shape[a], Size)]
    for batch in _BATCHES if isinstance(shape[0], Size) else (1,):
        for index in range(len(_LENGTHS) if open_ else 1):
            yield _known(shape, {0: batch, **{a: _LENGTHS[(index + k) % len(_LENGTHS)] for k, a in enumerate(open_)}})


def _far(shape: Shape, reach: int, more: Mapping[int, range]) -> Iterator[Known]:
    """Yield sizes of which one at a time is larger than twice the reach of a chain.

    ``more``: per axis by how much larger still.
    """
    far = _ROUND * (2 * reach // _ROUND + 1)
    open_ = [a for a in range(len(shape)) if a != 1 and isinstance(shape[a], Size)]
    for axis in open_:
        for extra in more.get(axis, ()):
            yield _known(shape, {a: far + extra if a == axis else _ROUND if a else 1 for a in open_})


def _known(shape: Shape, wanted: Mapping[int, int]) -> Known:
    """Return sizes for which a shape has the wanted lengths."""
    known: Known = {}
    for axis, length in wanted.items():
        assign(shape[axis], length, known)
    return known


def _number(dim: Dim, known: Known) -> int:
    """Return a size; KeyError if it is named by something that is not known."""
    return dim if isinstance(dim, int) else dim.number(known)
