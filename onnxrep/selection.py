"""Which regions a caller lets fold: by the names of their nodes, by kind, or as a function of the caller says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from onnxrep.commute import Commutation
from onnxrep.errors import UsageError
from onnxrep.escape import printable
from onnxrep.graph import Scope
from onnxrep.plan import Region
from onnxrep.report import records

KINDS = ("merge", "fuse", "move")
"""What a fold can be; see :class:`onnxrep.report.records.Fold`."""


@dataclass(frozen=True)
class Selection:
    """What may fold. Patterns are those of :mod:`fnmatch`; they match a node's name or the name of an output of it.

    Attributes:
        only: a region folds only if a node of it matches one of these; empty for all.
        exclude: nodes that match one of these stay as they are; what is around them folds without them.
        kinds: of :data:`KINDS`; empty for all.
        select: is given each fold, proven and not yet made, and says whether it may be made; None for all.

    Raises:
        UsageError: there is no such kind.
    """

    only: Collection[str] = ()
    exclude: Collection[str] = ()
    kinds: Collection[str] = ()
    select: Callable[[records.Fold], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("only", "exclude", "kinds"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} must be a list of texts, not one text")
        wrong = sorted(set(self.kinds) - set(KINDS))
        if wrong:
            raise UsageError(f"no such kind of fold: {', '.join(wrong)}; there are {', '.join(KINDS)}")

    def excluded(self, scope: Scope) -> dict[str, str]:
        """Return the values of a scope whose nodes stay as they are, and why."""
        found = {}
        for position in range(len(scope.nodes) if self.exclude else 0):
            pattern = _match(self.exclude, _names(scope, position))
            if pattern is not None:
                why = f"{scope.node_label(position)} was excluded by {printable(pattern)!r}"
                found.update(dict.fromkeys(scope.outputs_of(position), why))
        return found

    def objection(self, scope: Scope, region: Region | Commutation) -> str:
        """Say why a region may not fold; empty if it may."""
        output = printable(region.output)
        names = [name for position in region.covered for name in _names(scope, position)]
        if self.kinds and region.kind not in self.kinds:
            return f"{output} is a {region.kind}; only {' and '.join(self.kinds)} was asked for"
        if self.only and not any(_match(self.only, [name]) for name in names):
            return f"no node of {output} matches {' or '.join(map(repr, map(printable, self.only)))}"
        pattern = _match(self.exclude, names)
        return f"a node of {output} was excluded by {printable(pattern)!r}" if pattern is not None else ""

    def unmatched(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Return the patterns that match no node of a model, bodies included: most likely a slip of the pen."""
        patterns = dict.fromkeys((*self.only, *self.exclude))
        names = [name for node in _all_nodes(model.graph.node) for name in (node.name, *node.output) if name]
        return tuple(p for p in patterns if not any(fnmatchcase(name, p) for name in names))


EVERYTHING = Selection()
"""No region is refused."""


def _names(scope: Scope, position: int) -> list[str]:
    """Return the names by which a node goes."""
    name = str(scope.nodes[position].name)
    return [n for n in (name, *scope.outputs_of(position)) if n]


def _match(patterns: Iterable[str], names: Collection[str]) -> str | None:
    """Return the first pattern that matches one of some names."""
    return next((p for p in patterns if any(fnmatchcase(name, p) for name in names)), None)


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their bodies."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            stack.extend(attribute.g.node)
            for graph in attribute.graphs:
                stack.extend(graph.node)
