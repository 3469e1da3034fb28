"""Discrete choices in a model: where an error within rounding may become a jump."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.proof.twin import FLOATS

DISCRETE = frozenset(
    "ArgMax ArgMin TopK NonMaxSuppression Greater GreaterOrEqual Less LessOrEqual Equal Floor Ceil Round Sign Hardmax"
    " NonZero Unique QuantizeLinear DynamicQuantizeLinear Cast".split()
)
"""Ops at which an error within rounding may become a jump."""


@dataclass(frozen=True)
class Choices:
    """The discrete ops of a model: where an error within rounding may become a jump.

    Attributes:
        behind: outputs that depend on such an op.
        causes: float values that feed such ops, present in both models.
        results: what such ops make, present in both models.
        complete: whether every value that feeds such an op can be watched.

    """

    behind: frozenset[str] = frozenset()
    causes: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    complete: bool = True


def discrete_choices(before: onnx.ModelProto, after: onnx.ModelProto) -> Choices:
    """Find the discrete ops that outputs depend on. What depends on sizes alone is no choice."""
    outputs = {v.name for v in before.graph.output}
    inputs = {v.name for v in before.graph.input}
    common = {o for n in before.graph.node for o in n.output} & {o for n in after.graph.node for o in n.output}
    fixed = {t.name for t in before.graph.initializer}
    tainted: set[str] = set()
    causes: list[str] = []
    results: list[str] = []
    complete = True
    for node in before.graph.node:
        read = [i for i in node.input if i]
        standard = node.domain in DEFAULT_DOMAINS
        if all(i in fixed for i in read) or (standard and node.op_type in ("Shape", "Size")):
            fixed.update(node.output)
            continue
        discrete = standard and node.op_type in DISCRETE
        if discrete and node.op_type == "Cast":
            discrete = next((a.i for a in node.attribute if a.name == "to"), 0) not in FLOATS
        if discrete:
            watched = [i for i in read if i not in fixed and i not in tainted]
            complete &= all(i in common or i in inputs for i in watched)
            causes += [i for i in watched if i in common]
            results += [o for o in node.output if o in common]
        if discrete or any(i in tainted for i in read):
            tainted.update(node.output)
    behind = frozenset(outputs & tainted)
    if not behind:
        return Choices()
    return Choices(behind, tuple(dict.fromkeys(causes)), tuple(dict.fromkeys(results)), complete)
