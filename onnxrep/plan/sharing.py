"""What several convolutions read: each may take over its own copy if all of them do.

A BatchNormalization in front of the three projections of an attention has three readers. It vanishes if every one of
them absorbs it; if one cannot, it must stay and nothing is won. The same holds for a whole map that reads no
neighbours: an adapter of two convolutions and a residual.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from typing import Protocol

from onnxrep.graph import Scope
from onnxrep.lift import Lifted
from onnxrep.plan.views import View, Views

_LONGEST = 16


class _Shift(Enum):
    """What scales and shifts behind a value add to it."""

    NONE = auto()
    STAYS = auto()
    """What they do takes several ops, of which one may stay to add what a border of zeros must not get."""
    VANISHES = auto()
    """There is one op, which vanishes as a whole or not at all."""


def find_shared(views: Views, apart: Collection[str] = ()) -> tuple[dict[View, float], set[View]]:
    """Return the views with several readers that all of them can absorb, with the share that each bears.

    And the views of the maps among those that are more than scales and shifts. ``apart``: values in which no such map
    may end.
    """
    found: dict[View, float] = {}
    whole: set[View] = set()
    for value, readers in views.scope.readers.items():
        if len(set(readers)) < 2 or value in views.scope.pinned:
            continue
        for layout in views.layouts:
            view = (value, layout)
            shift, inner = _movable(views, view), set[View]()
            if shift is None and value not in apart:
                shift, inner = _whole(views, view)
            shares = None if shift is None else _absorbed(views, view, shift, 0)
            if shares is not None:
                found.update(shares)
                whole |= inner
    return found, whole


class Takes(Protocol):
    """What is known of a region when it has been planned."""

    @property
    def removed(self) -> tuple[int, ...]:
        """See :class:`~onnxrep.plan.records.Region`."""

    @property
    def sources(self) -> tuple[str, ...]:
        """See :class:`~onnxrep.plan.records.Region`."""

    @property
    def shared(self) -> tuple[int, ...]:
        """See :class:`~onnxrep.plan.records.Region`."""


def shared_goes(region: Takes, scope: Scope, regions: Collection[Takes]) -> bool:
    """Whether all that a region takes over together with others goes once the given regions have been replaced."""
    removed = {p for each in regions for p in each.removed}
    read = {value for each in regions for value in each.sources}
    gone = set(removed)
    for position in sorted(region.shared, reverse=True):
        outputs = set(scope.outputs_of(position))
        users = {r for o in outputs for r in scope.readers.get(o, ())}
        if position in removed or outputs & (scope.pinned | read) or not users <= gone:
            return False
        gone.add(position)
    return True


def _is_carried(lifted: Lifted) -> bool:
    """Whether an op is one that readers can take over: a movement, or a scale or shift of one operand."""
    return len(lifted.branches) == 1 and not lifted.anchor and (lifted.moves or lifted.branches[0].geometry.is_diagonal)


def _movable(views: Views, view: View) -> _Shift | None:
    """Return what the scales and shifts behind a view add; None if there is no scale or shift behind it."""
    biased, kernels = False, 0.0
    for count in range(_LONGEST):
        lifted = views.lifted(view)
        if lifted is None or view[0] in views.scope.pinned or (count and not _is_read_once(views, view)):
            break
        joined = _rejoined(views, view, lifted)
        if joined is not None:
            view, shifts = joined
            biased, kernels = biased or shifts, kernels + 1
            continue
        if not _is_carried(lifted):
            break
        biased |= lifted.biased
        kernels += 0 if lifted.moves else lifted.kernels
        view = lifted.branches[0].view(view[1])
    if _folds_backward(views, view):
        return None
    if not kernels:
        return None
    return _Shift.NONE if not biased else _Shift.STAYS if kernels > 1 else _Shift.VANISHES


def _whole(views: Views, view: View) -> tuple[_Shift | None, set[View]]:
    """Return the views of the smallest map of one value that ends in a view and has a convolution, and what it adds.

    It reads no neighbours and nobody needs what is inside; None and no views if there is no such map.
    """
    open_, inside, positions = {view}, set[View](), set[int]()
    anchored = biased = False
    while len(open_) > 1 or not anchored:
        top = max(open_, key=lambda v: views.position(v[0]))
        lifted = views.lifted(top)
        if lifted is None or len(inside) == _LONGEST or not all(b.geometry.is_pointwise for b in lifted.branches):
            return None, set()
        if top[0] in views.scope.pinned or (inside and not positions.issuperset(views.scope.readers[top[0]])):
            return None, set()
        inside.add(top)
        positions.add(views.position(top[0]))
        open_ = (open_ - {top}) | {branch.view(top[1]) for branch in lifted.branches}
        anchored, biased = anchored or bool(lifted.anchor), biased or lifted.biased
    return _Shift.VANISHES if biased else _Shift.NONE, inside


def _is_read_once(views: Views, view: View) -> bool:
    """Whether one node reads a value, and nothing else needs it."""
    return view[0] not in views.scope.pinned and len(set(views.scope.readers.get(view[0], ()))) == 1


def _rejoined(views: Views, view: View, lifted: Lifted) -> tuple[View, bool] | None:
    """Return the one value of which a sum adds scaled and shifted copies, and whether anything shifts."""
    if len(lifted.branches) < 2 or not all(b.geometry.is_diagonal and b.layout is None for b in lifted.branches):
        return None
    chains: list[list[str]] = []
    shifts = lifted.biased
    for branch in lifted.branches:
        chain = [branch.source]
        while len(chain) < _LONGEST and _is_read_once(views, (chain[-1], view[1])):
            below = views.lifted((chain[-1], view[1]))
            if below is None or below.moves or not _is_carried(below):
                break
            shifts |= below.biased
            chain.append(below.branches[0].source)
        chains.append(chain)
    common = next((v for v in chains[0] if all(v in chain for chain in chains[1:])), None)
    return None if common is None else ((common, view[1]), shifts)


def _folds_backward(views: Views, view: View) -> bool:
    """Whether a value rests on a convolution and is read once: what follows it folds into that one instead."""
    return view[0] in views.anchored.get(view[1], ()) and _is_read_once(views, view)


def _absorbed(views: Views, view: View, shift: _Shift, depth: int) -> dict[View, float] | None:
    """Return the shared views from here up to the convolutions that read them, or None if a reader cannot absorb."""
    readers = sorted(set(views.scope.readers.get(view[0], ())))
    shares: dict[View, float] = {view: 1.0 / len(readers)} if len(readers) > 1 else {}
    for reader in readers:
        outputs = views.scope.outputs_of(reader)
        if len(outputs) != 1 or depth > _LONGEST:
            return None
        behind = _through_reader(views, view, outputs[0], shift, depth)
        if behind is None:
            return None
        shares.update(behind)
    return shares


def _through_reader(views: Views, view: View, output: str, shift: _Shift, depth: int) -> dict[View, float] | None:
    """Return the shared views beyond one reader of a view: none behind a convolution that absorbs it."""
    for layout in views.layouts:
        lifted = views.lifted((output, layout))
        if lifted is None:
            continue
        if views.scope.nodes[views.position(output)].op == "Concat" and output not in views.scope.pinned:
            if any(b.view(layout) == view for b in lifted.branches):
                behind = shift if shift is _Shift.NONE else _Shift.VANISHES
                return _absorbed(views, (output, layout), behind, depth + 1)
            continue
        if len(lifted.branches) != 1:
            continue
        branch = lifted.branches[0]
        if branch.view(layout) != view:
            continue
        if (lifted.averages or _is_carried(lifted)) and output not in views.scope.pinned:
            return _absorbed(views, (output, layout), _Shift.VANISHES if lifted.biased else shift, depth + 1)
        if lifted.anchor:
            g = branch.geometry
            outside = g.mode != "conv" or any(t[0] < 0 or c + t[-1] >= 0 for t, c in zip(g.taps, g.size, strict=True))
            return None if shift is _Shift.VANISHES and outside and not g.is_pointwise else {}
    return None
