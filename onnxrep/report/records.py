"""The record of one run on one model: frozen, plain, and the same in Python, JSON and text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
"""Version of the JSON form. It grows when a field changes its meaning or goes; new fields alone do not change it."""


@dataclass(frozen=True)
class Node:
    """A node as a person finds it: its name (or what else tells it from others) and its op type."""

    name: str
    op: str


@dataclass(frozen=True)
class RegionNode(Node):
    """A node that went into a fold.

    Attributes:
        attributes: those that tell it from others of its op type.
        inputs, outputs: the values that it reads and makes; constants left out.
        constants: dims of the constants that it reads, in order.

    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    constants: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Emitted:
    """A new node, with the attributes of a convolution where it is one.

    Attributes:
        name, op: as of :class:`Node`.
        kernel_shape, strides, dilations, pads, group: of a convolution.
        channels: read and made.
        inputs, constants, outputs: as of :class:`RegionNode`.
        taps: root mean square of a convolution's weight at each tap, in row-major order of ``kernel_shape``; empty for
            a kernel that is too large to look at.

    """

    name: str
    op: str
    kernel_shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    group: int = 1
    channels: tuple[int, int] | None = None
    inputs: tuple[str, ...] = ()
    constants: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[str, ...] = ()
    taps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """How a fold was proven; see :class:`onnxrep.proof.certificate.Certificate`."""

    sizes: int
    probes: str
    error: float
    bound: float


@dataclass(frozen=True)
class Ranges:
    """The range of a new kernel, and what int8 weights would keep of it; see :class:`onnxrep.ranges.Ranges`.

    Attributes:
        spread: how many times the range of the tensor exceeds that of its median channel.
        at_risk: whether one scale for the tensor is too coarse for the median channel.

    """

    largest: float
    smallest: float
    median: float
    spread: float
    branches: tuple[tuple[float, float], ...]
    sqnr: float
    sqnr_apart: float
    sqnr_per_channel: float
    at_risk: bool


@dataclass(frozen=True)
class Totals:
    """The size of a whole model.

    Attributes:
        parameters: elements of the float tensors that its nodes read, each tensor once.
        macs: multiply-accumulates of one run at ``shapes``, of Conv, ConvTranspose, MatMul and Gemm; None if the sizes
            of some of them are not known.
        unknown: how many of them those are; what stands in bodies and local functions counts as unknown.
        shapes: input -> shape at which ``macs`` is meant.
        assumed: whether a dynamic batch size was taken as 1.

    """

    parameters: int
    macs: int | None
    unknown: int
    shapes: Mapping[str, tuple[int, ...]]
    assumed: bool


@dataclass(frozen=True)
class Fold:
    """One region that was replaced.

    Attributes:
        output: the value that it makes, before and after.
        sources: the values that it reads.
        kind: ``merge`` (parallel branches became one), ``fuse`` (nodes in sequence became one)
            or ``move`` (nodes changed places).
        scope: the nodes around it if it lies in the body of an If (which of them, too), Loop or Scan; else empty.
        removed, emitted: what went in and what came out.
        macs: multiply-accumulates per position of the output, before and after; of what several folds take over
            together, before is the share.
        round: 1 for what folds at once, 2 and on for what folded thanks to a former round.
        certificate: how it was proven.
        ranges: of each kernel that came out.
        seconds: how long the region is estimated to take, before and after, in one run on one thread of the provider;
            sizes that the graph leaves open count as one image and as 56 positions along an axis.

    """

    output: str
    sources: tuple[str, ...]
    kind: str
    scope: str
    removed: tuple[RegionNode, ...]
    emitted: tuple[Emitted, ...]
    macs: tuple[float, float]
    round: int
    certificate: Certificate
    ranges: tuple[Ranges, ...] = ()
    seconds: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Refusal:
    """A node that was left alone: a stable code (see :mod:`onnxrep.reasons`), its meaning, and what was met here."""

    node: Node
    scope: str
    code: str
    meaning: str
    detail: str


@dataclass(frozen=True)
class OutputCheck:
    """How one output compared on one input set; see :class:`onnxrep.proof.judge.OutputFigures`."""

    output: str
    inputs: str
    status: str
    error_before: float
    error_after: float
    max_error_before: float
    max_error_after: float
    rms: float
    largest: float
    max_difference: float
    ratio: float
    limit: float
    examined: bool
    sway: float
    max_sway: float
    function: float
    max_function: float
    detail: str


@dataclass(frozen=True)
class Verification:
    """What the end-to-end check found, and with what."""

    verdict: str
    reason: str
    provider: str
    levels: tuple[str, ...]
    inputs: tuple[str, ...]
    seed: int
    roundoff: float
    constants: Mapping[str, float]
    islands: tuple[str, ...]
    notes: tuple[str, ...]
    channels: int
    unobserved: int
    outputs: tuple[OutputCheck, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the schema version first."""
        return {"schema": SCHEMA, **_plain(dataclasses.asdict(self))}


@dataclass(frozen=True)
class Timing:
    """How long one model takes for one inference.

    Attributes:
        model: its file, or empty.
        median, low, high: seconds: the median of all rounds, and the quartiles around it.
        ops: op type -> seconds per inference, as ONNX Runtime's profiler counts them; op types are those that ONNX
            Runtime made of the model's, such as FusedConv. On CUDA it counts the launches only.
        kernels: op type -> nodes that ran.

    """

    model: str
    median: float
    low: float
    high: float
    ops: Mapping[str, float]
    kernels: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """Which of two models is faster.

    Attributes:
        verdict: ``faster`` or ``slower`` (the second model than the first), or ``same``: no difference beyond noise.
        ratio: how many times as fast the second model is: the median of the rounds' own ratios of times.
        interval: of the ratio, at ``confidence``, by order statistics: it assumes nothing of how times are distributed.
        confidence: the chance that such an interval holds the true median.
        before, after: the times of each.
        rounds: pairs that were timed, in random order within each.
        repeats: inferences of each model per round.
        openings: how many times both models were loaded anew.
        inputs: input name -> shape.
        chosen: whether a size of the inputs had to be chosen, because it is dynamic and nobody named it.
        provider, threads: where the models ran; 0 threads: ONNX Runtime's own choice.
        processor: its name.
        notes: what a reader should know besides.
        versions: of onnxrep and what it rests on.

    """

    verdict: str
    ratio: float
    interval: tuple[float, float]
    confidence: float
    before: Timing
    after: Timing
    rounds: int
    repeats: int
    openings: int
    inputs: Mapping[str, tuple[int, ...]]
    chosen: bool
    provider: str
    threads: int
    processor: str
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the schema version first."""
        return {"schema": SCHEMA, **_plain(dataclasses.asdict(self))}


@dataclass(frozen=True)
class Decision:
    """What timing said about one region.

    Attributes:
        output: the value that it makes.
        choice: ``folded``, ``partial`` (some inner branches merged only) or ``left`` (as it was).
        seconds: form -> median time of the region by itself.
        ratio: how many times as fast the choice is as the original.
        cached: whether the times were known from a former run.

    """

    output: str
    choice: str
    seconds: Mapping[str, float]
    ratio: float
    cached: bool


@dataclass(frozen=True)
class Tuning:
    """What was timed to decide what to fold.

    Attributes:
        decisions: one per region that was timed.
        dropped: whether all folds were given up because the model as a whole was slower than the original.
        provider, threads, processor: where times were taken.
        note: why nothing was timed; empty if it was.

    """

    decisions: tuple[Decision, ...]
    dropped: bool
    provider: str
    threads: int
    processor: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything about one run on one model.

    Attributes:
        status: ``folded``, ``unchanged``, ``rejected`` or ``unverified``.
        input, input_sha256: the file read (empty for a model in memory) and the hash of its bytes.
        output: the file written, or empty.
        written: all files written, data files included.
        counts_before, counts_after: op type -> number of nodes, subgraphs included.
        bytes_before, bytes_after: size of the weights.
        totals_before, totals_after: parameters and arithmetic of the whole model.
        unmatched: patterns of the caller that match no node.
        folds, refusals: what was done, and what was left alone and why.
        verification: None if it was not run.
        seconds: per stage. Runs of the original begin while folds are proven; verifying has what they take beyond that.
        versions: of onnxrep and what it rests on.
        options: those that the caller gave.
        external_sha256: hash of each file of external data that was read, by the name that the model gives it; empty
            where the model was inspected only.
        latency: original and result timed side by side, if that was asked for, or for tuning.
        tuning: which regions were timed to decide what to fold, if that was asked for.

    """

    status: str
    input: str
    input_sha256: str
    output: str
    written: tuple[str, ...]
    counts_before: Mapping[str, int]
    counts_after: Mapping[str, int]
    bytes_before: int
    bytes_after: int
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    verification: Verification | None
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    external_sha256: Mapping[str, str] = field(default_factory=dict)
    latency: Comparison | None = None
    totals_before: Totals | None = None
    totals_after: Totals | None = None
    tuning: Tuning | None = None
    unmatched: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the schema version first."""
        return {"schema": SCHEMA, **_plain(dataclasses.asdict(self))}

    def to_json(self) -> str:
        """Return JSON text; numbers that JSON lacks (infinity, NaN) become null."""
        return json_text(self.to_dict())


def json_text(data: Any) -> str:
    """Return JSON text that can be encoded: half characters, as in file names that are no UTF-8, are escaped."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
