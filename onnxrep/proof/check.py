"""The end-to-end check: run original and new model on many inputs, judge every output, give a verdict."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrep.errors import UsageError
from onnxrep.escape import printable
from onnxrep.proof import judge
from onnxrep.proof.choices import Choices, discrete_choices
from onnxrep.proof.emulation import in_bfloat16, number_types
from onnxrep.proof.errors import CannotRun, NoInput, NoTwin
from onnxrep.proof.inputs import CONSTANT_SETS, InputSet, Wishes
from onnxrep.proof.judge import OutputFigures, compare, settle
from onnxrep.proof.original import LEVELS, Original, Runs, is_random
from onnxrep.proof.reference import Reference
from onnxrep.proof.sessions import Level, Runtime, Session
from onnxrep.proof.sides import Side, interface_fault, roundoff_of
from onnxrep.proof.twin import Twin

NO_MEMORY = "not enough memory"
"""Begins the reason of a check that another machine, or a larger share of this one, could do."""


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
    begun: Original | None = None,
) -> Verdict:
    """Judge whether two models are the same function.

    Args:
        before: the original.
        after: the new model.
        runtime: where both run.
        wishes: what the user says about inputs.
        folded: values of the new model that folds made, if they are known.
        progress: is told each input set.
        begun: runs of the original with the same runtime and wishes that have begun; closed where they are no help.

    Raises:
        UsageError: the user's shapes or data do not fit the model.
        ProviderUnavailable: the provider does not run the models.

    """
    fault = interface_fault(before.model, after.model)
    if fault:
        return Verdict("rejected", f"interface: {fault}", provider=runtime.provider)
    choices = discrete_choices(before.model, after.model)
    watched = [n for n in dict.fromkeys((*choices.causes, *choices.results)) if n not in before.outputs]
    if begun is not None:
        with closing(begun), suppress(MemoryError):  # there may be more of it now
            if not watched and begun.is_ahead():
                return _Check(begun, after, choices, folded, progress).verdict()
    with closing(Original(before, runtime, wishes, watched)) as original:
        check = _Check(original, after, choices, folded, progress)
        try:
            return check.verdict()
        except MemoryError as error:
            return check.say("unverified", f"{NO_MEMORY}: {error}" if str(error) else NO_MEMORY)


class _Check:
    """One run of the check."""

    def __init__(
        self,
        original: Original,
        after: Side,
        choices: Choices,
        folded: Sequence[str],
        progress: Callable[[str], None],
    ) -> None:
        self._original, self._after, self._choices, self._progress = original, after, choices, progress
        self._before = original.side
        self._references = {
            "original": original.reference,
            "moved": Reference(self._before, original.watched, original.runtime, moved=True),
            "new": Reference(after, original.watched, original.runtime),
        }
        self._roundoff = roundoff_of(self._before.model, after.model)
        self._figures: list[OutputFigures] = []
        self._ran: list[str] = []
        self._jumped: set[str] = set()
        self._proven = bool(folded)
        self._notes: list[str] = []
        self._levels: tuple[Level, ...] = LEVELS
        self._first: tuple[InputSet, dict[str, Any]] | None = None
        self._fired: dict[str, NDArray[np.bool_]] = {name: np.zeros(0, bool) for name in activated(after.model, folded)}

    def verdict(self) -> Verdict:
        """Run everything and decide.

        Raises:
            MemoryError: there is too little of it.

        """
        original, after = self._original, self._after
        if is_random(self._before.model):
            return self.say("unverified", "the model draws random numbers")
        try:
            if not original.sessions:
                original.load()
        except CannotRun as error:
            try:
                played, after = self._stand_ins()
                original.load(played, self._levels)
            except CannotRun:
                return self.say("unverified", f"ONNX Runtime does not run the original: {error}")
            except NoTwin as fault:
                return self.say("unverified", f"ONNX Runtime does not run the original ({error}), nor {fault}")
        seen = (*self._before.outputs, *original.watched)
        try:
            new = original.loaded(after, self._levels, [name for name in self._fired if name not in seen])
        except CannotRun as error:
            return self.say("rejected", f"ONNX Runtime does not load the new model: {error}")
        try:
            stop = self._run_all(new)
            if stop is not None:
                return stop
            self._note_device(after)
            return self._decide()
        except NoInput as error:
            return self.say("unverified", f"no legal input: {error}")
        except NoTwin as error:
            return self.say("unverified", f"no float64 twin: {error}")

    def say(self, verdict: str, reason: str = "") -> Verdict:
        """Return a verdict, with all that is known."""
        return Verdict(
            verdict,
            reason,
            tuple(self._figures),
            self._original.runtime.provider,
            self._levels,
            tuple(self._ran),
            self._original.seed,
            self._roundoff,
            tuple(sorted(self._islands())),
            tuple(self._notes),
            sum(fired.size for fired in self._fired.values()),
            sum(int(np.sum(~fired)) for fired in self._fired.values()),
        )

    def _islands(self) -> set[str]:
        """Return the op types that the twins ran in float32, if they judged anything."""
        return {op for reference in self._references.values() for op in reference.islands} if self._ran else set()

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

    def _run_all(self, new: Sequence[Session]) -> Verdict | None:
        """Compare on all input sets, the next of which runs already; return a verdict if one decides.

        Raises:
            NoInput, UsageError: there are no further ones, although there should be, and those before decide nothing.
        """
        original = self._original
        waiting: deque[tuple[Runs, list[Future[dict[str, Any]]]]] = deque()
        fault: Exception | None = None
        try:
            for count, (inputs, runs) in enumerate(original.sets(), 1):
                self._progress(f"verify on input set {count}")
                while len(waiting) >= original.workers:  # there may be fewer from this input set on
                    if (stop := self._compare(*waiting.popleft())) is not None:
                        return stop
                begun = runs or original.run(inputs, again=count == 1)
                waiting.append((begun, [original.submit(s.run, inputs.feeds) for s in new]))
        except (NoInput, UsageError) as error:
            fault = error
        for each in waiting:
            if (stop := self._compare(*each)) is not None:
                return stop
        if fault is None:
            return None
        with suppress(NoInput, UsageError):
            verdict = self._decide()
            if verdict.verdict == "rejected":
                return verdict
        raise fault

    def _compare(self, runs: Runs, new: Sequence[Future[dict[str, Any]]]) -> Verdict | None:
        """Compare what the models make of one input set; return a verdict if nothing more needs to be run."""
        inputs = runs.inputs
        try:
            before, repeated = ([run.result() for run in many] for many in (runs.before, runs.repeated))
        except CannotRun as error:
            return self.say("unverified", f"ONNX Runtime does not run the original on {inputs.name}: {error}")
        if any(not _same(before[0][k], values[k]) for values in repeated for k in values):
            return self.say("unverified", "the original differs from itself in a second run")
        try:
            after = [run.result() for run in new]
        except CannotRun as error:
            return self.say("rejected", f"ONNX Runtime does not run the new model on {inputs.name}: {error}")
        self._watch(after[0])
        reference = runs.reference.result()
        self._first = self._first or (inputs, reference)
        self._ran.append(inputs.name)
        everything = [*before, *after, reference]
        jumped = any(not np.array_equal(before[0][r], run[r]) for r in self._choices.results for run in everything[1:])
        for name in dict.fromkeys((*self._before.outputs, *self._choices.causes)):
            mine, theirs = [b[name] for b in before], [a[name] for a in after]
            self._figures.append(compare(name, inputs.name, mine, theirs, reference[name]))
        if jumped:
            self._jumped.add(inputs.name)
        return None

    def _note_device(self, after: Side) -> None:
        """Note what CUDA does besides: which precision it has by default, and whether it leaves nodes to the CPU."""
        if self._original.runtime.provider != "cuda" or self._first is None:
            return
        inputs, reference = self._first
        runtime = replace(self._original.runtime, tf32=True)
        values = runtime.session(after.serialized, "all", after.folder).run(inputs.feeds)
        errors = [judge.relative_error(values[name], reference[name]) for name in self._before.outputs]
        self._notes.append(
            f"judged with TF32 off; with it on, as CUDA has it by default, the new model is off by {max(errors):.1g} of"
            " the output"
        )
        try:
            self._original.runtime.session(after.serialized, "all", after.folder, alone=True)
        except CannotRun:
            self._notes.append("some nodes of the new model run on the CPU: CUDA has no kernels for them")

    def _watch(self, values: Mapping[str, Any]) -> None:
        """Note which channels of folded regions are not zero."""
        for name, fired in self._fired.items():
            value = np.asarray(values[name])
            if value.ndim > 1:
                now = np.any(value != 0, axis=tuple(a for a in range(value.ndim) if a != 1))
                self._fired[name] = now | fired if fired.size == now.size else now

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

    def _examined(self, measured: Sequence[OutputFigures], doubtful: Set[str]) -> list[OutputFigures]:
        """Return figures with what only float64 can tell, on some input sets."""
        found = {(f.output, f.inputs): f for f in measured}
        for inputs in self._original.ran_again(doubtful):
            reference, moved, new = (self._references[kind].run(inputs) for kind in ("original", "moved", "new"))
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
            return self.say("rejected", f"{where} differs{errors}{': ' if f.detail else ''}{f.detail}")
        undecided = sum(f.status == "undecided" for f in self._figures)
        if undecided:
            self._notes.append(f"{undecided} comparisons behind a discrete choice (TopK and the like) are undecided")
            if not self._choices.complete:
                return self.say("unverified", "outputs behind a discrete choice jump, and what feeds it cannot be seen")
        for output in self._before.outputs:
            mine = [f for f in self._figures if f.output == output]
            if not any(f.status == "same" and not f.inputs.startswith(CONSTANT_SETS) for f in mine):
                if self._proven and all(f.detail == judge.ZERO for f in mine):
                    self._notes.append(
                        f"output {printable(output)} is zero on every input: only the folds' proofs count"
                    )
                    continue
                kinds = sorted({f.detail or f.status for f in mine})
                return self.say("unverified", f"output {printable(output)} decided nothing: {'; '.join(kinds[:2])}")
        return self.say("verified")


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
