"""Rounds of folding: plan, emit, prove, commit, until nothing more is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import onnx

from onnxrep import blas, files, reasons, validity
from onnxrep.commute import COMMUTED, Commutation, Commuter
from onnxrep.constants import Constants
from onnxrep.emit import Emitter
from onnxrep.errors import InvalidModel
from onnxrep.escape import printable
from onnxrep.estimate import Estimator
from onnxrep.graph import Edit, Model, Scope, commit
from onnxrep.lift import LIFTED, Facts
from onnxrep.plan import Planner, Region, shared_goes
from onnxrep.proof.certificate import Certificate, Claim, certify
from onnxrep.ranges import Ranges
from onnxrep.rates import RATES
from onnxrep.report import records
from onnxrep.selection import EVERYTHING, Selection
from onnxrep.shapes import FOLLOWED, Shapes, infer
from onnxrep.structure import came_out, went_in

OLDEST_OPSET = 7
_MOST_ROUNDS = 12

_MOST_CALCULATED = 1 << 22
"""Numbers in float64 that gather before they are proven, and forgotten."""

Place = tuple[str, str]
"""A value: the label of its scope, and its name as it is printed."""

Watch = Callable[[Facts | None], None]
"""Is told what is known about the main graph, and None when that no longer holds because the graph has changed."""


def _unwatched(facts: Facts | None) -> None:
    """Watch nothing."""


def _unheard() -> None:
    """Do nothing."""


class Clock:
    """Seconds per stage."""

    def __init__(self, progress: Callable[[str], None] | None = None) -> None:
        """``progress``: is told each stage as it begins."""
        self.seconds: dict[str, float] = {}
        self.progress = progress or (lambda stage: None)
        self._stage, self._since = "", 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block for a stage, and not for the one around it."""
        self.progress(name)
        around = self._stage
        self._turn(name)
        try:
            yield
        finally:
            self._turn(around)
            if around:
                self.progress(around)

    def _turn(self, stage: str) -> None:
        """End the stage that is counted, and begin another."""
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._since, 4)
        self._stage, self._since = stage, now


@dataclass(frozen=True)
class _Proposal:
    """A fold that could be made, without the numbers that were calculated for it: they would fill the memory.

    Attributes:
        emitter: of its scope.
        scope: where it is.
        root: position of the node that makes its output.
        output: the value.
        removed, sources, shared: see :class:`onnxrep.plan.Region`.
        edit: what would be done.
        draft: the record of the fold, but for the proof.

    """

    emitter: Emitter
    scope: Scope
    root: int
    output: str
    removed: tuple[int, ...]
    sources: tuple[str, ...]
    shared: tuple[int, ...]
    edit: Edit
    draft: records.Fold

    @property
    def place(self) -> Place:
        """The value that it makes."""
        return self.scope.label, printable(self.output)

    def refusal(self, code: str, detail: str) -> records.Refusal:
        """Return the record of why it is not done."""
        return _refusal(self.scope, self.root, code, detail)


_Proven = tuple[_Proposal, records.Fold]


def fold(
    proto: onnx.ModelProto,
    folder: files.Folder | None,
    clock: Clock | None = None,
    skipped: Collection[Place] = (),
    selection: Selection = EVERYTHING,
    provider: str = "cpu",
    watch: Watch = _unwatched,
    found: Callable[[], None] = _unheard,
) -> tuple[list[records.Fold], list[records.Refusal]]:
    """Fold a model in place, in as many rounds as find something; return what was done and what was left alone.

    Args:
        proto: the model.
        folder: where its external data lies, or None.
        clock: is told the stages.
        skipped: values that no fold may make or look through.
        selection: what the caller lets fold.
        provider: the execution provider that the model is made for, ``cpu`` or ``cuda``.
        watch: is told what is known about the main graph.
        found: is called once, when the first fold is found, which is not proven yet.

    """
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        node = records.Node("(graph)", "")
        detail = f"opset {opset}; convert the model to opset {OLDEST_OPSET} or later"
        return [], [records.Refusal(node, "", "old-opset", reasons.REASONS["old-opset"], detail)]
    with blas.single():
        return _Folding(proto, folder, clock or Clock(), skipped, selection, provider, watch, found).run()


class _Folding:
    """The rounds of one model."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        folder: files.Folder | None,
        clock: Clock,
        skipped: Collection[Place],
        selection: Selection,
        provider: str,
        watch: Watch,
        found: Callable[[], None],
    ) -> None:
        self._proto, self._folder, self._clock, self._selection = proto, folder, clock, selection
        self._provider, self._watch, self._found = provider, watch, found
        self._skipped = set(skipped)
        self._doubts: set[Place] = set()
        self._changed = False
        self._apart: set[Place] = set()  # not to be taken over by all readers, until something else has changed
        self._names: set[tuple[str, str]] = set()
        self._folds: list[records.Fold] = []
        self._refusals: list[records.Refusal] = []
        self._count = 0
        self._claims: list[tuple[_Proposal, Claim]] = []
        self._calculated = 0  # for the claims
        self._certificates: dict[int, Certificate] = {}

    def run(self) -> tuple[list[records.Fold], list[records.Refusal]]:
        """Fold until nothing more is found."""
        for count in range(1, _MOST_ROUNDS + 1):
            if not self._round(count) and not self._forget_doubts():
                break
        return self._folds, self._refusals

    def _forget_doubts(self) -> bool:
        """Allow again what could not be proven if the graph has changed since; return whether that is so."""
        again = bool(self._doubts) and self._changed
        self._skipped -= self._doubts
        self._doubts.clear()
        self._changed = False
        return again

    def _round(self, count: int) -> bool:
        """Fold once; return whether another round may find more."""
        with self._clock.stage("view"):
            model = Model(self._proto, self._folder, LIFTED | FOLLOWED | COMMUTED)
            every = known_facts(model)
        self._watch(every[0])
        present = {(s.label, s.node_label(p)) for s in model.scopes for p in range(len(s.nodes))}
        self._names = self._names or present
        self._refusals = [r for r in self._refusals if (r.scope, r.node.name) in present]
        self._count, self._certificates = count, {}
        with self._clock.stage("plan"):
            proposals = [p for facts in every for p in self._exchanged(facts, early=True)]
            proposals = proposals or [p for facts in every for p in self._planned(facts)]
            proposals = proposals or [p for facts in every for p in self._exchanged(facts, early=False)]
        self._prove()
        proven: list[_Proven] = []
        for proposal in proposals:
            certificate = self._certificates[id(proposal)]
            if certificate.fault:
                self._doubts.add(proposal.place)
                code = "unproven" if certificate.undecided else "certificate"
                self._note([proposal.refusal(code, certificate.fault)])
            else:
                proven.append((proposal, replace(proposal.draft, certificate=_record(certificate))))
        proven = [pair for pair in proven if self._is_selected(*pair)]
        self._skipped |= self._doubts
        proven, incomplete = _complete(proven)
        self._apart = set() if proven else self._apart | incomplete
        self._folds += [fold for _, fold in proven]
        if proven:
            self._watch(None)
            with self._clock.stage("commit"):
                commit(model, list(_edits([proposal for proposal, _ in proven])))
                _check_whole(self._proto)
            self._changed = True
        return bool(proposals)

    def _is_selected(self, proposal: _Proposal, fold: records.Fold) -> bool:
        """Whether the caller wants a fold; one that is not wanted is not offered again."""
        select = self._selection.select
        if select is None or select(fold):
            return True
        self._skipped.add(proposal.place)
        self._note([proposal.refusal("excluded", f"{proposal.place[1]} was not selected")])
        return False

    def _proposal(
        self,
        origin: Planner | Commuter,
        emitter: Emitter,
        region: Region | Commutation,
        edit: Edit,
        seconds: tuple[float, float],
    ) -> _Proposal:
        """Return a region and its edit as a proposal, and claim that both are the same; prove what has gathered."""
        facts, scope = emitter.facts, emitter.scope
        draft = records.Fold(
            printable(str(edit.nodes[-1].outputs[0].name)),
            tuple(map(printable, region.sources)),
            region.kind,
            scope.label,
            tuple(went_in(facts, region.covered)),
            tuple(came_out(scope, edit)),
            (region.before.macs, region.after.macs),
            self._count,
            _record(Certificate()),
            tuple(_ranges(found) for s in region.summands if (found := s.ranges) is not None),
            seconds,
        )
        taken = region.removed, region.sources, region.shared
        proposal = _Proposal(emitter, scope, region.root, region.output, *taken, edit.rounded, draft)
        read, equal = region.sources, origin.representative
        claim = Claim(facts, region.output, read, region.spatial, region.rounded, edit, equal)
        self._claims.append((proposal, claim))
        self._calculated += edit.calculated
        if self._calculated > _MOST_CALCULATED:
            self._prove()
        return proposal

    def _prove(self) -> None:
        """Prove the claims that have gathered."""
        with self._clock.stage("prove"):
            found = certify([claim for _, claim in self._claims])
        self._certificates |= {id(p): proof for (p, _), proof in zip(self._claims, found, strict=True)}
        self._claims, self._calculated = [], 0

    def _exchanged(self, facts: Facts, *, early: bool) -> list[_Proposal]:
        """Return the exchanges of neighbours in one scope, those to make before or after folding."""
        if not any(node.op in COMMUTED for node in facts.scope.nodes):
            return []
        fixed = {*_values(self._skipped, facts.scope), *self._selection.excluded(facts.scope)}
        commuter, emitter = Commuter(facts, fixed, self._provider), Emitter(facts)
        every = commuter.early() if early else commuter.late()
        found = []
        for each in every:
            objection = self._selection.objection(facts.scope, each)
            if not objection:
                found.append(each)
            elif not early:
                self._note([_refusal(facts.scope, each.root, "excluded", objection)])
        if found:
            self._tell()
        if not early:
            self._note(_refusal(facts.scope, r.position, r.code, r.detail) for r in commuter.refusals())
        time = Estimator(facts, RATES[self._provider])
        estimated = ((each, time.seconds(each.removed, each.edit, each.output)) for each in found)
        return [self._proposal(commuter, emitter, each, each.edit, seconds) for each, seconds in estimated]

    def _planned(self, facts: Facts) -> list[_Proposal]:
        """Plan and emit the regions of one scope, in the order of the graph."""
        skipped, apart = (_values(places, facts.scope) for places in (self._skipped, self._apart))
        excluded = self._selection.excluded(facts.scope)
        planner, emitter = Planner(facts, skipped, apart, excluded), Emitter(facts)
        time = Estimator(facts, RATES[self._provider])
        found: list[_Proposal] = []
        for region in planner.regions():
            objection = self._selection.objection(facts.scope, region)
            if objection:
                planner.refuse(region, "excluded", objection)
                continue
            self._tell()
            try:
                edit = emitter.edit(region)
                seconds = time.seconds((*region.removed, *region.shared), edit, region.output)
            except OverflowError as error:
                planner.refuse(region, "overflow", str(error))
                continue
            found.append(self._proposal(planner, emitter, region, edit, seconds))
        self._note(_refusal(facts.scope, r.position, r.code, r.detail) for r in planner.refusals())
        return found[::-1]

    def _tell(self) -> None:
        """Say once that something was found."""
        found, self._found = self._found, _unheard
        found()

    def _note(self, refusals: Iterable[records.Refusal]) -> None:
        """Remember refusals, in the names of the input, of which those of what is left are a part."""
        said = {(r.scope, r.node, r.code) for r in self._refusals}
        for refusal in refusals:
            known = (refusal.scope, refusal.node.name) in self._names
            if known and (refusal.scope, refusal.node, refusal.code) not in said:
                self._refusals.append(refusal)


def _complete(proven: list[_Proven]) -> tuple[list[_Proven], set[Place]]:
    """Return proposals without those that count on others to take something over that do not, and what that is."""
    incomplete: set[Place] = set()
    while True:
        good = []
        by_scope: dict[int, list[_Proposal]] = {}
        for proposal, _ in proven:
            by_scope.setdefault(id(proposal.scope), []).append(proposal)
        for proposal, fold in proven:
            scope = proposal.scope
            if not proposal.shared or shared_goes(proposal, scope, by_scope[id(scope)]):
                good.append((proposal, fold))
                continue
            values = (v for position in proposal.shared for v in scope.outputs_of(position))
            incomplete.update((scope.label, printable(value)) for value in values)
        if len(good) == len(proven):
            return good, incomplete
        proven = good


def _values(places: Collection[Place], scope: Scope) -> list[str]:
    """Return the values that a scope makes among some places."""
    names = {value for label, value in places if label == scope.label}
    return [value for value in scope.producer if names and printable(value) in names]


def _edits(proposals: Sequence[_Proposal]) -> Iterator[tuple[Scope, Edit]]:
    """Yield the edits of some regions, and what makes the values that several of them read."""
    by_scope: dict[int, list[_Proposal]] = {}
    for proposal in proposals:
        by_scope.setdefault(id(proposal.scope), []).append(proposal)
        yield proposal.scope, proposal.edit
    for mine in by_scope.values():
        for edit in mine[0].emitter.movements(p.edit for p in mine):
            yield mine[0].scope, edit


def _refusal(scope: Scope, position: int, code: str, detail: str) -> records.Refusal:
    """Return the record of a refusal."""
    node = records.Node(scope.node_label(position), scope.nodes[position].op)
    return records.Refusal(node, scope.label, code, reasons.REASONS[code], printable(detail))


def _check_whole(proto: onnx.ModelProto) -> None:
    """Check that a folded graph hangs together: if not, that is an error of this package, and nothing is written."""
    try:
        validity.check(proto, "the folded model")
    except InvalidModel as error:
        raise AssertionError(str(error)) from error


def known_facts(model: Model) -> list[Facts]:
    """Return what is known about each scope, outer scopes first."""
    inferred = infer(model)
    known: dict[int, Facts] = {}
    for scope in model.scopes:
        outer = known.get(id(scope.parent)) if scope.parent is not None else None
        graph = inferred.get(id(scope))
        dims: dict[str, tuple[int, ...]] = {}
        constants = Constants(scope, graph, outer.constants if outer else None, dims)
        shapes = Shapes(scope, constants, graph, outer.shapes if outer else None)
        while news := {n: d for n, d in shapes.newly_static() if n not in dims}:
            dims |= news  # makes constants of what is computed from these shapes, and those make more shapes
            constants = Constants(scope, graph, outer.constants if outer else None, dims)
            shapes.refine(constants)
        known[id(scope)] = Facts(scope, constants, shapes)
    return list(known.values())


def _record(found: Certificate) -> records.Certificate:
    """Return the record of a proof."""
    return records.Certificate(found.sizes, found.probes, found.error, found.bound)


def _ranges(found: Ranges) -> records.Ranges:
    """Return the record of a kernel's range."""
    return records.Ranges(**vars(found), spread=found.spread, at_risk=found.at_risk)
