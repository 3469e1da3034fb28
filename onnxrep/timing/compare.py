"""Two models side by side: which is faster, by how much, and in which ops."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrep import machine
from onnxrep.errors import UnsupportedModel, UsageError
from onnxrep.escape import printable
from onnxrep.proof.errors import CannotRun, NoInput
from onnxrep.proof.inputs import Wishes, describe, index_limits, usual_feeds
from onnxrep.proof.sessions import Feeds, Runtime, Session
from onnxrep.proof.sides import Side
from onnxrep.report.records import Comparison, Timing
from onnxrep.timing.profile import time_per_op
from onnxrep.timing.rounds import Budget, Progress, repeats_for, timed_rounds, warm_up
from onnxrep.timing.statistics import CONFIDENCE, FEWEST, quartiles, ratio

_OPENINGS = 3
_SEED = 0


def compare(
    before: Side,
    after: Side,
    runtime: Runtime,
    wishes: Wishes,
    budget: Budget,
    *,
    names: tuple[str, str] = ("", ""),
    progress: Progress | None = None,
) -> Comparison:
    """Time two models with the same inputs side by side, as ONNX Runtime runs them by default.

    Both are loaded several times, because where their weights come to lie makes a difference of its own.

    Raises:
        UsageError: the models have different inputs, or the user's shapes or data do not fit.
        UnsupportedModel: ONNX Runtime does not run one of them.

    """
    sides = (before, after)
    first = _opened(before, runtime, "the first model")
    feeds, chosen = _feeds(first, before, wishes)
    begin = time.perf_counter()
    second = _opened(after, runtime, "the second model")
    opening = time.perf_counter() - begin
    _check_alike(first, second)
    notes = _notes((first, second), feeds)
    del first, second
    openings = _OPENINGS if opening < budget.seconds / 20 else 1
    times, repeats = _times(sides, runtime, feeds, budget, openings, progress)
    speed = ratio(*times)
    profiles = [time_per_op(side, runtime, feeds) for side in sides]
    old, new = (Timing(n, *quartiles(t), *p) for n, t, p in zip(names, times, profiles, strict=True))
    return Comparison(
        speed.verdict,
        speed.median,
        (speed.low, speed.high),
        CONFIDENCE,
        old,
        new,
        rounds=len(times[0]),
        repeats=repeats,
        openings=openings,
        inputs={printable(n): tuple(v.shape) for n, v in feeds.items()},
        chosen=chosen,
        provider=runtime.provider,
        threads=runtime.threads,
        processor=machine.processor(),
        notes=notes,
    )


def _times(
    sides: tuple[Side, Side], runtime: Runtime, feeds: Feeds, budget: Budget, openings: int, progress: Progress | None
) -> tuple[tuple[list[float], list[float]], int]:
    """Return the seconds per inference of both models in each round, and how many inferences a round has of each."""
    rng = np.random.default_rng(_SEED)
    part, fewest = budget.split(openings), -(-FEWEST // openings)
    times: tuple[list[float], list[float]] = ([], [])
    repeats = 0
    for index in range(openings):
        opened: dict[int, Callable[[], None]] = {}
        for which in rng.permutation(2):
            opened[int(which)] = _opened(sides[which], runtime, "the model").repeatable(feeds)
        runs = [opened[0], opened[1]]
        quickest = warm_up(runs)
        repeats = repeats or repeats_for(quickest)
        share = _share(progress, index, openings)
        found = timed_rounds(runs, part, rng, repeats=repeats, fewest=fewest, progress=share)
        times[0].extend(found[0])
        times[1].extend(found[1])
    return times, repeats


def _share(progress: Progress | None, index: int, count: int) -> Progress | None:
    """Return what tells the progress of one of several parts."""
    return None if progress is None else lambda share: progress((index + share) / count)


def _opened(side: Side, runtime: Runtime, what: str) -> Session:
    """Return a session as it is timed."""
    try:
        return runtime.session(side.serialized, "all", side.folder, flush=True)
    except CannotRun as error:
        raise UnsupportedModel(f"ONNX Runtime does not load {what}: {error}") from None


def _feeds(session: Session, side: Side, wishes: Wishes) -> tuple[Mapping[str, NDArray[Any]], bool]:
    """Return the inputs on which to time, and whether a size was chosen."""
    try:
        return usual_feeds(session, wishes, _SEED, index_limits(side.model))
    except NoInput as error:
        raise UsageError(str(error)) from None


def _check_alike(first: Session, second: Session) -> None:
    """Make sure that two models take the same inputs.

    Raises:
        UsageError: they do not.

    """
    old, new = ({name: kind for name, kind, _ in s.inputs} for s in (first, second))
    if old != new:
        raise UsageError(
            f"the models take different inputs: {_listed(old)} and {_listed(new)}; only models that can take each "
            "other's place can be compared"
        )


def _listed(inputs: Mapping[str, str]) -> str:
    """Return inputs as a person writes them."""
    return ", ".join(f"{printable(n)} {k}" for n, k in inputs.items()) or "none"


def _notes(sessions: tuple[Session, Session], feeds: Feeds) -> tuple[str, ...]:
    """Run both once; say what is odd about the outputs.

    Raises:
        UnsupportedModel: ONNX Runtime does not run one of them.

    """
    notes = []
    for session, what in zip(sessions, ("first", "second"), strict=True):
        try:
            results = session.run(feeds)
        except CannotRun as error:
            shape = describe({n: v.shape for n, v in feeds.items()})
            raise UnsupportedModel(f"ONNX Runtime does not run the {what} model at {shape}: {error}") from None
        odd = [n for n, r in results.items() if isinstance(r, np.ndarray) and r.dtype.kind == "f"]
        if any(not np.isfinite(results[n]).all() for n in odd):
            notes.append(f"outputs of the {what} model are infinite or NaN on this input: times may be those of NaN")
    return tuple(notes)
