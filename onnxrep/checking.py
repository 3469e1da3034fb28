"""The end-to-end check of a folded message, and what follows from it: folds taken back, a file loaded once more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx

from onnxrep import files, reasons, rollback, validity
from onnxrep.errors import OutputError
from onnxrep.escape import printable
from onnxrep.folding import Place
from onnxrep.options import Options
from onnxrep.report import records

if TYPE_CHECKING:
    from onnxrep.proof.check import Verdict
    from onnxrep.proof.inputs import Wishes
    from onnxrep.proof.original import Original
    from onnxrep.proof.sessions import Runtime
    from onnxrep.proof.sides import Side

Folded: TypeAlias = "tuple[list[records.Fold], list[records.Refusal]]"


@dataclass(frozen=True)
class Checked:
    """What the end-to-end check found, if it was run, and the model's bytes if they, but for more outputs, were run."""

    record: records.Verification | None
    ran: bytes | None = None

    @property
    def verdict(self) -> str:
        """See :class:`records.Verification`; empty if it was not run."""
        return self.record.verdict if self.record else ""

    @property
    def reason(self) -> str:
        """Why it did not pass."""
        return self.record.reason if self.record else ""

    @property
    def itself(self) -> bool:
        """Whether it passed, and it was the model itself that was run, not a stand-in."""
        return self.record is not None and self.verdict == "verified" and "all" in self.record.levels


class Checking(AbstractContextManager["Checking"]):
    """The check of one source's message; its end ends all that was begun."""

    def __init__(self, source: files.ModelFile, options: Options) -> None:
        """Begin nothing."""
        self._source, self._options = source, options
        self._original: Original | None = None

    def __exit__(self, *_: object) -> None:
        """End what was begun."""
        self._end()

    def _end(self) -> None:
        """End what was begun; another check begins anew."""
        if self._original is not None:
            self._original.close()
            self._original = None

    def begin(self) -> None:
        """Begin to run the original: there will be something to check."""
        from onnxrep.proof.original import Original, may_begin

        runtime = runtime_of(self._options)
        if may_begin(self._source.model, runtime):
            self._original = Original(self._before(), runtime, wishes_of(self._options))
            self._original.begin()

    def verify(self, folds: Sequence[records.Fold], progress: Callable[[str], None] = lambda stage: None) -> Checked:
        """Check the folded message against the bytes that were read."""
        from onnxrep.proof.check import Verdict

        try:
            before, after = self._original.side if self._original is not None else self._before(), self._after()
            fault = _checker_fault(before, after)
            if fault:
                reason = f"onnx.checker refuses the folded model: {fault}"
                return Checked(_record(Verdict("rejected", reason, provider=self._options.provider)))
            made = [fold.output for fold in folds if not fold.scope]
            found = Checked(compared(before, after, self._options, made, progress, self._original))
        finally:
            self._end()
        return replace(found, ran=after.message) if found.itself and after.serialized is after.message else found

    def rolled_back(
        self,
        folds: list[records.Fold],
        refusals: list[records.Refusal],
        rejection: Checked,
        refold: Callable[[Collection[Place]], Folded],
    ) -> tuple[list[records.Fold], list[records.Refusal], Checked]:
        """Fold a rejected model again without the folds that cause it; return what was done, and the verdict on it.

        Where no folds can be found without which the rest passes, all stays as it was. ``refold`` folds the source
        anew, without some folds.
        """
        every = [(fold.scope, fold.output) for fold in folds]
        left: Folded = folds, refusals
        checked = rejection

        def passes(kept: Collection[Place]) -> bool:
            nonlocal left, checked
            left = refold(set(every) - set(kept))
            checked = self.verify(left[0])
            if checked.verdict == "unverified":
                raise rollback.Undecided
            return bool(left[0]) and checked.verdict == "verified"

        bad = rollback.culprits(every, self._blamed(folds), passes)
        if not bad:
            refold(())
            return folds, refusals, rejection
        lost = [fold for fold in folds if (fold.scope, fold.output) in bad]
        return left[0], [*left[1], *(_taken_back(fold, rejection.reason) for fold in lost)], checked

    def loads(self, checked: Checked) -> Callable[[Path], None]:
        """Return a check that ONNX Runtime loads a file: the model itself, no stand-in, must have been run before."""

        def check(path: Path) -> None:
            from onnxrep.proof.errors import CannotRun

            try:
                runtime_of(self._options).session(path, "off")
            except CannotRun as error:
                raise OutputError(f"not written: ONNX Runtime does not load it from its file ({error})") from None

        return check if checked.itself else lambda path: None

    def _before(self) -> Side:
        """Return the original."""
        from onnxrep.proof.sides import Side

        original = self._source.fresh()
        validity.check(original, "the original")
        return Side(original, self._source.data, self._source.folder)

    def _after(self) -> Side:
        """Return the message as it is."""
        from onnxrep.proof.sides import Side

        return Side(self._source.model, None, self._source.folder)

    def _blamed(self, folds: Sequence[records.Fold]) -> list[Place]:
        """Return the folds of the main graph that differ by themselves, fed with what the original makes."""
        from onnxrep.proof.blame import suspects
        from onnxrep.proof.errors import CannotRun, NoInput

        before, after = self._before(), self._after()
        made = {printable(o): o for side in (before, after) for n in side.model.graph.node for o in n.output}
        made |= {printable(v.name): v.name for v in before.model.graph.input}
        places = [(made[f.output], [made[s] for s in f.sources if s in made]) for f in folds if not f.scope]
        try:
            found = suspects(before, after, places, runtime_of(self._options), wishes_of(self._options))
        except (CannotRun, NoInput):
            return []
        return [("", printable(output)) for output in found]


def runtime_of(options: Options) -> Runtime:
    """Return where models run."""
    from onnxrep.proof.sessions import Runtime

    return Runtime(options.provider, options.threads, custom_ops=tuple(options.custom_ops_lib))


def wishes_of(options: Options) -> Wishes:
    """Return what the user says about inputs."""
    from onnxrep.proof.inputs import Wishes

    return Wishes(options.input_shapes, options.input_data, options.input_ranges)


def compared(
    before: Side,
    after: Side,
    options: Options,
    folded: Sequence[str] = (),
    progress: Callable[[str], None] = lambda stage: None,
    begun: Original | None = None,
) -> records.Verification:
    """Run the end-to-end check and record it; see :func:`onnxrep.proof.check.check`."""
    from onnxrep.proof.check import check

    return _record(check(before, after, runtime_of(options), wishes_of(options), folded, progress, begun))


def _record(verdict: Verdict) -> records.Verification:
    """Return the record of a verdict."""
    from onnxrep.proof import judge

    outputs = (replace(f, output=printable(f.output)) for f in verdict.figures)
    fields = {**vars(verdict), "outputs": tuple(records.OutputCheck(**vars(f)) for f in outputs)}
    del fields["figures"]
    return records.Verification(constants=judge.CONSTANTS, **fields)


def _taken_back(fold: records.Fold, reason: str) -> records.Refusal:
    """Return the record of a fold that was not kept."""
    node = records.Node(fold.removed[-1].name, fold.removed[-1].op)
    detail = f"{fold.output}: {reason}"
    return records.Refusal(node, fold.scope, "taken-back", reasons.REASONS["taken-back"], detail)


def _checker_fault(before: Side, after: Side) -> str:
    """Say what onnx.checker has against the folded model that it does not have against the original."""
    from onnxrep.proof.errors import CannotRun

    try:
        message = after.message
    except CannotRun:  # it is too large, which the check itself will say
        return ""
    try:
        onnx.checker.check_model(message)
    except Exception as error:  # noqa: BLE001  the checker raises what it likes
        try:
            onnx.checker.check_model(before.message)
        except Exception:  # noqa: BLE001
            return ""
        return str(error).splitlines()[0]
    return ""
