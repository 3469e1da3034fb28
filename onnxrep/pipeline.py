"""The way of one model: load, view, lift, plan, emit, commit, verify, save. The only place that knows this order."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxrep import __version__, files, reasons, rollback, validity
from onnxrep.errors import OutputError, UnsupportedModel, UsageError
from onnxrep.escape import printable
from onnxrep.folding import Clock, Place, fold
from onnxrep.report import records
from onnxrep.report.records import Report
from onnxrep.selection import Selection
from onnxrep.totals import totals

if TYPE_CHECKING:
    from onnxrep.lift import Facts
    from onnxrep.proof.check import Verdict
    from onnxrep.proof.inputs import Wishes
    from onnxrep.proof.sides import Side
    from onnxrep.tuning.whole import Tuned

Folded: TypeAlias = "tuple[list[records.Fold], list[records.Refusal]]"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
ModelLike: TypeAlias = "str | Path | bytes | onnx.ModelProto | gs.Graph | files.ModelFile"


@dataclass(frozen=True)
class Options:
    """How a model is treated.

    Attributes:
        verify: run the end-to-end check.
        provider: ``cpu`` or ``cuda``, where both models run for the check.
        input_shapes: input name -> shape, for inputs with dynamic dimensions.
        input_ranges: input name -> smallest and largest value that it will get; inputs that the model itself declares
            as images have the range of its metadata.
        input_data: a ``.npz`` file with inputs to check on besides the random ones.
        allow_unverified: write a model also if the check could not decide.
        inline_functions: replace calls of local functions by their bodies, so that what is in them can fold;
            a model in which nothing folds stays as it was.
        external_data: write all weights into a data file beside the model.
        follow_symlinks: write through an output path that is a symbolic link.
        hf_cache: read models in a Hugging Face cache, whose files are links: follow those that stay inside the
            repository's own cache folder.
        custom_ops_lib: libraries of custom ops for ONNX Runtime. They are code that runs, so name only trusted ones.
        threads: for ONNX Runtime; 0 leaves it to choose, and means one thread where times are taken.
        bench: time original and result side by side, and put it in the report.
        tune: time regions where the price may be wrong, as they were and folded, and take what is faster.
        tune_cache: folder for the times of regions; None: where the platform keeps caches.
        only_nodes: patterns as of :mod:`fnmatch` for names of nodes or of their outputs: a region folds only if one of
            its nodes matches one; empty for all.
        exclude_nodes: the same for nodes that stay as they are; what is around them folds without them.
        kinds: kinds of folds that are made (``merge``, ``fuse``, ``move``); empty for all.
        select: is given the record of each fold, proven and not yet made, and says whether to make it.

    """

    verify: bool = True
    provider: str = "cpu"
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    input_data: Path | None = None
    allow_unverified: bool = False
    inline_functions: bool = False
    external_data: bool = False
    follow_symlinks: bool = False
    hf_cache: bool = False
    custom_ops_lib: Sequence[Path] = ()
    threads: int = 0
    bench: bool = False
    tune: bool = False
    tune_cache: Path | None = None
    only_nodes: Sequence[str] = ()
    exclude_nodes: Sequence[str] = ()
    kinds: Sequence[str] = ()
    select: Callable[[records.Fold], bool] | None = None


@dataclass(frozen=True)
class Result:
    """What became of a model.

    Attributes:
        model: the folded model, or the original if nothing folded or the check did not pass.
        report: all figures.

    """

    model: onnx.ModelProto
    report: Report

    @property
    def status(self) -> str:
        """``folded``, ``unchanged``, ``rejected`` or ``unverified``."""
        return self.report.status

    @property
    def ok(self) -> bool:
        """Whether the model can be used: it folded and passed, or there was nothing to fold."""
        return self.report.status in ("folded", "unchanged")

    def graph(self) -> gs.Graph:
        """Return the model as an onnx-graphsurgeon graph of its own."""
        return gs.import_onnx(self.model)


@dataclass(frozen=True)
class _Checked:
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


def optimize(
    model: ModelLike,
    output: str | Path | None = None,
    options: Options | None = None,
    *,
    keep_unchanged: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Fold one model, verify it, and write it if ``output`` is given.

    Args:
        model: a path, the bytes of a model, a ModelProto (not changed), an onnx-graphsurgeon graph, or a file that was
            read already (whose message is changed).
        output: where to write; None writes nothing.
        options: see :class:`Options`.
        keep_unchanged: write the input's bytes to ``output`` where nothing folds.
        progress: is told what is being done, in a word or two.

    Returns:
        The folded model with its report. Look at ``status``: a model that was rejected or could not be verified comes
        back as it was, and nothing is written.

    Raises:
        UsageError: the call is wrong (missing input, shapes that do not fit, a provider that is not there).
        InvalidModel, UnsupportedModel: the input is no model that can be worked on.
        OutputError: the output could not be written.

    Examples:
        >>> from onnx import parser
        >>> model = parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["" : 17]>
        ...     net (float[1,1,4,4] x) => (float[1,1,4,4] y)
        ...     <float[1,1,1,1] w = {2.0}, float[1,1,1,1] v = {3.0}>
        ...     { a = Conv(x, w)  b = Conv(x, v)  y = Add(a, b) }
        ... ''')
        >>> result = optimize(model)
        >>> result.status, result.report.verification.verdict
        ('folded', 'verified')
        >>> [node.op_type for node in result.model.graph.node]
        ['Conv']

    """
    options = options or Options()
    clock = Clock(progress)
    target = Path(output) if output is not None else None
    if target is not None:
        files.check_target(target, options.follow_symlinks)
    if options.verify or options.bench or options.tune:
        _runtime(options).check()
    with clock.stage("read"):
        source = load(model, options.hf_cache)
        external = source.external_digests
    before = Counter(_ops(source.model))
    bytes_before = files.weight_bytes(source.model)
    counting = _Counting(source, options, clock)
    unmatched = _selection(options).unmatched(source.model)
    folds, refusals = _fold_all(source, options, clock, counting=counting)
    tuned = None
    if folds and options.tune:
        with clock.stage("tune"):
            counting.facts = None
            tuned = _tuned(source, options)
            folds, refusals = tuned.folds, tuned.refusals
    latency, untimed = tuned.latency if tuned else None, options.bench
    checked = _Checked(None)
    status = "folded" if folds else "unchanged"
    if folds and options.verify:
        with clock.stage("verify"):
            checked = _verify(source, options, folds, clock.progress)
        if checked.verdict == "rejected" and len(folds) > 1:
            with clock.stage("roll back"):
                skipped = tuned.skipped if tuned else ()
                counting.facts = None
                folds, refusals, checked = _rolled_back(source, options, folds, refusals, checked, skipped)
                latency, untimed = None, options.bench or options.tune
        status = {"verified": "folded"}.get(checked.verdict, checked.verdict)
    good = status in ("folded", "unchanged") or (status == "unverified" and options.allow_unverified)
    if untimed and folds and good and latency is None:
        with clock.stage("bench"):
            latency = _timed(source, options)
    written: list[Path] = []
    if target is not None and good and (folds or keep_unchanged):
        with clock.stage("write"):
            written = files.write(
                target,
                source.model,
                source,
                changed=bool(folds),
                ran=checked.ran,
                external=options.external_data,
                follow_symlinks=options.follow_symlinks,
                check=_loading(checked, options),
            )
    report = Report(
        status,
        str(source.path or ""),
        source.digest,
        str(target) if written else "",
        tuple(str(p) for p in written),
        dict(before),
        dict(Counter(_ops(source.model))),
        bytes_before,
        files.weight_bytes(source.model),
        tuple(folds),
        tuple(refusals),
        checked.record,
        clock.seconds,
        versions(),
        _given(options),
        external,
        latency,
        counting.before,
        counting.totals(),
        tuned.record if tuned else None,
        unmatched,
    )
    return Result(source.model if good else source.fresh(), report)


def inspect(
    model: ModelLike, options: Options | None = None, *, progress: Callable[[str], None] | None = None
) -> Report:
    """Say what would fold in a model and what would not, and why; nothing is verified or written.

    Args:
        model: as for :func:`optimize`.
        options: see :class:`Options`; ``input_shapes`` say at which size arithmetic is counted.
        progress: as for :func:`optimize`.

    Raises:
        UsageError, InvalidModel, UnsupportedModel: see :func:`optimize`.

    Examples:
        >>> from onnx import parser
        >>> model = parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["" : 17]>
        ...     net (float[1,1,4,4] x) => (float[1,1,4,4] y)
        ...     <float[1,1,1,1] w = {2.0}, float[1,1,1,1] v = {3.0}>
        ...     { a = Conv(x, w)  b = Conv(x, v)  y = Add(a, b) }
        ... ''')
        >>> report = inspect(model)
        >>> [(fold.kind, fold.output, fold.macs) for fold in report.folds]
        [('merge', 'y', (2.0, 1.0))]
        >>> report.totals_before.macs, report.totals_after.macs
        (32, 16)

    """
    options, clock = options or Options(), Clock(progress)
    with clock.stage("read"):
        source = load(model, options.hf_cache)
    before, bytes_before = Counter(_ops(source.model)), files.weight_bytes(source.model)
    counting = _Counting(source, options, clock)
    unmatched = _selection(options).unmatched(source.model)
    folds, refusals = _fold_all(source, options, clock, counting=counting)
    return Report(
        "folded" if folds else "unchanged",
        str(source.path or ""),
        source.digest,
        "",
        (),
        dict(before),
        dict(Counter(_ops(source.model))),
        bytes_before,
        files.weight_bytes(source.model),
        tuple(folds),
        tuple(refusals),
        None,
        clock.seconds,
        versions(),
        _given(options),
        totals_before=counting.before,
        totals_after=counting.totals(),
        unmatched=unmatched,
    )


def verify(before: ModelLike, after: ModelLike, options: Options | None = None) -> records.Verification:
    """Judge whether two models with the same interface are the same function.

    Raises:
        UsageError, InvalidModel, UnsupportedModel: see :func:`optimize`.

    Examples:
        >>> from onnx import parser
        >>> model = parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["" : 17]>
        ...     net (float[1,1,4,4] x) => (float[1,1,4,4] y)
        ...     <float[1,1,1,1] w = {2.0}, float[1,1,1,1] v = {3.0}>
        ...     { a = Conv(x, w)  b = Conv(x, v)  y = Add(a, b) }
        ... ''')
        >>> verify(model, optimize(model).model).verdict
        'verified'

    """
    options = options or Options()
    _runtime(options).check()
    from onnxrep.proof.sides import Side

    old, new = load(before, options.hf_cache), load(after, options.hf_cache)
    return _check(Side(old.model, old.data, old.folder), Side(new.model, new.data, new.folder), options)


def bench(
    before: ModelLike,
    after: ModelLike,
    options: Options | None = None,
    *,
    rounds: int = 200,
    seconds: float = 10.0,
    progress: Callable[[float], None] | None = None,
) -> records.Comparison:
    """Time two models with the same inputs side by side, in interleaved rounds, as ONNX Runtime runs them.

    Args:
        before: a model, as for :func:`optimize`.
        after: another.
        options: provider, threads (0: ONNX Runtime's own choice; without options: one), inputs.
        rounds: at most so many; at least seven are made.
        seconds: for the rounds together.
        progress: is told the share that is done, from 0 to 1.

    Raises:
        UsageError: the models take different inputs, or the shapes or data given do not fit.
        ProviderUnavailable: the provider is not there, or not really used.
        InvalidModel, UnsupportedModel: one is no model, or ONNX Runtime does not run it.

    """
    options = options or Options(threads=1)
    runtime = _runtime(options)
    runtime.check()
    from onnxrep.proof.sides import Side
    from onnxrep.timing.compare import compare
    from onnxrep.timing.rounds import Budget

    old, new = load(before, options.hf_cache), load(after, options.hf_cache)
    sides = (Side(old.model, old.data, old.folder), Side(new.model, new.data, new.folder))
    names = (str(old.path or ""), str(new.path or ""))
    budget = Budget(rounds, seconds)
    found = compare(*sides, runtime, _wishes(options), budget, names=names, progress=progress)
    return replace(found, versions=versions())


def _tuned(source: files.ModelFile, options: Options) -> Tuned:
    """Fold a source's message anew, so that it is fastest."""
    from onnxrep.proof.sides import Side
    from onnxrep.tuning.cache import Cache
    from onnxrep.tuning.tune import Tuner
    from onnxrep.tuning.whole import compared, tune

    def fold_anew(skipped: Collection[Place]) -> Folded:
        source.model.CopyFrom(source.fresh())
        return _fold_all(source, options, Clock(), skipped)

    before = Side(source.fresh(), source.data, source.folder)
    runtime = replace(_runtime(options), threads=options.threads or 1)
    tuner = Tuner(
        before,
        lambda skipped: (source.model, fold_anew(skipped)[0]),
        runtime,
        _wishes(options),
        Cache(options.tune_cache),
    )
    return tune(source.model, tuner, fold_anew, compared(tuner))


def _timed(source: files.ModelFile, options: Options) -> records.Comparison:
    """Return the times of the bytes that were read and of the folded message."""
    from onnxrep.timing.compare import compare
    from onnxrep.timing.rounds import Budget

    runtime = replace(_runtime(options), threads=options.threads or 1)
    return compare(*_sides(source, source.fresh()), runtime, _wishes(options), Budget())


def load(model: ModelLike, hf_cache: bool = False) -> files.ModelFile:
    """Read and check a model from whatever holds it; ``hf_cache`` as in :class:`Options`."""
    if isinstance(model, files.ModelFile):
        validity.check(model.model, str(model.path or "the model"))
        return model
    if isinstance(model, gs.Graph):
        model = gs.export_onnx(model)
    if isinstance(model, onnx.ModelProto):
        if any(files.is_external(t) for t in files.tensors(model)):
            raise UsageError("the model refers to external data; give its path instead of the message")
        model = model.SerializeToString(deterministic=True)
    source = files.parse(model) if isinstance(model, bytes) else files.read(Path(model), hf_cache)
    validity.check(source.model, str(source.path or "the model"))
    return source


def _rolled_back(
    source: files.ModelFile,
    options: Options,
    folds: list[records.Fold],
    refusals: list[records.Refusal],
    rejection: _Checked,
    skipped: Collection[Place],
) -> tuple[list[records.Fold], list[records.Refusal], _Checked]:
    """Fold a rejected model again without the folds that cause it; return what was done then, and the verdict on it.

    Where no folds can be found without which the rest passes, all stays as it was. ``skipped`` was not folded before.
    """
    every = [(fold.scope, fold.output) for fold in folds]
    left: Folded = folds, refusals
    checked = rejection

    def refold(kept: Collection[Place]) -> Folded:
        source.model.CopyFrom(source.fresh())
        return _fold_all(source, options, Clock(), {*every, *skipped} - set(kept))

    def passes(kept: Collection[Place]) -> bool:
        nonlocal left, checked
        left = refold(kept)
        checked = _verify(source, options, left[0])
        if checked.verdict == "unverified":
            raise rollback.Undecided
        return bool(left[0]) and checked.verdict == "verified"

    bad = rollback.culprits(every, _blamed(source, options, folds), passes)
    if not bad:
        refold(every)
        return folds, refusals, rejection
    lost = [fold for fold in folds if (fold.scope, fold.output) in bad]
    return left[0], [*left[1], *(_taken_back(fold, rejection.reason) for fold in lost)], checked


def _blamed(source: files.ModelFile, options: Options, folds: Sequence[records.Fold]) -> list[Place]:
    """Return the folds of the main graph that differ by themselves, fed with what the original makes."""
    from onnxrep.proof.blame import suspects
    from onnxrep.proof.errors import CannotRun, NoInput

    original = source.fresh()
    made = {printable(o): o for model in (original, source.model) for n in model.graph.node for o in n.output}
    made |= {printable(v.name): v.name for v in original.graph.input}
    places = [(made[f.output], [made[s] for s in f.sources if s in made]) for f in folds if not f.scope]
    sides = _sides(source, original)
    try:
        found = suspects(*sides, places, _runtime(options), _wishes(options))
    except (CannotRun, NoInput):
        return []
    return [("", printable(output)) for output in found]


def _taken_back(fold: records.Fold, reason: str) -> records.Refusal:
    """Return the record of a fold that was not kept."""
    node = records.Node(fold.removed[-1].name, fold.removed[-1].op)
    detail = f"{fold.output}: {reason}"
    return records.Refusal(node, fold.scope, "taken-back", reasons.REASONS["taken-back"], detail)


def _selection(options: Options) -> Selection:
    """Return what the caller lets fold."""
    return Selection(options.only_nodes, options.exclude_nodes, options.kinds, options.select)


def _fold_all(
    source: files.ModelFile,
    options: Options,
    clock: Clock,
    skipped: Collection[Place] = (),
    counting: _Counting | None = None,
) -> Folded:
    """Fold a model's message in place, its local functions inlined first if that is wanted and helps."""
    watch = counting.watch if counting else lambda facts: None
    if not options.inline_functions or not source.model.functions:
        return fold(source.model, source.folder, clock, skipped, _selection(options), options.provider, watch)
    from onnx import inliner

    try:
        source.model.CopyFrom(inliner.inline_local_functions(source.model))
    except Exception as error:  # onnx raises what it likes
        raise UnsupportedModel(f"the local functions cannot be inlined: {str(error).splitlines()[0]}") from error
    validity.check(source.model, "the model with its functions inlined")
    folds, refusals = fold(source.model, source.folder, clock, skipped, _selection(options), options.provider)
    if not folds:
        source.model.CopyFrom(source.fresh())
    return folds, refusals


def _runtime(options: Options) -> Any:
    """Return where models run for the check."""
    from onnxrep.proof.sessions import Runtime

    return Runtime(options.provider, options.threads, custom_ops=tuple(options.custom_ops_lib))


def _loading(checked: _Checked, options: Options) -> Callable[[Path], None]:
    """Return a check that ONNX Runtime loads a file: the model itself, not a stand-in, must have been run before."""

    def check(path: Path) -> None:
        from onnxrep.proof.errors import CannotRun

        try:
            _runtime(options).session(path, "off")
        except CannotRun as error:
            raise OutputError(f"not written: ONNX Runtime does not load it from its file ({error})") from None

    return check if checked.itself else lambda path: None


def _verify(
    source: files.ModelFile,
    options: Options,
    folds: Sequence[records.Fold],
    progress: Callable[[str], None] = lambda stage: None,
) -> _Checked:
    """Check the folded message of a source against the bytes that were read."""
    from onnxrep.proof.check import Verdict

    original = source.fresh()
    before, after = _sides(source, original)
    fault = _checker_fault(before, after)
    if fault:
        reason = f"onnx.checker refuses the folded model: {fault}"
        return _Checked(_verification_record(Verdict("rejected", reason, provider=options.provider)))
    validity.check(original, "the original")
    made = [fold.output for fold in folds if not fold.scope]
    found = _Checked(_check(before, after, options, made, progress))
    return replace(found, ran=after.message) if found.itself and after.serialized is after.message else found


def _sides(source: files.ModelFile, original: onnx.ModelProto) -> tuple[Side, Side]:
    """Return the original and the folded message as sides of a check."""
    from onnxrep.proof.sides import Side

    return Side(original, source.data, source.folder), Side(source.model, None, source.folder)


def _checker_fault(before: Side, after: Side) -> str:
    """Say what onnx.checker has against the folded model that it does not have against the original."""
    try:
        onnx.checker.check_model(after.message)
    except Exception as error:  # noqa: BLE001  the checker raises what it likes
        try:
            onnx.checker.check_model(before.message)
        except Exception:  # noqa: BLE001
            return ""
        return str(error).splitlines()[0]
    return ""


def _check(
    before: Side,
    after: Side,
    options: Options,
    folded: Sequence[str] = (),
    progress: Callable[[str], None] = lambda stage: None,
) -> records.Verification:
    """Run the end-to-end check and record it."""
    from onnxrep.proof.check import check

    return _verification_record(check(before, after, _runtime(options), _wishes(options), folded, progress))


def _wishes(options: Options) -> Wishes:
    """Return what the user says about inputs."""
    from onnxrep.proof.inputs import Wishes

    return Wishes(options.input_shapes, options.input_data, options.input_ranges)


def _verification_record(verdict: Verdict) -> records.Verification:
    """Return the record of a verdict."""
    from onnxrep.proof import judge

    outputs = (replace(f, output=printable(f.output)) for f in verdict.figures)
    fields = {**vars(verdict), "outputs": tuple(records.OutputCheck(**vars(f)) for f in outputs)}
    del fields["figures"]
    return records.Verification(constants=judge.CONSTANTS, **fields)


def _ops(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the op types of all nodes, bodies included; ops of other domains with their domain."""
    stack = list(model.graph.node)
    while stack:
        node = stack.pop()
        yield node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for attribute in node.attribute:
            stack.extend(attribute.g.node)
            for graph in attribute.graphs:
                stack.extend(graph.node)


class _Counting:
    """Parameters and arithmetic of a model, counted with what folding finds out about it anyway."""

    def __init__(self, source: files.ModelFile, options: Options, clock: Clock) -> None:
        """Raise UsageError if the shapes given do not fit the model."""
        self._source, self._shapes, self._clock = source, options.input_shapes, clock
        _check_shapes(source.model, options.input_shapes)
        self.facts: Facts | None = None
        """About the main graph as it is; None if that is not known."""
        self._before: records.Totals | None = None
        if options.inline_functions and source.model.functions:
            self._before = self.totals()

    def watch(self, facts: Facts | None) -> None:
        """Take what is known about the main graph; the first that is said is about the original."""
        self.facts = facts
        if self._before is None:
            self._before = self.totals()

    @property
    def before(self) -> records.Totals:
        """The totals of the original; to be called while it is unchanged, or after folding."""
        self._before = self._before or self.totals()
        return self._before

    def totals(self) -> records.Totals:
        """Return the totals of the model as it is."""
        with self._clock.stage("count"):
            return totals(self._source.model, self._source.folder, self._shapes, self.facts)


def _check_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UsageError if shapes do not fit the inputs of a model."""
    for name, shape in shapes.items():
        value = next((v for v in model.graph.input if v.name == name), None)
        if value is None:
            raise UsageError(f"--input-shape {name}: no such input; the inputs are {_input_names(model)}")
        declared = value.type.tensor_type.shape.dim
        fits = all(d.dim_value in (0, size) for d, size in zip(declared, shape, strict=False))
        if value.type.tensor_type.HasField("shape") and (len(declared) != len(shape) or not fits):
            sizes = ",".join(str(d.dim_value) if d.dim_value else (d.dim_param or "?") for d in declared)
            given = ",".join(map(str, shape))
            raise UsageError(f"--input-shape {name}:{given}: the model declares {printable(sizes)}")


def _input_names(model: onnx.ModelProto) -> str:
    """Return the names of the inputs that a caller must feed."""
    weights = {t.name for t in model.graph.initializer}
    return ", ".join(printable(v.name) for v in model.graph.input if v.name not in weights) or "none"


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    return {
        "onnxrep": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": _runtime_version(),
        "numpy": np.__version__,
        "onnx_graphsurgeon": gs.__version__,
    }


def _runtime_version() -> str:
    """Return the version of ONNX Runtime, which need not be loaded for that: it takes as long as all else together."""
    if "onnxruntime" not in sys.modules:
        for name in _RUNTIMES:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    import onnxruntime

    return str(onnxruntime.__version__)


def _given(options: Options) -> dict[str, Any]:
    """Return the options that differ from the defaults, as plain data."""
    given: dict[str, Any] = {}
    for name, default in Options().__dict__.items():
        value = getattr(options, name)
        if value != default:
            given[name] = _plain(value)
    return given


def _plain(value: Any) -> Any:
    """Return an option's value without paths."""
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return [str(path) for path in value] if isinstance(value, list | tuple) else value
