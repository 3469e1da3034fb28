"""Exact exchanges of neighbours that make a linear region cheaper: the same nodes, in another order.

Let R treat all channels alike and let ``W x + b`` read no neighbours. Then ``R(W x + b) = W R(x) + b`` wherever
``R(1) = 1``: an average of real pixels, a copy of one. So the convolution goes to the side with fewer positions:

- behind an AveragePool, GlobalAveragePool or ReduceMean over the image;
- in front of a nearest Resize or Upsample;
- of a Concat of an enlarged image and others, the part that reads the enlarged one goes in front of the Resize:
  ``W [R(x), z] + b = R(W_1 x + b) + W_2 z``.

Weights stay as they are, byte for byte, except where a Concat is taken apart, which cuts them in columns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.graph import DEFAULT_DOMAINS, Edit, stored
from onnxrep.lift import FIRST, Decline, Facts, Lifted
from onnxrep.plan.records import Refusal, Summand
from onnxrep.plan.views import Views
from onnxrep.price import Price, Work
from onnxrep.rates import RATES
from onnxrep.shapes import Dim, enlarges

_PASSING = frozenset("Add BatchNormalization Conv Div Identity Mul Neg Sub".split())
"""Ops that may read no neighbours and have one operand that is data."""

COMMUTED = frozenset("AveragePool GlobalAveragePool ReduceMean Resize Upsample".split())
"""Ops that change places with what reads no neighbours."""

_SUMS = frozenset("Add Mean Sub Sum".split())
_COPYING = frozenset(("asymmetric", "half_pixel", "pytorch_half_pixel"))
"""Coordinate transformations in which, at integer scales, each position copies one that depends on no other size."""

_RESIZE_ATTRIBUTES = frozenset(
    "coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value keep_aspect_ratio_policy mode"
    " nearest_mode antialias".split()
)
_FEWEST_POSITIONS = 4.0
"""Positions that an image of unknown size is taken to have at least, where all of it is averaged."""
_CLEARLY = 0.97
"""Share of the estimated time below which a Concat is taken apart, which takes more kernels."""


@dataclass(frozen=True)
class Commutation:
    """Nodes that change places.

    Attributes:
        root: position of the last node.
        output: the value that it makes.
        sources: the values read.
        removed: positions of the nodes, ascending.
        edit: what takes their place.
        before, after: price per position of the output.
        kind: how it is told from other folds.
    """

    root: int
    output: str
    sources: tuple[str, ...]
    removed: tuple[int, ...]
    edit: Edit
    before: Price
    after: Price
    kind: str = "move"
    rounded: bool = field(default=False, init=False)
    spatial: bool = field(default=True, init=False)
    shared: tuple[int, ...] = field(default=(), init=False)
    summands: tuple[Summand, ...] = field(default=(), init=False)

    @property
    def covered(self) -> tuple[int, ...]:
        """Positions of the nodes whose work is taken over."""
        return self.removed


@dataclass(frozen=True)
class _Run:
    """Nodes in a row that read no neighbours, from the input up, and the value that they read."""

    source: str
    positions: tuple[int, ...]
    lifts: tuple[Lifted, ...]

    @property
    def macs(self) -> float:
        """Multiply-accumulates per position."""
        return sum(lifted.macs for lifted in self.lifts)

    @property
    def inputs(self) -> int:
        """Channels read."""
        return self.lifts[0].branches[0].geometry.inputs

    @property
    def outputs(self) -> int:
        """Channels written."""
        return self.lifts[-1].branches[0].geometry.outputs

    @property
    def biased(self) -> bool:
        """Whether anything is added."""
        return any(lifted.biased for lifted in self.lifts)


class Commuter:
    """Finds the exchanges of one scope. Pure: it proposes, :func:`onnxrep.graph.commit` disposes."""

    def __init__(self, facts: Facts, skipped: Collection[str] = (), provider: str = "cpu") -> None:
        """``skipped``: values that no exchange may make or move; ``provider``: where the model will run."""
        self.views, self._facts, self._scope = Views(facts), facts, facts.scope
        self._skipped, self._rates = frozenset(skipped), RATES[provider]
        self._refusals: dict[tuple[int, str], Refusal] = {}
        self._used: set[int] = set()

    def representative(self, value: str) -> str:
        """Return a name that values share which are certainly equal."""
        return self.views.equals.representative(value)

    def refusals(self) -> list[Refusal]:
        """Return what was left alone although it is close to something that pays; call after the others."""
        return [self._refusals[key] for key in sorted(self._refusals)]

    def early(self) -> Iterator[Commutation]:
        """Yield exchanges to make before anything is folded: a fold would hide them."""
        yield from self._pools(early=True)

    def late(self) -> Iterator[Commutation]:
        """Yield exchanges to make when there is nothing more to fold."""
        yield from self._pools(early=False)
        yield from self._enlargements()

    def _free(self, found: Commutation | None) -> Iterator[Commutation]:
        """Yield an exchange unless it moves what another one does."""
        if found is not None and not self._used & set(found.removed):
            self._used.update(found.removed)
            yield found

    def _note(self, position: int, code: str, detail: str) -> None:
        self._refusals.setdefault((position, code), Refusal(position, code, detail))

    # -- runs -------------------------------------------------------------------------------------------------------

    def _passing(self, position: int) -> Lifted | None:
        """Return the lift of a node that reads no neighbours and one value."""
        node = self._scope.nodes[position]
        if node.op not in _PASSING or node.domain not in DEFAULT_DOMAINS:
            return None
        output = self._scope.outputs_of(position)[0]
        lifted = self.views.lifted((output, FIRST))
        if lifted is None or output in self._skipped or len(lifted.branches) != 1:
            return None
        return lifted if lifted.branches[0].geometry.is_pointwise and not lifted.branches[0].layout else None

    def _reader(self, value: str) -> int | None:
        """Return the one node that reads a value that nothing else needs."""
        readers = self._scope.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self._scope.pinned else None

    def _below(self, value: str) -> _Run | None:
        """Return the run that makes a value, down to its lowest convolution; None without one."""
        found: list[tuple[int, Lifted]] = []
        while self._reader(value) is not None and (position := self._scope.producer.get(value, -1)) >= 0:
            lifted = self._passing(position)
            if lifted is None:
                break
            found.append((position, lifted))
            value = lifted.branches[0].source
        while found and not found[-1][1].anchor:
            found.pop()
        return self._run(found[::-1])

    def _above(self, value: str) -> _Run | None:
        """Return the run that reads a value; None without a convolution in it."""
        found: list[tuple[int, Lifted]] = []
        while (position := self._reader(value)) is not None:
            lifted = self._passing(position)
            if lifted is None:
                break
            found.append((position, lifted))
            value = self._scope.outputs_of(position)[0]
        return self._run(found) if any(lifted.anchor for _, lifted in found) else None

    @staticmethod
    def _run(found: Sequence[tuple[int, Lifted]]) -> _Run | None:
        """Return nodes in a row as a run."""
        if not found:
            return None
        positions, lifts = zip(*found, strict=True)
        return _Run(lifts[0].branches[0].source, positions, lifts)

    # -- averages ---------------------------------------------------------------------------------------------------

    def _pools(self, *, early: bool) -> Iterator[Commutation]:
        """Yield pools to take in front of the convolution that they read."""
        for position, node in enumerate(self._scope.nodes):
            if node.op in COMMUTED - {"Resize", "Upsample"} and node.domain in DEFAULT_DOMAINS and node.inputs:
                run = self._below(str(node.inputs[0].name))
                if run is not None and (not early or self._is_apart(position, run)):
                    yield from self._free(self._pooled(position, run))

    def _is_apart(self, position: int, run: _Run) -> bool:
        """Whether no fold could want a pool and what it reads: no convolution below, no sum above."""
        below = self.views.lifted((run.source, FIRST)) if self._reader(run.source) is not None else None
        readers = self._scope.readers.get(self._scope.outputs_of(position)[0], [])
        sums = any(self._scope.nodes[r].op in _SUMS for r in readers)
        return not sums and (below is None or run.source not in self.views.anchored[FIRST])

    def _pooled(self, position: int, run: _Run) -> Commutation | None:
        """Return the exchange of a pool with the run below it, if it is exact and pays."""
        node, output = self._scope.nodes[position], self._scope.outputs_of(position)[0]
        if output in self._skipped:
            return None
        try:
            taps, step = self._average(node, run)
        except Decline as decline:
            self._note(position, decline.code, decline.detail)
            return None
        before = Price(run.macs * step + taps * run.outputs, len(run.positions) + 1, len(run.positions) + 1)
        after = replace(before, macs=run.macs + taps * run.inputs)
        moved = Work(before.macs, step * (run.inputs + run.outputs) + (step + 1) * run.outputs)
        other = Work(after.macs, (step + 1) * run.inputs + run.inputs + run.outputs)
        if not after.beats(before) or other.seconds(self._rates) > moved.seconds(self._rates):
            self._note(position, "order", "the pool in front of the convolution would read more than it saves")
            return None
        pooled = self._scope.model.fresh(f"{run.source}_pooled")
        first = _copy(node, str(node.inputs[0].name), run.source, pooled)
        nodes = [first, *self._rewired(run, pooled, output)]
        edit = Edit(frozenset((*run.positions, position)), position, nodes, (), (position, *run.positions))
        return Commutation(position, output, (run.source,), (*run.positions, position), edit, before, after)

    def _average(self, node: gs.Node, run: _Run) -> tuple[float, float]:
        """Return how many pixels each result averages, and how many there are per result.

        Raises:
            Decline: the average is not one of real pixels alone, or of other axes than the image's.
        """
        source, output = str(node.inputs[0].name), str(node.outputs[0].name)
        lengths = self.views.lengths((source, FIRST))
        if node.op == "AveragePool":
            lifted = self.views.lifted((output, FIRST))
            taps = float(math.prod(node.attrs.get("kernel_shape") or (1,)))
            if lifted is None and not _counts_real_pixels(node):
                raise Decline("pool", "the pool in front of the convolution: its windows may hang over the edge")
            if lifted is not None and not lifted.averages and run.biased:
                raise Decline("border", "the pool counts zeros at the border, which the convolution's bias is not")
            smaller = self.views.lengths((output, FIRST))
            if lengths and smaller and math.prod(smaller):
                return taps, math.prod(lengths) / math.prod(smaller)
            return taps, float(math.prod(node.attrs.get("strides") or (1,)))
        if node.op == "ReduceMean":
            self._check_reduction(node, len(self._facts.shape(source)))
        pixels = float(math.prod(lengths)) if lengths else _FEWEST_POSITIONS
        return pixels, pixels

    def _check_reduction(self, node: gs.Node, rank: int) -> None:
        """Decline a ReduceMean that averages other axes than all of the image's, or drops them."""
        axes = node.attrs.get("axes")
        if len(node.inputs) > 1 and node.inputs[1].name:
            axes = self._facts.integers(str(node.inputs[1].name), "axes")
        wanted = list(range(2, rank))
        if axes is None or sorted(int(a) % rank for a in axes) != wanted or not node.attrs.get("keepdims", 1):
            raise Decline("order", "the mean in front of the convolution is not over the image alone, axes kept")

    # -- nearest Resize ---------------------------------------------------------------------------------------------

    def _enlargements(self) -> Iterator[Commutation]:
        """Yield convolutions to take in front of the Resize that they read, as a whole or in part."""
        for position, node in enumerate(self._scope.nodes):
            if node.op not in ("Resize", "Upsample") or node.domain not in DEFAULT_DOMAINS:
                continue
            value = self._scope.outputs_of(position)[0]
            reader = self._reader(value)
            if reader is None or value in self._skipped:
                continue
            joins = self._joins(self._scope.nodes[reader], value)
            run = self._above(self._scope.outputs_of(reader)[0] if joins else value)
            if run is None:
                continue
            try:
                scale = self._copies(node, position)
            except Decline as decline:
                self._note(position, decline.code, decline.detail)
                continue
            found = self._split(position, reader, run, scale) if joins else self._enlarged(position, run, scale)
            yield from self._free(found)

    def _joins(self, node: gs.Node, value: str) -> bool:
        """Whether a node is a Concat of channels."""
        rank = len(self._facts.shapes.of(value) or ())
        return node.op == "Concat" and rank > 2 and int(node.attrs["axis"]) % rank == 1

    def _copies(self, node: gs.Node, position: int) -> float:
        """Return how many copies a nearest Resize or Upsample makes of each position.

        Raises:
            Decline: it is no such, or its scales are not known, or the channels are resized.
        """
        attributes, rank = node.attrs, len(self._facts.shape(str(node.inputs[0].name)))
        mode = attributes.get("mode", "nearest")
        if mode != "nearest":
            raise Decline("resize", f"the Resize is {mode}, not nearest")
        names = [str(v.name) for v in node.inputs]
        if node.op == "Upsample":
            given = attributes.get("scales")
            where = names[1] if len(names) > 1 else ""
        else:
            if self._facts.opset < 11 or set(attributes) - _RESIZE_ATTRIBUTES:
                raise Decline("resize", "the Resize has attributes beyond those understood, or is older than opset 11")
            if attributes.get("coordinate_transformation_mode", "half_pixel") not in _COPYING:
                raise Decline("resize", "the Resize has coordinates of another kind")
            given, where = None, names[2] if len(names) == 3 else ""
        if where:
            given = self._facts.constant(where, "scales").floats().reshape(-1).tolist()
        if not given:
            raise Decline("resize", "the Resize is given sizes, not constant scales; they name the channels")
        if len(given) != rank or given[:2] != [1.0, 1.0] or not enlarges(given):
            raise Decline("resize", f"the scales {given} are not whole numbers for the image alone")
        return float(math.prod(given))

    def _enlarged(self, position: int, run: _Run, scale: float) -> Commutation | None:
        """Return the exchange of a Resize with the run that reads it, if it pays."""
        node = self._scope.nodes[position]
        source, output = str(node.inputs[0].name), self._scope.outputs_of(run.positions[-1])[0]
        count = float(len(run.positions) + 1)
        before, after = Price(run.macs, count, count), Price(run.macs / scale, count, count)
        channels = run.inputs + run.outputs
        moved = Work(before.macs, run.inputs / scale + run.inputs + channels)
        other = Work(after.macs, channels / scale + run.outputs / scale + run.outputs)
        if not after.beats(before) or other.seconds(self._rates) > moved.seconds(self._rates):
            self._note(position, "order", "the Resize behind the convolution would write more than it saves")
            return None
        small = self._scope.model.fresh(f"{output}_small")
        last = _copy(node, source, small, output)
        nodes = [*self._rewired(run, source, small), last]
        removed = (position, *run.positions)
        edit = Edit(frozenset(removed), run.positions[-1], nodes, (), (*run.positions, position))
        return Commutation(run.positions[-1], output, (source,), removed, edit, before, after)

    def _split(self, position: int, concat: int, run: _Run, scale: float) -> Commutation | None:
        """Return a convolution of a Concat as the sum of two, one of them in front of the Resize, if that pays."""
        resize, join = self._scope.nodes[position], self._scope.nodes[concat]
        names = [str(v.name) for v in join.inputs]
        value = self._scope.outputs_of(position)[0]
        head, conv = run.lifts[0], self._scope.nodes[run.positions[0]]
        if not head.anchor or conv.op != "Conv" or names.count(value) != 1 or len(names) < 2:
            return None
        if int(conv.attrs.get("group", 1)) != 1:
            self._note(run.positions[0], "order", "the convolution behind the Concat has groups")
            return None
        counts = [self._channels(name) for name in names]
        widths = [c for c in counts if isinstance(c, int)]
        if len(widths) < len(names) or not self._pays_apart(run, widths, names.index(value), scale, value):
            return None
        return self._apart(position, concat, run, names, widths, resize, scale)

    def _channels(self, value: str) -> Dim | None:
        shape = self._facts.shapes.of(value)
        return shape[1] if shape is not None and len(shape) > 1 else None

    def _pays_apart(self, run: _Run, widths: Sequence[int], place: int, scale: float, value: str) -> bool:
        """Whether a sum of two convolutions is clearly cheaper; that needs the number of positions."""
        outputs, width, rest = run.lifts[0].branches[0].geometry.outputs, widths[place], sum(widths) - widths[place]
        lengths = self.views.lengths((value, FIRST))
        if lengths is None or not self._rates.splits:
            return False
        positions, several = float(math.prod(lengths)), len(widths) > 2
        moved = Work((width + rest) * outputs, 3 * width + width / scale + 3 * rest + outputs, 3.0)
        joined = 2 * rest if several else 0
        bytes_ = (width + 2 * outputs) / scale + outputs + joined + rest + 2 * outputs
        other = Work(outputs * (width / scale + rest), bytes_, 4.0 + several - self._rates.fuses_sums)
        if other.seconds(self._rates, positions) < _CLEARLY * moved.seconds(self._rates, positions):
            return True
        position = self._scope.producer[value]
        self._note(position, "order", "taking the Concat apart would cost more than it saves")
        return False

    def _apart(
        self,
        position: int,
        concat: int,
        run: _Run,
        names: Sequence[str],
        widths: Sequence[int],
        resize: gs.Node,
        scale: float,
    ) -> Commutation | None:
        """Write the two convolutions, the Resize between, and their sum."""
        model, root = self._scope.model, run.positions[0]
        conv, output = self._scope.nodes[root], self._scope.outputs_of(root)[0]
        source, value = str(resize.inputs[0].name), self._scope.outputs_of(position)[0]
        place = names.index(value)
        weight = self._facts.constant(str(conv.inputs[1].name), "the weight")
        if output in self._skipped or weight.dims[1] != sum(widths):
            return None
        edges = np.cumsum([0, *widths])
        inside = np.zeros(edges[-1], bool)
        inside[edges[place] : edges[place + 1]] = True
        exact, tensors, parts = {}, [], []
        for mask, word in ((inside, "enlarged"), (~inside, "rest")):
            name = model.fresh(f"{conv.inputs[1].name}_{word}")
            exact[name] = weight.floats()[:, mask]
            tensors.append((name, stored(exact[name], weight.data_type)))
            parts.append(name)
        small, large, other = (model.fresh(f"{output}_{word}") for word in ("small", "enlarged", "rest"))
        nodes: list[gs.Node] = []
        others = [n for n in names if n != value]
        if len(others) > 1:
            joined = model.fresh(f"{other}_in")
            nodes.append(_node("Concat", str(self._scope.nodes[concat].name), others, joined, axis=1))
            others = [str(nodes[-1].outputs[0].name)]
        biases = [str(v.name) for v in conv.inputs[2:] if v.name]
        nodes.append(_node("Conv", str(conv.name), [source, parts[0], *biases], small, **conv.attrs))
        nodes.append(_copy(resize, source, small, large))
        again = model.fresh(str(conv.name)) if conv.name else ""
        nodes.append(_node("Conv", again, [others[0], parts[1]], other, **conv.attrs))
        nodes.append(_node("Add", model.fresh(f"{conv.name}_sum") if conv.name else "", [other, large], output))
        edit = Edit(frozenset((position, concat, root)), root, nodes, tensors, exact=exact)
        width, rest = widths[place], sum(widths) - widths[place]
        outputs = run.lifts[0].branches[0].geometry.outputs
        before = Price(float(outputs * (width + rest)), 3.0, 3.0)
        after = Price(outputs * (width / scale + rest), float(len(nodes)), float(len(nodes)))
        sources = tuple(dict.fromkeys((source, *(n for n in names if n != value))))
        return Commutation(root, output, sources, tuple(sorted((position, concat, root))), edit, before, after)

    # -- edits ------------------------------------------------------------------------------------------------------

    def _rewired(self, run: _Run, source: str, output: str) -> Iterator[gs.Node]:
        """Yield the nodes of a run between two other values."""
        old, new = run.source, source
        for position in run.positions:
            node = self._scope.nodes[position]
            last = position == run.positions[-1]
            made = output if last else self._scope.model.fresh(self._scope.outputs_of(position)[0])
            yield _copy(node, old, new, made)
            old, new = self._scope.outputs_of(position)[0], made


def _counts_real_pixels(node: gs.Node) -> bool:
    """Whether a padded AveragePool divides by the number of real pixels, of which each window has one."""
    known = {"auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"}
    kernel, pads = list(node.attrs.get("kernel_shape") or ()), list(node.attrs.get("pads") or ())
    plain = not set(node.attrs) - known and node.attrs.get("auto_pad", "NOTSET") in ("", "NOTSET")
    plain &= not node.attrs.get("ceil_mode", 0) and not node.attrs.get("count_include_pad", 0)
    dilated = any(d != 1 for d in node.attrs.get("dilations") or ())
    plain &= len(pads) == 2 * len(kernel) > 0
    return plain and not dilated and all(p < k for p, k in zip(pads, kernel * 2, strict=True))


def _node(op: str, name: str, inputs: Sequence[str], output: str, **attributes: Any) -> gs.Node:
    """Return a new node."""
    return gs.Node(op, name, attributes, [gs.Variable(i) for i in inputs], [gs.Variable(output)])


def _copy(node: gs.Node, old: str, new: str, output: str) -> gs.Node:
    """Return a node that reads ``new`` where the given one reads ``old``, and makes another value."""
    inputs = [new if str(v.name) == old else str(v.name) for v in node.inputs]
    return _node(node.op, str(node.name), inputs, output, **node.attrs)
