"""Interleaved rounds: whatever the machine does besides, it does to all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxrep.timing.statistics import FEWEST

Run = Callable[[], object]
Progress = Callable[[float], None]
"""Is told which share of the work is done, from 0 to 1."""

WARM_UP_RUNS, WARM_UP_SECONDS = 3, 0.1
_SHORTEST = 2e-3
"""Seconds that each takes in a round at least: the clock and the call cost microseconds."""


@dataclass(frozen=True)
class Budget:
    """When to stop: at so many rounds, or after so many seconds, but not before the fewest that say something."""

    rounds: int = 200
    seconds: float = 10.0

    def split(self, count: int) -> Budget:
        """Return one of ``count`` equal parts."""
        return Budget(math.ceil(max(self.rounds, FEWEST) / count), self.seconds / count)


def warm_up(runs: Sequence[Run]) -> float:
    """Run each some times; return the seconds that the quickest takes."""
    fastest = math.inf
    for run in runs:
        begin = time.perf_counter()
        for count in range(1, 1000):
            start = time.perf_counter()
            run()
            now = time.perf_counter()
            fastest = min(fastest, now - start)
            if count >= WARM_UP_RUNS and now - begin > WARM_UP_SECONDS:
                break
            if now - begin > 10 * WARM_UP_SECONDS:
                break
    return fastest


def repeats_for(seconds: float) -> int:
    """Return how often something that takes so long is to be run in a row, so that the clock is fine enough."""
    return max(1, math.ceil(_SHORTEST / max(seconds, 1e-7)))


def timed_rounds(
    runs: Sequence[Run],
    budget: Budget,
    rng: np.random.Generator,
    *,
    repeats: int = 1,
    fewest: int = FEWEST,
    progress: Progress | None = None,
) -> list[list[float]]:
    """Return seconds per run for each of some runs, one number per round; the order in a round is random.

    Args:
        runs: what to time.
        budget: when to stop.
        rng: for the order.
        repeats: how often each is run in a row per round.
        fewest: rounds to make even if the time is up.
        progress: is told the share that is done.

    """
    times: list[list[float]] = [[] for _ in runs]
    begin = time.perf_counter()
    count = 0
    while True:
        spent = (time.perf_counter() - begin) / budget.seconds
        done = max(min(spent, count / fewest), count / max(budget.rounds, fewest))
        if progress is not None:
            progress(min(done, 1.0))
        if done >= 1.0:
            return times
        for index in rng.permutation(len(runs)):
            run = runs[index]
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            times[index].append((time.perf_counter() - start) / repeats)
        count += 1
