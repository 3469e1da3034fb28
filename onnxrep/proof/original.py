"""The original's part of a check: on which inputs, and what the model and its float64 twin make of them."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import onnx

from onnxrep import files, machine
from onnxrep.errors import OnnxrepError
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.proof.choices import discrete_choices
from onnxrep.proof.errors import CannotRun, NoInput, NoTwin
from onnxrep.proof.inputs import (
    InputSet,
    Wishes,
    cropped,
    declared_ranges,
    describe,
    index_limits,
    input_sets,
    overridden,
    seed_of,
)
from onnxrep.proof.memory import budget, needed
from onnxrep.proof.reference import Reference
from onnxrep.proof.sessions import Level, Runtime, Session
from onnxrep.proof.sides import Side
from onnxrep.proof.twin import RANDOM, operators

LEVELS: tuple[Level, ...] = ("off", "all")

NEEDS = "GiB can be used"
"""Ends the reason of a check that a machine with more memory could do."""

_WORKERS = 2
"""Runs side by side, on the CPU."""

_SMALL_INPUT = 1 << 22

_SMALL_MODEL = 1 << 28
"""Bytes of weights up to which something is begun before it is known what runs take."""

_MOST_HELD = 1 << 28
"""Bytes of results that may wait for those of the new model."""

_MOMENT = 0.01
"""Seconds between two looks at runs that were begun ahead."""


@dataclass(frozen=True)
class Runs:
    """What twin and original make, or will, of one input set; the original again, too, if it is the first."""

    inputs: InputSet
    reference: Future[dict[str, Any]]
    before: Sequence[Future[dict[str, Any]]]
    repeated: Sequence[Future[dict[str, Any]]]

    @property
    def every(self) -> list[Future[dict[str, Any]]]:
        """All of them."""
        return [self.reference, *self.before, *self.repeated]

    def held(self) -> int:
        """Return how many bytes the results have that are there."""
        there = (run.result() for run in self.every if run.done() and not run.exception())
        return sum(int(getattr(value, "nbytes", 0)) for results in there for value in results.values())


def may_begin(model: onnx.ModelProto, runtime: Runtime) -> bool:
    """Whether a model can run before it is known what it will be compared with: it is small and has no choices."""
    several = runtime.provider == "cpu" and (runtime.threads or machine.cores()) > 1
    small = files.weight_bytes(model) < _SMALL_MODEL
    return several and small and not is_random(model) and not discrete_choices(model, model).behind


def is_random(model: onnx.ModelProto) -> bool:
    """Whether a model draws random numbers."""
    return any(op in RANDOM and domain in DEFAULT_DOMAINS for domain, op in operators(model))


class Original:
    """The original of a check, and the threads in which all its models run."""

    def __init__(self, side: Side, runtime: Runtime, wishes: Wishes, watched: Sequence[str] = ()) -> None:
        """``watched``: values that are outputs of all models besides the model's own."""
        self.side, self.watched = side, tuple(watched)
        self.wishes = replace(wishes, ranges={**declared_ranges(side.model), **wishes.ranges})
        self.workers, self.runtime = 1, runtime
        if runtime.provider == "cpu":  # much of a twin has no use for several threads
            threads = runtime.threads or machine.cores()
            self.workers = min(_WORKERS, threads)
            self.runtime = replace(runtime, threads=threads // self.workers)
        self.reference = Reference(side, self.watched, self.runtime)
        self.sessions: Sequence[Session] = ()
        self._repeats = 2 if runtime.provider == "cuda" else 1  # results there need not be the same twice
        self._small = files.weight_bytes(side.model) < _SMALL_MODEL
        self._judging: Session | None = None
        self._inside: list[str] = []
        self._afforded = False
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._others = ThreadPoolExecutor(2)
        self._ahead: Future[None] | None = None
        self._enough = threading.Event()
        self._ready: deque[tuple[InputSet, Runs | None]] = deque()
        self._sets: Iterator[InputSet] | None = None

    def close(self) -> None:
        """End all runs and threads, and let go of what they made."""
        self._enough.set()
        self.reference.stop()
        for session in (*self.sessions, *filter(None, [self._judging])):
            session.stop()
        self._others.shutdown(cancel_futures=True)
        if self._pool is not None:
            self._pool[1].shutdown(cancel_futures=True)
        self.sessions, self._judging, self._sets, self._ahead = (), None, None, None
        self.reference = Reference(self.side, self.watched, self.runtime)
        self._ready.clear()

    @cached_property
    def seed(self) -> int:
        """The seed of the random inputs."""
        try:
            return seed_of(self.side.serialized)
        except CannotRun:  # it is too large
            return 0

    def begin(self) -> None:
        """Start to run the original, while what the new model is, is not known; see :func:`may_begin`."""
        self._ahead = self._others.submit(self._run_ahead)

    def is_ahead(self) -> bool:
        """Whether all has gone well with what was begun; if it has, :meth:`load` has been done, and nothing is begun.

        What went wrong would do so again.
        """
        self._enough.set()
        if self._ahead is None:
            return False
        with suppress(CannotRun, NoInput, NoTwin, OnnxrepError, MemoryError):
            self._ahead.result()
            return True
        return False

    def load(self, played: Side | None = None, levels: Sequence[Level] = LEVELS) -> None:
        """Load the model at each level, or ``played`` in its stead.

        Raises:
            CannotRun: ONNX Runtime does not.

        """
        if self.workers > 1 and self._small:
            self.reference.begin(self._others)
        side = played or self.side
        self.sessions = self.loaded(side, levels)
        dynamic = any(not isinstance(dim, int) for _, _, dims in self.sessions[0].inputs for dim in dims)
        self._inside = [name for name in cropped(side.model) if dynamic and name not in self.watched]
        watched = side.with_outputs([*self.watched, *self._inside])
        self._judging = self.runtime.session(watched, "off", side.folder) if self._inside else self.sessions[0]

    def loaded(self, side: Side, levels: Sequence[Level], more: Sequence[str] = ()) -> list[Session]:
        """Return a session of a model per level; where nothing is optimized, with ``more`` outputs.

        Raises:
            CannotRun: ONNX Runtime does not load it.

        """
        plain = side.with_outputs(self.watched)
        data = {"off": side.with_outputs([*self.watched, *more]) if more else plain, "all": plain}
        with ThreadPoolExecutor(self.workers) as pool:
            every = list(pool.map(lambda level: self.runtime.session(data[level], level, side.folder), levels))
        return every * self._repeats

    def sets(self) -> Iterator[tuple[InputSet, Runs | None]]:
        """Yield the input sets, with what runs of each already."""
        while self._ready:
            yield self._ready.popleft()
        self._sets = self._sets or self._input_sets()
        yield from ((inputs, None) for inputs in self._sets)

    def run(self, inputs: InputSet, *, again: bool) -> Runs:
        """Begin to run twin and original on one input set, the longest run first."""
        reference = self.submit(self.reference.run, inputs)
        before = [self.submit(s.run, inputs.feeds) for s in self.sessions]
        repeated = [self.submit(s.run, inputs.feeds) for s in self.sessions[: int(again)]]
        return Runs(inputs, reference, before, repeated)

    def submit(self, run: Any, inputs: Any) -> Future[dict[str, Any]]:
        """Begin a run, beside others if there is memory for both."""
        if self._pool is None or self._pool[0] != self.workers:
            if self._pool is not None:
                self._pool[1].shutdown()
            self._pool = self.workers, ThreadPoolExecutor(self.workers)
        return self._pool[1].submit(run, inputs)

    def ran_again(self, names: Set[str]) -> Iterator[InputSet]:
        """Yield some of the input sets on which the models have run; those behind them need not even exist."""
        left = set(names)
        for inputs in self._input_sets():
            if inputs.name in left:
                left.remove(inputs.name)
                yield inputs
            if not left:
                return

    def _run_ahead(self) -> None:
        """Run the original until the new model is there, or as much is held as may be."""
        self.load()
        if self._enough.is_set():
            return
        held, previous = 0, None
        self._sets = self._input_sets()
        for inputs in self._sets:
            runs = self.run(inputs, again=not self._ready) if self.workers > 1 else None
            self._ready.append((inputs, runs))
            while previous is not None and not all(run.done() for run in previous.every):
                if self._enough.wait(_MOMENT):
                    return
            held += previous.held() if previous is not None else 0
            previous = runs
            if runs is None or held > _MOST_HELD or self._enough.is_set():
                return

    def _input_sets(self) -> Iterator[InputSet]:
        """Yield the sets on which both models run, the same ones each time.

        Raises:
            NoInput, UsageError: there are no further ones, although there should be.
        """
        assert self._judging is not None
        limits = index_limits(self.side.model)
        first: InputSet | None = None
        for inputs in input_sets(self._judging, self.wishes, self.seed, limits, self._affordable, self._inside):
            first = first or inputs
            if self.wishes.data is not None:  # whose size nobody has looked at
                self._measured({name: values.shape for name, values in inputs.feeds.items()})
            yield inputs
        others = overridden(self.side.model, self.side.folder, self._judging, self.seed)
        if first is not None and others:
            yield InputSet(f"overridden {first.name}", {**first.feeds, **others})

    def _affordable(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make sure that the float64 twin fits into memory at these shapes.

        Raises:
            NoInput: it does not.
        """
        elements = sum(math.prod(s) for s in shapes.values())
        if self._afforded and elements <= _SMALL_INPUT:
            return
        need, have = self._measured(shapes)
        if need > have:
            sizes = describe(shapes)
            raise NoInput(f"the check at {sizes} needs {need / 2**30:.0f} GiB, {have / 2**30:.0f} {NEEDS}")
        self._afforded = True

    def _measured(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
        """Return the bytes that the twin takes at these shapes, and those that may be used."""
        need, have = needed(self.side.model, shapes), budget()
        if 2 * need > have:
            self.workers = 1  # what runs beside the twin would need memory too
        return need, have
