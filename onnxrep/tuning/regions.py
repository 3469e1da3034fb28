"""Regions of a model as models of their own, as they were and as they could become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxrep.escape import printable
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.proof.parts import behind, part, places_of, read
from onnxrep.rates import RATES
from onnxrep.report.records import Fold

Values = Mapping[str, NDArray[Any]]

LEFT, PARTIAL, FOLDED = "left", "partial", "folded"

_CLEAR_SHARE = 0.95
"""Share of its time that a region may take by estimate, for the price to be trusted."""
_ACTIVATIONS = frozenset("Relu LeakyRelu Clip Sigmoid HardSigmoid Tanh HardSwish Elu".split())
"""Ops that ONNX Runtime fuses with the convolution in front: they are timed with the region."""


def is_unclear(fold: Fold, provider: str) -> bool:
    """Whether a fold may save no time on a provider.

    Where little is saved by estimate, other things decide; depthwise and dilated kernels have slow paths of their own
    in runtimes, which depend on the machine. Without rates that were measured, no estimate is trusted.
    """
    before, after = fold.seconds
    convolutions = [e for e in fold.emitted if e.kernel_shape]
    plain = all(e.group == 1 and max(e.dilations, default=1) == 1 for e in convolutions)
    return not RATES[provider].measured or not plain or after > _CLEAR_SHARE * before


@dataclass(frozen=True)
class Spot:
    """Where a fold is: the values between which it lies, all of the main graph.

    Attributes:
        fold: the record.
        output: the value that it makes.
        end: the same, or what an activation behind it makes of it.
        reads: values of the original from which the region makes its output.
        inner: values that the original makes on the way, the output among them.
    """

    fold: Fold
    output: str
    end: str
    reads: tuple[str, ...]
    inner: tuple[str, ...]


def spots(before: onnx.ModelProto, after: onnx.ModelProto, folds: Sequence[Fold]) -> list[Spot]:
    """Return where folds of the main graph are; those that cannot be told apart by their printed names are left out."""
    made = {printable(o): o for model in (before, after) for n in model.graph.node for o in n.output}
    made |= {printable(v.name): v.name for v in before.graph.input}
    known = [f for f in folds if not f.scope and f.output in made and all(s in made for s in f.sources)]
    places = places_of(before, after, [(made[f.output], [made[s] for s in f.sources]) for f in known])
    found = []
    for fold in known:
        output = made[fold.output]
        nodes, _ = behind(before.graph, output, set(places[output]))
        if nodes:
            inner = tuple(o for n in nodes for o in n.output if o)
            found.append(Spot(fold, output, _end(before, after, output), tuple(places[output]), inner))
    return found


def _end(before: onnx.ModelProto, after: onnx.ModelProto, output: str) -> str:
    """Return what the one activation that reads a value makes, in both models, or the value itself."""
    ends = []
    for model in (before, after):
        if any(v.name == output for v in model.graph.output):
            return output
        readers = [n for n in model.graph.node if output in read(n)]
        one = readers[0] if len(readers) == 1 else onnx.NodeProto()
        if one.op_type not in _ACTIVATIONS or one.domain not in DEFAULT_DOMAINS or one.input[0] != output:
            return output
        ends.append(one.output[0])
    return ends[0] if ends[0] == ends[1] else output


def cut(model: onnx.ModelProto, spot: Spot, values: Values) -> onnx.ModelProto | None:
    """Return the model between what a region reads and its end, or None if it reads something else too."""
    given = {name: values[name] for name in spot.reads}
    nodes, _ = behind(model.graph, spot.end, given.keys())
    if not nodes or _strays(model, nodes, given.keys()):
        return None
    return part(model, spot.end, given)


def _strays(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], given: Set[str]) -> bool:
    """Whether nodes read inputs of the model that are not given."""
    inputs = {v.name for v in model.graph.input} - {t.name for t in model.graph.initializer} - given
    return any(name in inputs for node in nodes for name in read(node))
