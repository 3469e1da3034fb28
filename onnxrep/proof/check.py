"""The end-to-end check: run original and new model on many inputs, judge every output, give a verdict."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrep import files, machine
from onnxrep.errors import UsageError
from onnxrep.escape import printable
from onnxrep.graph import DEFAULT_DOMAINS
from onnxrep.proof import judge
from onnxrep.proof.choices import discrete_choices
from onnxrep.proof.emulation import in_bfloat16, number_types
from onnxrep.proof.errors import CannotRun, NeedsSizes, NoInput, NoTwin
from onnxrep.proof.inputs import (
    CONSTANT_SETS,
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
from onnxrep.proof.judge import OutputFigures, compare, settle
from onnxrep.proof.memory import budget, needed
from onnxrep.proof.reference import session_of_twin
from onnxrep.proof.sessions import LARGEST_MESSAGE, Level, Runtime, Session
from onnxrep.proof.sides import Side, interface_fault, roundoff_of
from onnxrep.proof.twin import RANDOM, Twin, operators

LEVELS: tuple[Level, ...] = ("off", "all")

_WORKERS = 2
"""Runs side by side, on the CPU."""

_SMALL_INPUT = 1 << 22

_SMALL_MODEL = 1 << 28
"""Bytes of weights up to which the twin is built while other sessions are, before it is known what runs take."""

NEEDS = "GiB can be used"
"""Ends the reason of a check that a machine with more memory could do."""

NO_MEMORY = "not enough memory"
"""Begins the reason of a check that another machine, or a larger share of this one, could do."""

_Kind = Literal["original", "moved", "new"]
"""A twin: of the original, of the original with each weight moved by up to one rounding, of the new model."""


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        verdict: ``verified``, ``rejected`` or ``unverified``.
        reason: why not verified; empty if it is.
        figures: one per output and input set.
        provider: the execution provider that ran both models.
        levels: ONNX Runtime's optimization levels that were used.
        inputs: names of the input sets.
        seed: of the random inputs.
        roundoff: unit roundoff against which errors were judged.
        islands: op types that the float64 twin ran in float32.
        notes: what a reader should know besides.
        channels: how many channels the folded regions make.
        unobserved: how many of those were zero, behind their activation, on every input: what happens in them cannot be
            seen from the outputs.

    """

    verdict: str
    reason: str = ""
    figures: tuple[OutputFigures, ...] = ()
    provider: str = "cpu"
    levels: tuple[str, ...] = LEVELS
    inputs: tuple[str, ...] = ()
    seed: int = 0
    roundoff: float = 0.0
    islands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    channels: int = 0
    unobserved: int = 0

    @property
    def worst(self) -> OutputFigures | None:
        """The figures nearest to (or farthest beyond) their limit."""
        judged = [f for f in self.figures if f.status in ("same", "different")]
        return max(judged, key=lambda f: (f.status == "different", f.ratio / f.limit if f.limit else 0.0), default=None)


def check(
    before: Side,
    after: Side,
    runtime: Runtime,
    wishes: Wishes,
    folded: Sequence[str] = (),
    progress: Callable[[str], None] = lambda stage: None,
) -> Verdict:
    """Judge whether two models are the same function.

    ``folded``: values of the new model that folds made, if they are known. ``progress``: is told each input set.

    Raises:
        UsageError: the user's shapes or data do not fit the model.
        ProviderUnavailable: the provider does not run the models.

    """
    fault = interface_fault(before.model, after.model)
    if fault:
        return Verdict("rejected", f"interface: {fault}", provider=runtime.provider)
    wishes = replace(wishes, ranges={**declared_ranges(before.model), **wishes.ranges})
    return _Check(before, after, runtime, wishes, folded, progress).verdict()


@dataclass(frozen=True)
class _Runs:
    """What the models make, or will, of one input set: the twin, the original (again, too) and the new model."""

    inputs: InputSet
    reference: Future[dict[str, Any]]
    before: Sequence[Future[dict[str, Any]]]
    repeated: Sequence[Future[dict[str, Any]]]
    after: Sequence[Future[dict[str, Any]]]


class _Check:
    """One run of the check."""

    def __init__(
        self,
        before: Side,
        after: Side,
        runtime: Runtime,
        wishes: Wishes,
        folded: Sequence[str],
        progress: Callable[[str], None],
    ) -> None:
        self._progress = progress
        self._before, self._after, self._wishes = before, after, wishes
        self._workers, self._runtime = 1, runtime
        if runtime.provider == "cpu":  # much of a twin has no use for several threads
            threads = runtime.threads or machine.cores()
            self._workers = min(_WORKERS, threads)
            self._runtime = replace(runtime, threads=threads // self._workers)
        small = before.data is not None or before.model.ByteSize() <= LARGEST_MESSAGE
        self._seed = seed_of(before.serialized) if small else 0
        self._roundoff = roundoff_of(before.model, after.model)
        self._choices = discrete_choices(before.model, after.model)
        self._outputs = [v.name for v in before.model.graph.output]
        self._figures: list[OutputFigures] = []
        self._ran: list[str] = []
        self._jumped: set[str] = set()
        self._islands: set[str] = set()
        self._twins: dict[Any, Session] = {}
        self._building = threading.Lock()
        self._begun: Future[tuple[Session, Sequence[str]]] | None = None
        self._judging: Session | None = None
        self._proven = bool(folded)
        self._inside: list[str] = []
        self._notes: list[str] = []
        self._afforded = False
        self._levels: tuple[Level, ...] = LEVELS
        self._repeats = 2 if runtime.provider == "cuda" else 1  # results there need not be the same twice
        self._first: tuple[InputSet, dict[str, Any]] | None = None
        self._fired: dict[str, NDArray[np.bool_]] = {name: np.zeros(0, bool) for name in activated(after.model, folded)}

    def verdict(self) -> Verdict:
        """Run everything and decide."""
        try:
            with ThreadPoolExecutor(1) as pool:
                if self._workers > 1 and files.weight_bytes(self._before.model) < _SMALL_MODEL:
                    self._begun = pool.submit(self._build_twin, "original", None)
                return self._verdict()
        except MemoryError as error:
            return self._say("unverified", f"{NO_MEMORY}: {error}" if str(error) else NO_MEMORY)

    def _verdict(self) -> Verdict:
        """Run everything and decide, as far as there is memory."""
        if any(op in RANDOM and domain in DEFAULT_DOMAINS for domain, op in operators(self._before.model)):
            return self._say("unverified", "the model draws random numbers")
        before, after = self._before, self._after
        try:
            old = self._sessions(before)
        except CannotRun as error:
            try:
                before, after = self._stand_ins()
                old = self._sessions(before)
            except CannotRun:
                return self._say("unverified", f"ONNX Runtime does not run the original: {error}")
            except NoTwin as fault:
                return self._say("unverified", f"ONNX Runtime does not run the original ({error}), nor {fault}")
        try:
            new = self._sessions(after, [n for n in self._fired if n not in (*self._outputs, *self._extra)])
        except CannotRun as error:
            return self._say("rejected", f"ONNX Runtime does not load the new model: {error}")
        try:
            dynamic = any(not isinstance(dim, int) for _, _, dims in old[0].inputs for dim in dims)
            self._inside = [name for name in cropped(before.model) if dynamic and name not in self._extra]
            watched = before.with_outputs([*self._extra, *self._inside])
            self._judging = self._runtime.session(watched, "off", before.folder) if self._inside else old[0]
            stop = self._run_all(old * self._repeats, new * self._repeats)
            if stop is not None:
                return stop
            self._note_device(after)
            return self._decide()
        except NoInput as error:
            return self._say("unverified", f"no legal input: {error}")
        except NoTwin as error:
            return self._say("unverified", f"no float64 twin: {error}")

    def _input_sets(self) -> Iterator[InputSet]:
        """Yield the sets on which both models run, the same ones each time."""
        assert self._judging is not None
        limits = index_limits(self._before.model)
        first: InputSet | None = None
        for inputs in input_sets(self._judging, self._wishes, self._seed, limits, self._affordable, self._inside):
            first = first or inputs
            yield inputs
        others = overridden(self._before.model, self._before.folder, self._judging, self._seed)
        if first is not None and others:
            yield InputSet(f"overridden {first.name}", {**first.feeds, **others})

    @property
    def _extra(self) -> list[str]:
        """Values to watch besides the outputs."""
        return [n for n in dict.fromkeys((*self._choices.causes, *self._choices.results)) if n not in self._outputs]

    def _say(self, verdict: str, reason: str = "") -> Verdict:
        return Verdict(
            verdict,
            reason,
            tuple(self._figures),
            self._runtime.provider,
            self._levels,
            tuple(self._ran),
            self._seed,
            self._roundoff,
            tuple(sorted(self._islands)),
            tuple(self._notes),
            sum(fired.size for fired in self._fired.values()),
            sum(int(np.sum(~fired)) for fired in self._fired.values()),
        )

    def _sessions(self, side: Side, watched: Sequence[str] = ()) -> list[Session]:
        """Return a session per level, with the probes as further outputs; where nothing is optimized, more of them."""
        plain = side.with_outputs(self._extra)
        data = {"off": side.with_outputs([*self._extra, *watched]) if watched else plain, "all": plain}
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(lambda lv: self._runtime.session(data[lv], lv, side.folder), self._levels))

    def _stand_ins(self) -> tuple[Side, Side]:
        """Return models that do what both do, where ONNX Runtime has no kernels for their number type.

        A bfloat16 model becomes a float32 one that rounds behind every op; a float64 one its twin.

        Raises:
            CannotRun: the type is not the matter.
            NoTwin: a float64 model has none.
        """
        kinds = number_types(self._before.model) | number_types(self._after.model)
        sides = self._before, self._after
        self._levels = ("off",)
        if onnx.TensorProto.BFLOAT16 in kinds:
            self._notes.append("the arithmetic of bfloat16 is emulated: float32, rounded behind each op")
            first, second = (Side(in_bfloat16(s.model, s.folder), None, s.folder) for s in sides)
            return first, second
        if onnx.TensorProto.DOUBLE in kinds:
            self._notes.append("both models run as their float64 twins: convolutions as products of matrices")
            self._roundoff = max(self._roundoff, judge.DOUBLE_ROUNDOFF)
            first, second = (Side(Twin(s.model, s.folder).model, None, None) for s in sides)
            return first, second
        raise CannotRun("no kernel")

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
        need, have = needed(self._before.model, shapes), budget()
        if 2 * need > have:
            self._workers = 1  # what runs beside the twin would need memory too
        return need, have

    def _run_all(self, old: Sequence[Session], new: Sequence[Session]) -> Verdict | None:
        """Compare on all input sets, the next of which runs already; return a verdict if one decides.

        Raises:
            NoInput, UsageError: there are no further ones, although there should be, and those before decide nothing.
        """
        waiting: deque[_Runs] = deque()
        fault: Exception | None = None
        with ExitStack() as stack:
            pool, size = None, 0
            try:
                for count, inputs in enumerate(self._input_sets(), 1):
                    self._progress(f"verify on input set {count}")
                    if self._wishes.data is not None:  # whose size nobody has looked at
                        self._measured({name: values.shape for name, values in inputs.feeds.items()})
                    while len(waiting) >= self._workers:  # there may be fewer from this input set on
                        if (stop := self._compare(waiting.popleft())) is not None:
                            return stop
                    if pool is None or size != self._workers:
                        pool, size = ThreadPoolExecutor(self._workers), self._workers
                        stack.callback(pool.shutdown, cancel_futures=True)
                    waiting.append(self._begin(inputs, pool, old, new, again=old[: int(count == 1)]))
            except (NoInput, UsageError) as error:
                fault = error
            for runs in waiting:
                if (stop := self._compare(runs)) is not None:
                    return stop
        if fault is None:
            return None
        with suppress(NoInput, UsageError):
            verdict = self._decide()
            if verdict.verdict == "rejected":
                return verdict
        raise fault

    def _begin(
        self,
        inputs: InputSet,
        pool: ThreadPoolExecutor,
        old: Sequence[Session],
        new: Sequence[Session],
        again: Sequence[Session],
    ) -> _Runs:
        """Begin to run all models on one input set, the longest run first."""
        reference = pool.submit(self._reference, inputs)
        before, repeated, after = ([pool.submit(s.run, inputs.feeds) for s in many] for many in (old, again, new))
        return _Runs(inputs, reference, before, repeated, after)

    def _compare(self, runs: _Runs) -> Verdict | None:
        """Compare what the models make of one input set; return a verdict if nothing more needs to be run."""
        inputs = runs.inputs
        try:
            before, repeated = ([run.result() for run in many] for many in (runs.before, runs.repeated))
        except CannotRun as error:
            return self._say("unverified", f"ONNX Runtime does not run the original on {inputs.name}: {error}")
        if any(not _same(before[0][k], values[k]) for values in repeated for k in values):
            return self._say("unverified", "the original differs from itself in a second run")
        try:
            after = [run.result() for run in runs.after]
        except CannotRun as error:
            return self._say("rejected", f"ONNX Runtime does not run the new model on {inputs.name}: {error}")
        self._watch(after[0])
        reference = runs.reference.result()
        self._first = self._first or (inputs, reference)
        self._ran.append(inputs.name)
        everything = [*before, *after, reference]
        jumped = any(not np.array_equal(before[0][r], run[r]) for r in self._choices.results for run in everything[1:])
        for name in dict.fromkeys((*self._outputs, *self._choices.causes)):
            mine, theirs = [b[name] for b in before], [a[name] for a in after]
            self._figures.append(compare(name, inputs.name, mine, theirs, reference[name]))
        if jumped:
            self._jumped.add(inputs.name)
        return None

    def _note_device(self, after: Side) -> None:
        """Note what CUDA does besides: which precision it has by default, and whether it leaves nodes to the CPU."""
        if self._runtime.provider != "cuda" or self._first is None:
            return
        inputs, reference = self._first
        runtime = replace(self._runtime, tf32=True)
        values = runtime.session(after.serialized, "all", after.folder).run(inputs.feeds)
        errors = [judge.relative_error(values[name], reference[name]) for name in self._outputs]
        self._notes.append(
            f"judged with TF32 off; with it on, as CUDA has it by default, the new model is off by {max(errors):.1g} of"
            " the output"
        )
        try:
            self._runtime.session(after.serialized, "all", after.folder, alone=True)
        except CannotRun:
            self._notes.append("some nodes of the new model run on the CPU: CUDA has no kernels for them")

    def _watch(self, values: Mapping[str, Any]) -> None:
        """Note which channels of folded regions are not zero."""
        for name, fired in self._fired.items():
            value = np.asarray(values[name])
            if value.ndim > 1:
                now = np.any(value != 0, axis=tuple(a for a in range(value.ndim) if a != 1))
                self._fired[name] = now | fired if fired.size == now.size else now

    def _reference(self, inputs: InputSet) -> dict[str, Any]:
        """Return the outputs of the float64 twin."""
        return self._run_twin("original", inputs)

    def _run_twin(self, kind: _Kind, inputs: InputSet) -> dict[str, Any]:
        """Return the outputs of a float64 twin.

        Raises:
            NoTwin: there is none that runs.
        """
        feeds = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.feeds.items()}
        twin = self._twin(kind, {k: v.shape for k, v in inputs.feeds.items()})
        try:
            return twin.run(feeds)
        except CannotRun as error:
            raise NoTwin(f"it does not run on {inputs.name}: {error}") from None

    def _twin(self, kind: _Kind, shapes: Mapping[str, tuple[int, ...]]) -> Session:
        """Return a session of a twin: one for all sizes, or where that cannot be one per size."""
        key: tuple[tuple[str, tuple[int, ...]], ...] | None = tuple(shapes.items())
        with self._building:
            for known in (None, key):
                if (kind, known) in self._twins:
                    return self._twins[kind, known]
            begun = self._begun if kind == "original" else None
            try:
                session, islands = begun.result() if begun else self._build_twin(kind, None)
                key = None
            except NeedsSizes:
                session, islands = self._build_twin(kind, shapes)
            self._islands |= set(islands)
            return self._twins.setdefault((kind, key), session)

    def _build_twin(self, kind: _Kind, shapes: Mapping[str, tuple[int, ...]] | None) -> tuple[Session, Sequence[str]]:
        """Build a twin with the watched values as outputs; return it with its islands."""
        side = self._after if kind == "new" else self._before
        source = onnx.ModelProto()
        source.CopyFrom(side.model)
        for name in self._extra:
            source.graph.output.add(name=name)
        runtime = replace(self._runtime, provider="cpu")
        return session_of_twin(source, side.folder, runtime, shapes, kind == "moved")

    def _undecided(self, f: OutputFigures) -> OutputFigures:
        """Mark a difference that a discrete choice explains: one fell otherwise on this input set."""
        if f.status == "different" and f.output in self._choices.behind and f.inputs in self._jumped:
            return replace(f, status="undecided")
        return f

    def _settle(self, measured: Sequence[OutputFigures]) -> list[OutputFigures]:
        """Judge what was measured; return what differs."""
        by_output: dict[str, list[OutputFigures]] = {}
        for f in measured:
            by_output.setdefault(f.output, []).append(f)
        settled = [f for mine in by_output.values() for f in settle(mine, self._roundoff)]
        self._figures = [self._undecided(f) for f in settled]
        return [f for f in self._figures if f.status == "different"]

    def _ran_again(self, names: Set[str]) -> Iterator[InputSet]:
        """Yield some of the input sets on which the models have run; those behind them need not even exist."""
        left = set(names)
        for inputs in self._input_sets():
            if inputs.name in left:
                left.remove(inputs.name)
                yield inputs
            if not left:
                return

    def _examined(self, measured: Sequence[OutputFigures], doubtful: Set[str]) -> list[OutputFigures]:
        """Return figures with what only float64 can tell, on some input sets."""
        found = {(f.output, f.inputs): f for f in measured}
        for inputs in self._ran_again(doubtful):
            reference, moved, new = (self._run_twin(kind, inputs) for kind in ("original", "moved", "new"))
            for (output, name), f in found.items():
                if name == inputs.name and f.is_measured and f.status == "same":
                    found[output, name] = judge.examined(f, moved[output], new[output], reference[output])
        told = [(f.sway / f.rms, f.function / f.rms) for f in found.values() if f.examined and f.rms]
        sway, function = (max(column) for column in zip(*told, strict=True)) if told else (0.0, 0.0)
        self._notes.append(
            f"without rounding, the new model is off by up to {function:.1g} of an output; one rounding of every weight"
            f" moves the original by up to {sway:.1g}"
        )
        return list(found.values())

    def _decide(self) -> Verdict:
        """Turn figures into a verdict."""
        measured = self._figures
        wrong = self._settle(measured)
        doubtful = {f.inputs for f in wrong if f.is_measured}
        if doubtful:
            wrong = self._settle(self._examined(measured, doubtful))
        if wrong:
            f = wrong[0]
            errors = f" (error {f.error_after:.3g}, the original's {f.error_before:.3g})" if f.is_measured else ""
            where = f"{printable(f.output)} on {f.inputs}"
            return self._say("rejected", f"{where} differs{errors}{': ' if f.detail else ''}{f.detail}")
        undecided = sum(f.status == "undecided" for f in self._figures)
        if undecided:
            self._notes.append(f"{undecided} comparisons behind a discrete choice (TopK and the like) are undecided")
            if not self._choices.complete:
                return self._say(
                    "unverified", "outputs behind a discrete choice jump, and what feeds it cannot be seen"
                )
        for output in self._outputs:
            mine = [f for f in self._figures if f.output == output]
            if not any(f.status == "same" and not f.inputs.startswith(CONSTANT_SETS) for f in mine):
                if self._proven and all(f.detail == judge.ZERO for f in mine):
                    self._notes.append(
                        f"output {printable(output)} is zero on every input: only the folds' proofs count"
                    )
                    continue
                kinds = sorted({f.detail or f.status for f in mine})
                return self._say("unverified", f"output {printable(output)} decided nothing: {'; '.join(kinds[:2])}")
        return self._say("verified")


def activated(model: onnx.ModelProto, folded: Sequence[str]) -> list[str]:
    """Return what activations make of some values; a value that none reads itself."""
    readers: dict[str, list[str]] = {}
    made = {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Relu", "Clip", "ThresholdedRelu"):
            readers.setdefault(node.input[0], []).append(node.output[0])
    return [n for value in folded if value in made for n in readers.get(value, [value])]


def _same(first: Any, second: Any) -> bool:
    """Whether two results are bitwise equal, NaN included."""
    a, b = np.asarray(first), np.asarray(second)
    return a.shape == b.shape and a.tobytes() == b.tobytes()
