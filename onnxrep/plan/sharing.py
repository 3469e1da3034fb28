"""Scales and shifts that several convolutions read: each may take over its own copy if all of them do.

A BatchNormalization in front of the three projections of an attention has three readers. It vanishes if every one of
them absorbs it; if one cannot, it must stay and nothing is won.
"""

from __future__ import annotations

from onnxrep.lift import Lifted
from onnxrep.plan.views import View, Views

_LONGEST = 16


def find_shared(views: Views) -> dict[View, float]:
    """Return the views with several readers that all of them can absorb, with the share that each bears."""
    found: dict[View, float] = {}
    for value, readers in views.scope.readers.items():
        if len(set(readers)) < 2 or value in views.scope.pinned:
            continue
        for layout in views.layouts:
            view = (value, layout)
            lifted = views.lifted(view)
            if lifted is None or not _is_carried(lifted) or _movable(views, view) is None:
                continue
            shares = _absorbed(views, view, bool(_movable(views, view)), 0)
            if shares is not None:
                found.update(shares)
    return found


def _is_carried(lifted: Lifted) -> bool:
    """Whether an op is one that readers can take over: a movement, or a scale or shift of one operand."""
    return len(lifted.branches) == 1 and not lifted.anchor and (lifted.moves or lifted.branches[0].geometry.is_diagonal)


def _movable(views: Views, view: View) -> bool | None:
    """Return whether the scales and shifts behind a view shift; None if there is no scale or shift behind it."""
    biased, useful = False, False
    for count in range(_LONGEST):
        lifted = views.lifted(view)
        if lifted is None or not _is_carried(lifted) or view[0] in views.scope.pinned:
            break
        if count and len(set(views.scope.readers.get(view[0], ()))) > 1:
            break
        biased |= lifted.biased
        useful |= not lifted.moves and lifted.nodes > 0
        view = (lifted.branches[0].source, lifted.branches[0].layout or view[1])
    if _folds_backward(views, view):
        return None
    return biased if useful else None


def _folds_backward(views: Views, view: View) -> bool:
    """Whether a value rests on a convolution and is read once: what follows it folds into that one instead."""
    rests = view[0] in views.anchored.get(view[1], ())
    return rests and view[0] not in views.scope.pinned and len(set(views.scope.readers.get(view[0], ()))) == 1


def _absorbed(views: Views, view: View, biased: bool, depth: int) -> dict[View, float] | None:
    """Return the shared views from here up to the convolutions that read them, or None if a reader cannot absorb."""
    readers = sorted(set(views.scope.readers.get(view[0], ())))
    shares: dict[View, float] = {view: 1.0 / len(readers)} if len(readers) > 1 else {}
    for reader in readers:
        outputs = [v.name for v in views.scope.nodes[reader].outputs if v.name]
        if len(outputs) != 1 or depth > _LONGEST:
            return None
        behind = _through_reader(views, view, outputs[0], biased, depth)
        if behind is None:
            return None
        shares.update(behind)
    return shares


def _through_reader(views: Views, view: View, output: str, biased: bool, depth: int) -> dict[View, float] | None:
    """Return the shared views beyond one reader of a view: none behind a convolution that absorbs it."""
    for layout in views.layouts:
        lifted = views.lifted((output, layout))
        if lifted is None or len(lifted.branches) != 1:
            continue
        branch = lifted.branches[0]
        if branch.source != view[0] or (branch.layout or layout) != view[1]:
            continue
        if lifted.moves and output not in views.scope.pinned:
            return _absorbed(views, (output, layout), biased, depth + 1)
        if lifted.anchor:
            g = branch.geometry
            outside = g.mode != "conv" or any(t[0] < 0 or c + t[-1] >= 0 for t, c in zip(g.taps, g.size, strict=True))
            return None if biased and outside and not g.is_pointwise else {}
    return None
