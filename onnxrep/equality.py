"""Values that are equal because they are made alike: two Casts of one value, or an Identity and what it copies.

Exporters cast an input once per branch; the branches then read different names for one value.
"""

from __future__ import annotations

from functools import cached_property

from onnx import AttributeProto

from onnxrep.graph import DEFAULT_DOMAINS, Scope

_IMPURE = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout If Loop Scan".split()
)


class EqualValues:
    """Maps each value of a scope to the first one that is made in the same way from the same values."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def representative(self, value: str) -> str:
        """Return the first value that is certainly equal to this one."""
        return self._first.get(value, value)

    @cached_property
    def _first(self) -> dict[str, str]:
        first: dict[str, str] = {}
        made: dict[tuple[str, bytes, tuple[str, ...], int], tuple[str, ...]] = {}
        for node in self._scope.proto.node:
            if node.domain not in DEFAULT_DOMAINS or node.op_type in _IMPURE or not node.input:
                continue
            if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
                continue
            inputs = tuple(first.get(name, name) for name in node.input)
            outputs = tuple(node.output)
            if node.op_type == "Identity":
                first[outputs[0]] = inputs[0]
                continue
            attributes = b"".join(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
            known = made.setdefault((node.op_type, attributes, inputs, len(outputs)), outputs)
            if known is not outputs:
                first.update((mine, theirs) for mine, theirs in zip(outputs, known, strict=True) if mine and theirs)
        return first
