"""The way of one model: load, view, lift, plan, emit, commit, verify, save. The only place that knows this order."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxrep import __version__, files, validity
from onnxrep.checking import Checked, Checking, Folded, compared, runtime_of, wishes_of
from onnxrep.errors import UnsupportedModel, UsageError
from onnxrep.escape import printable
from onnxrep.folding import Clock, Place, fold
from onnxrep.options import Options
from onnxrep.report import records
from onnxrep.report.records import Report
from onnxrep.selection import Selection
from onnxrep.totals import totals

if TYPE_CHECKING:
    from onnxrep.lift import Facts
    from onnxrep.tuning.whole import Tuned

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
ModelLike: TypeAlias = "str | Path | bytes | onnx.ModelProto | gs.Graph | files.ModelFile"


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
        runtime_of(options).check()
    with clock.stage("read"):
        source = load(model, options.hf_cache)
        external = source.external_digests
    before = Counter(_ops(source.model))
    bytes_before = files.weight_bytes(source.model)
    counting = _Counting(source, options, clock)
    unmatched = _selection(options).unmatched(source.model)
    with Checking(source, options) as checking:

        def found() -> None:
            if options.verify and not options.tune:  # while times are taken nothing else may run
                with clock.stage("verify"):
                    checking.begin()

        folds, refusals = _fold_all(source, options, clock, counting=counting, found=found)
        tuned = None
        if folds and options.tune:
            with clock.stage("tune"):
                counting.facts = None
                tuned = _tuned(source, options)
                folds, refusals = tuned.folds, tuned.refusals
        latency, untimed = tuned.latency if tuned else None, options.bench
        checked = Checked(None)
        status = "folded" if folds else "unchanged"
        if folds and options.verify:
            with clock.stage("verify"):
                checked = checking.verify(folds, clock.progress)
            if checked.verdict == "rejected" and len(folds) > 1:
                with clock.stage("roll back"):
                    counting.facts = None
                    refold = _anew(source, options, tuned.skipped if tuned else ())
                    folds, refusals, checked = checking.rolled_back(folds, refusals, checked, refold)
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
                check=checking.loads(checked),
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
    runtime_of(options).check()
    from onnxrep.proof.sides import Side

    old, new = load(before, options.hf_cache), load(after, options.hf_cache)
    return compared(Side(old.model, old.data, old.folder), Side(new.model, new.data, new.folder), options)


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
    runtime = runtime_of(options)
    runtime.check()
    from onnxrep.proof.sides import Side
    from onnxrep.timing.compare import compare
    from onnxrep.timing.rounds import Budget

    old, new = load(before, options.hf_cache), load(after, options.hf_cache)
    sides = (Side(old.model, old.data, old.folder), Side(new.model, new.data, new.folder))
    names = (str(old.path or ""), str(new.path or ""))
    budget = Budget(rounds, seconds)
    found = compare(*sides, runtime, wishes_of(options), budget, names=names, progress=progress)
    return replace(found, versions=versions())


def _tuned(source: files.ModelFile, options: Options) -> Tuned:
    """Fold a source's message anew, so that it is fastest."""
    from onnxrep.proof.sides import Side
    from onnxrep.tuning.cache import Cache
    from onnxrep.tuning.tune import Tuner
    from onnxrep.tuning.whole import compared, tune

    fold_anew = _anew(source, options)
    before = Side(source.fresh(), source.data, source.folder)
    runtime = replace(runtime_of(options), threads=options.threads or 1)
    tuner = Tuner(
        before,
        lambda skipped: (source.model, fold_anew(skipped)[0]),
        runtime,
        wishes_of(options),
        Cache(options.tune_cache),
    )
    return tune(source.model, tuner, fold_anew, compared(tuner))


def _timed(source: files.ModelFile, options: Options) -> records.Comparison:
    """Return the times of the bytes that were read and of the folded message."""
    from onnxrep.proof.sides import Side
    from onnxrep.timing.compare import compare
    from onnxrep.timing.rounds import Budget

    runtime = replace(runtime_of(options), threads=options.threads or 1)
    sides = Side(source.fresh(), source.data, source.folder), Side(source.model, None, source.folder)
    return compare(*sides, runtime, wishes_of(options), Budget())


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


def _anew(
    source: files.ModelFile, options: Options, never: Collection[Place] = ()
) -> Callable[[Collection[Place]], Folded]:
    """Return what folds a source's message anew, without some folds and those that are never made."""

    def refold(skipped: Collection[Place]) -> Folded:
        source.model.CopyFrom(source.fresh())
        return _fold_all(source, options, Clock(), {*never, *skipped})

    return refold


def _selection(options: Options) -> Selection:
    """Return what the caller lets fold."""
    return Selection(options.only_nodes, options.exclude_nodes, options.kinds, options.select)


def _fold_all(
    source: files.ModelFile,
    options: Options,
    clock: Clock,
    skipped: Collection[Place] = (),
    counting: _Counting | None = None,
    found: Callable[[], None] = lambda: None,
) -> Folded:
    """Fold a model's message in place, its local functions inlined first if that is wanted and helps."""
    selection, watch = _selection(options), counting.watch if counting else lambda facts: None
    if not options.inline_functions or not source.model.functions:
        return fold(source.model, source.folder, clock, skipped, selection, options.provider, watch, found)
    from onnx import inliner

    try:
        source.model.CopyFrom(inliner.inline_local_functions(source.model))
    except Exception as error:  # onnx raises what it likes
        raise UnsupportedModel(f"the local functions cannot be inlined: {str(error).splitlines()[0]}") from error
    validity.check(source.model, "the model with its functions inlined")
    folds, refusals = fold(source.model, source.folder, clock, skipped, selection, options.provider, found=found)
    if not folds:
        source.model.CopyFrom(source.fresh())
    return folds, refusals


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
