"""Which folds pay on this machine: each region is timed as it was and as it could become, and the fastest is taken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxrep import machine
from onnxrep.escape import printable
from onnxrep.folding import Place
from onnxrep.proof.errors import CannotRun
from onnxrep.proof.inputs import Wishes, index_limits, usual_feeds
from onnxrep.proof.sessions import Feeds, Runtime
from onnxrep.proof.sides import Side
from onnxrep.report.records import Decision, Fold
from onnxrep.timing.rounds import Budget, repeats_for, timed_rounds, warm_up
from onnxrep.timing.statistics import FEWEST, quartiles, ratio
from onnxrep.tuning.cache import Cache, fingerprint
from onnxrep.tuning.regions import FOLDED, LEFT, PARTIAL, Spot, Values, cut, is_unclear, spots

Timer = Callable[[Mapping[str, Side], Feeds, Runtime], Mapping[str, Sequence[float]]]
"""Takes models by name, and returns seconds per inference of each, in rounds."""

Refold = Callable[[Collection[Place]], tuple[onnx.ModelProto, Sequence[Fold]]]
"""Folds the original without some values; returns the model, which the next call may change, and the folds."""

_MOST_ROUNDS = 4
_OPENINGS = 2
_BUDGET = Budget(rounds=60, seconds=1.0)
_SEED = 0


def timed(sides: Mapping[str, Side], feeds: Feeds, runtime: Runtime) -> Mapping[str, Sequence[float]]:
    """Time models in ONNX Runtime, interleaved; see :data:`Timer`.

    Raises:
        CannotRun: ONNX Runtime does not load or run one of them.

    """
    rng = np.random.default_rng(_SEED)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_OPENINGS):
        runs = [runtime.session(s.serialized, "all", s.folder, flush=True).repeatable(feeds) for s in sides.values()]
        repeats = repeats_for(warm_up(runs))
        found = timed_rounds(runs, _BUDGET.split(_OPENINGS), rng, repeats=repeats, fewest=FEWEST)
        for mine, new in zip(times.values(), found, strict=True):
            mine.extend(new)
    return times


@dataclass
class Tuner:
    """Decides about the folds of one model.

    Attributes:
        before: the original.
        refold: folds it anew.
        runtime: on which is timed.
        wishes: the user's inputs.
        cache: of former times.
        timer: takes the times.
    """

    before: Side
    refold: Refold
    runtime: Runtime
    wishes: Wishes
    cache: Cache
    timer: Timer = timed

    def __post_init__(self) -> None:
        self.decisions: dict[Place, Decision] = {}
        self.skipped: set[Place] = set()
        self._values: dict[str, Any] = {}
        self._known: dict[str, tuple[Mapping[str, Sequence[float]], bool]] = {}

    def decide(self, *, every: bool = False) -> set[Place]:
        """Return the values that no fold may make or look through, so that the model is fastest.

        ``every``: time all folds, those too about which the price has no doubt.

        Raises:
            CannotRun, NoInput: the original does not run.

        """
        for _ in range(_MOST_ROUNDS):
            model, folds = self.refold(self.skipped)
            folded = onnx.ModelProto()
            folded.CopyFrom(model)
            new = [s for s in spots(self.before.model, folded, folds) if _place(s) not in self.decisions]
            new = [s for s in new if every or is_unclear(s.fold, self.runtime.provider)]
            if not new:
                break
            self._watch({name for spot in new for name in spot.reads})
            partial, _ = self.refold(self.skipped | {_place(s) for s in new})
            for spot in new:
                self._decide(spot, {LEFT: self.before.model, PARTIAL: partial, FOLDED: folded})
        return self.skipped

    def _watch(self, names: set[str]) -> None:
        """Run the original once and keep the values that regions read."""
        inputs = {v.name for v in self.before.model.graph.input}
        wanted = sorted(names - self._values.keys() - inputs)
        present = {v.name for v in self.before.model.graph.output}
        side = self.before
        session = self.runtime.session(side.with_outputs(n for n in wanted if n not in present), "off", side.folder)
        feeds, _ = usual_feeds(session, self.wishes, _SEED, index_limits(side.model))
        self._values |= {**feeds, **session.run(feeds, wanted)} if wanted else feeds

    def _decide(self, spot: Spot, models: Mapping[str, onnx.ModelProto]) -> None:
        """Time a region in several forms and remember which is best; where that fails, the fold stays."""
        values: Values = {n: self._values[n] for n in spot.reads if isinstance(self._values.get(n), np.ndarray)}
        if len(values) < len(spot.reads):
            return
        forms = {name: found for name, m in models.items() if (found := cut(m, spot, values)) is not None}
        if LEFT not in forms or FOLDED not in forms:
            return
        prints = {name: fingerprint({"": form}, ()) for name, form in forms.items()}
        if prints.get(PARTIAL) in (prints[LEFT], prints[FOLDED]):
            del forms[PARTIAL]
        try:
            times, cached = self._times(forms, values)
        except (CannotRun, MemoryError):
            return
        choice = _best(times)
        medians = {name: quartiles(t)[0] for name, t in times.items()}
        self.decisions[_place(spot)] = Decision(
            spot.fold.output, choice, medians, ratio(times[LEFT], times[choice]).median, cached
        )
        if choice == PARTIAL:
            self.skipped.add(_place(spot))
        elif choice == LEFT:
            self.skipped.update(("", printable(name)) for name in spot.inner)

    def _times(
        self, forms: Mapping[str, onnx.ModelProto], values: Values
    ) -> tuple[Mapping[str, Sequence[float]], bool]:
        """Return the times of all forms of a region, and whether they were known."""
        shapes = [(v.shape, v.dtype.str) for v in values.values()]
        runtime = self.runtime
        libraries = [str(path) for path in runtime.custom_ops]
        where = (runtime.provider, machine.device_name() if runtime.provider == "cuda" else machine.processor())
        about = (shapes, where, runtime.threads, machine.cores(), libraries, onnxruntime.__version__)
        key = fingerprint(forms, about)
        if key in self._known:
            return self._known[key][0], self._known[key][1]
        times: Mapping[str, Sequence[float]] | None = self.cache.load(key, list(forms))
        cached = times is not None
        if times is None:
            sides = {name: Side(form, None, self.before.folder) for name, form in forms.items()}
            times = self.timer(sides, values, runtime)
            self.cache.store(key, times)
        self._known[key] = times, cached
        return times, cached


def _place(spot: Spot) -> Place:
    """Return the value that a fold makes, as folding knows it."""
    return "", printable(spot.output)


def _best(times: Mapping[str, Sequence[float]]) -> str:
    """Return the fastest form; another than the fold only if it is faster beyond noise."""
    best, most = FOLDED, 1.0
    for name in (PARTIAL, LEFT):
        if name in times:
            found = ratio(times[FOLDED], times[name])
            if found.verdict == "faster" and found.median > most:
                best, most = name, found.median
    return best
