"""Which folds to take back of a model that was rejected: as few as possible, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from onnxrep.folding import Place

MOST_ATTEMPTS = 24
"""Sets of folds that are tried: so many culprits are no few wrong folds, the model is rejected."""


class Undecided(Exception):
    """A set of folds could be judged neither way."""


def culprits(
    every: Sequence[Place], blamed: Collection[Place], passes: Callable[[Collection[Place]], bool]
) -> list[Place]:
    """Return the folds without which the rest passes; none if there are no such.

    Folds that are blamed already go first. Where there are none, or the rest does not pass either, sets of folds are
    halved until the culprits are found; and where there are none, the largest set that passed stays.

    Args:
        every: all folds.
        blamed: those known to be wrong by themselves.
        passes: folds the model anew with some folds and says whether it passes then; the set returned is the last one
            that it was asked about. May raise :class:`Undecided`.

    """
    attempts = 0
    best: list[Place] = []

    def attempt(kept: Collection[Place]) -> bool:
        nonlocal attempts, best
        attempts += 1
        if attempts > MOST_ATTEMPTS:
            raise Undecided
        good = passes(kept)
        best = list(kept) if good and len(kept) > len(best) else best
        return good

    def guilty(suspects: list[Place]) -> list[Place]:
        if len(suspects) == 1:
            return suspects
        middle = len(suspects) // 2
        halves = [half for half in (suspects[:middle], suspects[middle:]) if not attempt(half)]
        return [place for half in halves for place in guilty(half)] or suspects

    def suffices(bad: Collection[Place]) -> bool:
        return 0 < len(bad) < len(every) and attempt([place for place in every if place not in bad])

    try:
        if suffices(blamed):
            return list(blamed)
        found = guilty(list(every))
        if suffices(found):
            return found
        if best and passes(best):  # no fold is wrong by itself, only all together
            return [place for place in every if place not in best]
    except Undecided:  # no evidence for or against any fold
        pass
    return []
