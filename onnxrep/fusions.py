"""What runtimes fuse by themselves: scales that look free to fold, but whose loss would break a fused kernel.

An exported GELU is ``Div, Erf, Add, Mul, Mul``. ONNX Runtime makes one kernel of the five, unless one of the two
constant scales has been folded into a neighbouring convolution: exact, and slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnxrep.constants import Constants
from onnxrep.graph import DEFAULT_DOMAINS, Scope

_GATES = ("Erf", "Tanh")
_ARITHMETIC = ("Add", "Div", "Mul", "Pow")
_DEEPEST = 6


def claimed(scope: Scope, constants: Constants) -> frozenset[int]:
    """Return the positions of element-wise nodes that belong to an activation which runtimes fuse as a whole."""
    found: set[int] = set()
    for position, node in enumerate(scope.nodes):
        if node.op in _GATES and node.domain in DEFAULT_DOMAINS:
            found.update(_Gelu(scope, constants, position).scales())
    return frozenset(found)


class _Gelu:
    """The surroundings of one Erf (exact GELU) or Tanh (its approximation)."""

    def __init__(self, scope: Scope, constants: Constants, gate: int) -> None:
        self._scope, self._constants, self._gate = scope, constants, gate

    def scales(self) -> Iterator[int]:
        """Yield the scalings and shifts of the activation, if it is one: ``s * x * (1 + gate(.. x ..))``."""
        shift = self._only_reader(self._gate)
        if shift is None or self._scope.nodes[shift].op != "Add" or not self._has_scalar(shift):
            return
        product = self._only_reader(shift)
        if product is None or self._scope.nodes[product].op != "Mul" or self._has_scalar(product):
            return
        inside = self._scope.nodes[shift].outputs[0].name
        other = next((v.name for v in self._scope.nodes[product].inputs if v.name != inside), "")
        scaled = self._scalar_op(other)
        ends = {other} | ({v.name for v in self._scope.nodes[scaled].inputs} if scaled is not None else set())
        between = self._between(ends)
        if between is None:
            return
        yield from (shift, *between)
        if scaled is not None:
            yield scaled
        last = self._only_reader(product)
        if last is not None and self._scope.nodes[last].op in ("Mul", "Div") and self._has_scalar(last):
            yield last

    def _scalar_op(self, value: str) -> int | None:
        """Return the scaling by one number that makes a value."""
        maker = self._scope.producer.get(value)
        scales = maker is not None and self._scope.nodes[maker].op in ("Mul", "Div") and self._has_scalar(maker)
        return maker if scales else None

    def _between(self, ends: set[str]) -> list[int] | None:
        """Return the arithmetic that leads from ``ends`` to the gate; None if something else leads there."""
        found: list[int] = []
        front = [v.name for v in self._scope.nodes[self._gate].inputs]
        for _ in range(_DEEPEST):
            front = [v for v in front if v not in ends and not self._constants.has(v)]
            makers = [self._scope.producer.get(v) for v in front]
            if not makers:
                return found
            above: list[str] = []
            for maker in makers:
                if maker is None or self._scope.nodes[maker].op not in _ARITHMETIC:
                    return None
                found.append(maker)
                above += [v.name for v in self._scope.nodes[maker].inputs]
            front = above
        return None

    def _only_reader(self, position: int) -> int | None:
        """Return the one node that reads a node's output."""
        readers = self._scope.readers.get(self._scope.nodes[position].outputs[0].name, [])
        return readers[0] if len(readers) == 1 else None

    def _has_scalar(self, position: int) -> bool:
        """Whether one operand is a constant with a single element."""
        for value in self._scope.nodes[position].inputs:
            constant = self._constants.get(value.name) if value.name else None
            if constant is not None and math.prod(constant.dims) == 1:
                return True
        return False
