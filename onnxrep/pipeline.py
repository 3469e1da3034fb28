"""The way of one model: load, view, lift, plan, emit, commit, verify, save. The only place that knows this order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxrep import __version__, files, reasons, validity
from onnxrep.constants import Constants
from onnxrep.emit import Emitter
from onnxrep.errors import InvalidModel, UnsupportedModel, UsageError
from onnxrep.graph import Edit, Model, Scope, commit
from onnxrep.lift import LIFTED, Facts
from onnxrep.plan import Planner, Region
from onnxrep.report import records
from onnxrep.report.records import Report
from onnxrep.shapes import FOLLOWED, Shapes, infer

if TYPE_CHECKING:
    from onnxrep.proof.check import Side, Verdict

OLDEST_OPSET = 7
_MOST_ROUNDS = 8

ModelLike: TypeAlias = "str | Path | bytes | onnx.ModelProto | gs.Graph"


@dataclass(frozen=True)
class Options:
    """How a model is treated.

    Attributes:
        verify: run the end-to-end check.
        provider: ``cpu`` or ``cuda``, where both models run for the check.
        input_shapes: input name -> shape, for inputs with dynamic dimensions.
        input_data: a ``.npz`` file with inputs to check on besides the random ones.
        allow_unverified: write a model also if the check could not decide.
        inline_functions: replace calls of local functions by their bodies, so that what is in them can fold;
            a model in which nothing folds stays as it was.
        external_data: write all weights into a data file beside the model.
        follow_symlinks: write through an output path that is a symbolic link.
        threads: for ONNX Runtime; 0 leaves it to choose.

    """

    verify: bool = True
    provider: str = "cpu"
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    input_data: Path | None = None
    allow_unverified: bool = False
    inline_functions: bool = False
    external_data: bool = False
    follow_symlinks: bool = False
    threads: int = 0


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


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)


def optimize(
    model: ModelLike,
    output: str | Path | None = None,
    options: Options | None = None,
    *,
    keep_unchanged: bool = True,
) -> Result:
    """Fold one model, verify it, and write it if ``output`` is given.

    Args:
        model: a path, the bytes of a model, a ModelProto (not changed), or an onnx-graphsurgeon graph.
        output: where to write; None writes nothing.
        options: see :class:`Options`.
        keep_unchanged: write the input's bytes to ``output`` where nothing folds.

    Returns:
        The folded model with its report. Look at ``status``: a model that was rejected or could not be verified comes
        back as it was, and nothing is written.

    Raises:
        UsageError: the call is wrong (missing input, shapes that do not fit, a provider that is not there).
        InvalidModel, UnsupportedModel: the input is no model that can be worked on.
        OutputError: the output could not be written.

    """
    options = options or Options()
    clock = _Clock()
    target = Path(output) if output is not None else None
    if target is not None:
        files.check_target(target, options.follow_symlinks)
    if options.verify:
        _runtime(options).check()
    with clock.stage("read"):
        source = load(model)
    before = Counter(_ops(source.model))
    bytes_before = _weight_bytes(source.model)
    folds, refusals = _fold_all(source, options.inline_functions, clock)
    verification = None
    status = "folded" if folds else "unchanged"
    if folds and options.verify:
        with clock.stage("verify"):
            verification = _verify(source, options)
        status = {"verified": "folded"}.get(verification.verdict, verification.verdict)
    good = status in ("folded", "unchanged") or (status == "unverified" and options.allow_unverified)
    written: list[Path] = []
    if target is not None and good and (folds or keep_unchanged):
        with clock.stage("write"):
            written = files.write(
                target,
                source.model,
                source,
                changed=bool(folds),
                external=options.external_data,
                follow_symlinks=options.follow_symlinks,
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
        _weight_bytes(source.model),
        tuple(folds),
        tuple(refusals),
        verification,
        clock.seconds,
        versions(),
        _given(options),
    )
    return Result(source.model if good else source.fresh(), report)


def inspect(model: ModelLike, *, inline_functions: bool = False) -> Report:
    """Say what would fold in a model and what would not, and why; nothing is verified or written.

    Args:
        model: as for :func:`optimize`.
        inline_functions: see :class:`Options`.

    Raises:
        UsageError, InvalidModel, UnsupportedModel: see :func:`optimize`.

    """
    clock = _Clock()
    with clock.stage("read"):
        source = load(model)
    before, bytes_before = Counter(_ops(source.model)), _weight_bytes(source.model)
    folds, refusals = _fold_all(source, inline_functions, clock)
    return Report(
        "folded" if folds else "unchanged",
        str(source.path or ""),
        source.digest,
        "",
        (),
        dict(before),
        dict(Counter(_ops(source.model))),
        bytes_before,
        _weight_bytes(source.model),
        tuple(folds),
        tuple(refusals),
        None,
        clock.seconds,
        versions(),
    )


def verify(before: ModelLike, after: ModelLike, options: Options | None = None) -> records.Verification:
    """Judge whether two models with the same interface are the same function.

    Raises:
        UsageError, InvalidModel, UnsupportedModel: see :func:`optimize`.

    """
    options = options or Options()
    _runtime(options).check()
    from onnxrep.proof.check import Side

    old, new = load(before), load(after)
    return _check(Side(old.model, old.data, old.folder), Side(new.model, new.data, new.folder), options)


def load(model: ModelLike) -> files.ModelFile:
    """Read and check a model from whatever holds it."""
    if isinstance(model, gs.Graph):
        model = gs.export_onnx(model)
    if isinstance(model, onnx.ModelProto):
        if any(files.is_external(t) for t in files.tensors(model)):
            raise UsageError("the model refers to external data; give its path instead of the message")
        model = model.SerializeToString(deterministic=True)
    source = files.parse(model) if isinstance(model, bytes) else files.read(Path(model))
    validity.check(source.model, str(source.path or "the model"))
    return source


def _fold_all(source: files.ModelFile, inline: bool, clock: _Clock) -> tuple[list[records.Fold], list[records.Refusal]]:
    """Fold a model's message in place, its local functions inlined first if that is wanted and helps."""
    if not inline or not source.model.functions:
        return fold(source.model, source.folder, clock)
    from onnx import inliner

    try:
        source.model.CopyFrom(inliner.inline_local_functions(source.model))
    except Exception as error:  # onnx raises what it likes
        raise UnsupportedModel(f"the local functions cannot be inlined: {str(error).splitlines()[0]}") from error
    validity.check(source.model, "the model with its functions inlined")
    folds, refusals = fold(source.model, source.folder, clock)
    if not folds:
        source.model.CopyFrom(source.fresh())
    return folds, refusals


def fold(
    proto: onnx.ModelProto, folder: Path | None, clock: _Clock | None = None
) -> tuple[list[records.Fold], list[records.Refusal]]:
    """Fold a model in place, in as many rounds as find something; return what was done and what was left alone."""
    clock = clock or _Clock()
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        node = records.Node("(graph)", "")
        detail = f"opset {opset}; convert the model to opset {OLDEST_OPSET} or later"
        return [], [records.Refusal(node, "", "old-opset", reasons.REASONS["old-opset"], detail)]
    folds: list[records.Fold] = []
    refusals: list[records.Refusal] = []
    names: set[tuple[str, str]] = set()
    for count in range(1, _MOST_ROUNDS + 1):
        with clock.stage("view"):
            model = Model(proto, folder, LIFTED | FOLLOWED)
            every = _facts(model)
        edits: list[tuple[Scope, Edit]] = []
        present = {(s.label, s.node_label(p)) for s in model.scopes for p in range(len(s.nodes))}
        names = names or present
        refusals = [r for r in refusals if (r.scope, r.node.name) in present]
        with clock.stage("plan"):
            for facts in every:
                new_edits, new_folds, new_refusals = _plan(facts, count)
                edits += new_edits
                folds += new_folds
                said = {(r.scope, r.node, r.code) for r in refusals}
                for refusal in new_refusals:  # in the names of the input, of which those of what is left are a part
                    known = (refusal.scope, refusal.node.name) in names
                    if known and (refusal.scope, refusal.node, refusal.code) not in said:
                        refusals.append(refusal)
        if not edits:
            break
        with clock.stage("commit"):
            commit(model, edits)
            _check_whole(proto)
    return folds, refusals


def _check_whole(proto: onnx.ModelProto) -> None:
    """Check that a folded graph hangs together: if not, that is an error of this package, and nothing is written."""
    try:
        validity.check(proto, "the folded model")
    except InvalidModel as error:
        raise AssertionError(str(error)) from error


def _facts(model: Model) -> list[Facts]:
    """Return what is known about each scope, outer scopes first."""
    inferred = infer(model)
    known: dict[int, Facts] = {}
    for scope in model.scopes:
        outer = known.get(id(scope.parent)) if scope.parent is not None else None
        graph = inferred.get(id(scope))
        dims: dict[str, tuple[int, ...]] = {}
        while True:  # a shape that is known makes constants of what is computed from it, and those make more shapes
            constants = Constants(scope, graph, outer.constants if outer else None, dims)
            shapes = Shapes(scope, constants, graph, outer.shapes if outer else None)
            news = {n: d for n, d in shapes.newly_static() if n not in dims}
            if not news:
                break
            dims |= news
        known[id(scope)] = Facts(scope, constants, shapes)
    return list(known.values())


def _plan(facts: Facts, count: int) -> tuple[list[tuple[Scope, Edit]], list[records.Fold], list[records.Refusal]]:
    """Plan and emit the regions of one scope."""
    planner, emitter = Planner(facts), Emitter(facts)
    scope = facts.scope
    edits: list[tuple[Scope, Edit]] = []
    folds: list[records.Fold] = []
    for region in planner.regions():
        try:
            edit = emitter.edit(region)
        except OverflowError as error:
            planner.refuse(region, "overflow", str(error))
            continue
        edits.append((scope, edit))
        folds.append(_fold_record(scope, region, edit, count))
    edits += [(scope, edit) for edit in emitter.movements()]
    found = [
        records.Refusal(
            records.Node(scope.node_label(r.position), scope.nodes[r.position].op),
            scope.label,
            r.code,
            reasons.REASONS[r.code],
            files.printable(r.detail),
        )
        for r in planner.refusals()
    ]
    return edits, folds[::-1], found


def _fold_record(scope: Scope, region: Region, edit: Edit, count: int) -> records.Fold:
    """Return the record of one fold."""
    removed = tuple(records.Node(scope.node_label(p), scope.nodes[p].op) for p in region.covered)
    return records.Fold(
        files.printable(str(edit.nodes[-1].outputs[0].name)),
        tuple(dict.fromkeys(files.printable(v) for s in region.summands for v in s.origin.values)),
        region.kind,
        scope.label,
        removed,
        tuple(_emitted(node, edit) for node in edit.written),
        (region.before.macs, region.after.macs),
        count,
    )


def _emitted(node: gs.Node, edit: Edit) -> records.Emitted:
    """Return the record of a new node."""
    name = files.printable(node.name or f"{node.op} -> {node.outputs[0].name}")
    shapes = {n: v.shape for n, v in edit.tensors}
    weight = next((shapes[v.name] for v in node.inputs if len(shapes.get(v.name, ())) > 1), ())
    if node.op in ("MatMul", "Gemm") and weight:
        return records.Emitted(name, node.op, channels=(weight[0], weight[1]))
    if node.op not in ("Conv", "ConvTranspose"):
        return records.Emitted(name, node.op)
    attributes = node.attrs
    group = int(attributes["group"])
    channels = (weight[1] * group, weight[0]) if node.op == "Conv" else (weight[0], weight[1] * group)
    return records.Emitted(
        name,
        node.op,
        tuple(attributes["kernel_shape"]),
        tuple(attributes["strides"]),
        tuple(attributes["dilations"]),
        tuple(attributes.get("pads", ())),
        group,
        channels,
    )


def _runtime(options: Options) -> Any:
    """Return where models run for the check."""
    from onnxrep.proof.sessions import Runtime

    return Runtime(options.provider, options.threads)


def _verify(source: files.ModelFile, options: Options) -> records.Verification:
    """Check the folded message of a source against the bytes that were read."""
    from onnxrep.proof.check import Side, Verdict

    fault = _checker_fault(source)
    if fault:
        reason = f"onnx.checker refuses the folded model: {fault}"
        return _verification_record(Verdict("rejected", reason, provider=options.provider))
    original = source.fresh()
    validity.check(original, "the original")
    return _check(Side(original, source.data, source.folder), Side(source.model, None, source.folder), options)


def _checker_fault(source: files.ModelFile) -> str:
    """Say what onnx.checker has against the folded model that it does not have against the original."""
    try:
        onnx.checker.check_model(source.model)
    except Exception as error:  # noqa: BLE001  the checker raises what it likes
        try:
            onnx.checker.check_model(source.data)
        except Exception:  # noqa: BLE001
            return ""
        return str(error).splitlines()[0]
    return ""


def _check(before: Side, after: Side, options: Options) -> records.Verification:
    """Run the end-to-end check and record it."""
    from onnxrep.proof.check import check
    from onnxrep.proof.inputs import Wishes

    wishes = Wishes(options.input_shapes, options.input_data)
    return _verification_record(check(before, after, _runtime(options), wishes))


def _verification_record(verdict: Verdict) -> records.Verification:
    """Return the record of a verdict."""
    from onnxrep.proof import judge

    outputs = (replace(f, output=files.printable(f.output)) for f in verdict.figures)
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


def _weight_bytes(model: onnx.ModelProto) -> int:
    """Return the size of all tensors."""
    return sum(files.tensor_bytes(t) for t in files.tensors(model))


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    import onnxruntime

    return {
        "onnxrep": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "onnx_graphsurgeon": gs.__version__,
    }


def _given(options: Options) -> dict[str, Any]:
    """Return the options that differ from the defaults, as plain data."""
    given: dict[str, Any] = {}
    for name, default in Options().__dict__.items():
        value = getattr(options, name)
        if value != default:
            given[name] = str(value) if isinstance(value, Path) else value
    return given
