"""Tune one model: decide about its regions, then see that the whole is no slower than the original."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx

from onnxrep import machine
from onnxrep.errors import UnsupportedModel
from onnxrep.folding import Place
from onnxrep.proof.errors import CannotRun, NoInput
from onnxrep.proof.sides import Side
from onnxrep.report.records import Comparison, Fold, Refusal, Tuning
from onnxrep.timing.compare import compare
from onnxrep.timing.rounds import Budget
from onnxrep.tuning.tune import Tuner

Folded = tuple[Sequence[Fold], Sequence[Refusal]]
Compare = Callable[[Side, Side], Comparison]


@dataclass(frozen=True)
class Tuned:
    """What tuning led to; the message that was folded is the result.

    Attributes:
        folds, refusals: of the last folding.
        skipped: values that no fold may make or look through.
        record: for the report.
        latency: original and result side by side, None if they could not be timed.
    """

    folds: list[Fold]
    refusals: list[Refusal]
    skipped: frozenset[Place]
    record: Tuning
    latency: Comparison | None


def compared(tuner: Tuner) -> Compare:
    """Return what times whole models as regions are timed."""
    return lambda before, after: compare(before, after, tuner.runtime, tuner.wishes, Budget())


def tune(
    model: onnx.ModelProto, tuner: Tuner, fold: Callable[[Collection[Place]], Folded], side_by_side: Compare
) -> Tuned:
    """Fold a model so that it is fastest; where the whole is slower than the original, not at all.

    Where the whole is slower although each doubtful region was timed, all regions are; and where that does not help,
    all folds are given up.

    Args:
        model: the message that ``fold`` changes.
        tuner: decides about regions.
        fold: folds the model anew, without some values.
        side_by_side: times whole models.

    Raises:
        UsageError: the user's shapes or data do not fit.

    """
    before, after = tuner.before, Side(model, None, tuner.before.folder)
    note, latency, dropped = "", None, False
    folds: Sequence[Fold] = ()
    refusals: Sequence[Refusal] = ()
    try:
        for every in (False, True):
            skipped = tuner.decide(every=every)
            folds, refusals = fold(skipped)
            if not folds:
                break
            latency = side_by_side(before, after)
            if latency.verdict != "slower":
                break
        else:
            dropped, latency = True, None
    except (CannotRun, NoInput, UnsupportedModel) as error:
        note = str(error)
    if dropped or note:
        folds, refusals = fold(set()) if note else ((), refusals)
    if dropped:
        model.CopyFrom(before.model)
    runtime = tuner.runtime
    decisions = tuple(tuner.decisions.values())
    record = Tuning(decisions, dropped, runtime.provider, runtime.threads, machine.processor(), note)
    return Tuned(list(folds), list(refusals), frozenset(tuner.skipped if not note else ()), record, latency)
