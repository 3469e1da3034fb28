"""Is it the same function? Two models against a reference, judged by the original's own rounding.

Original and folded model are both approximations; comparing them with each other cannot tell which one is off. So both
are compared with a reference (the float64 twin), and the folded one may be a little worse than the original, not more.
Where that limit is passed, float64 is asked for the reason. The new model's own twin shows how far its *function* is
off, free of rounding in the run: that must stay within the limit, or within what one rounding of every weight does to
the original (its *sway*; new weights are rounded once, as those were when they were stored). If it does, the rest is
rounding in the run, such as that of another kernel that the runtime takes for the new graph: it may be four times as
much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

RMS_FACTOR, RMS_FLOOR = 4.0, 4.0
"""``rms(E_new) <= RMS_FACTOR * rms(E_old) + RMS_FLOOR * u * rms(R)``."""

MAX_FACTOR, MAX_FLOOR = 8.0, 16.0
"""``max(E_new) <= MAX_FACTOR * max(E_old) + MAX_FLOOR * u * max|R|``."""

ZERO = "zero everywhere"
"""Detail of an input set on which both models and the reference are zero."""

RUN_FACTOR = 4.0
"""What both limits are multiplied with once the function itself is known to be within them."""

ILL_CONDITIONED = 0.05
"""Relative rms error of the original itself beyond which the ratio test has lost its power."""

DOUBLE_ROUNDOFF = 2.0**-43
"""For float64 models: their twin is the reference itself, so that the original shows no error of its own."""

CONSTANTS = {
    "rms_factor": RMS_FACTOR,
    "rms_floor": RMS_FLOOR,
    "max_factor": MAX_FACTOR,
    "max_floor": MAX_FLOOR,
    "run_factor": RUN_FACTOR,
    "ill_conditioned": ILL_CONDITIONED,
    "double_roundoff": DOUBLE_ROUNDOFF,
}
"""All constants of the judgement, as reports print them."""

ROUNDOFF: Mapping[int, float] = {
    onnx.TensorProto.DOUBLE: 2.0**-53,
    onnx.TensorProto.FLOAT: 2.0**-24,
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
}
"""Unit roundoff of each float type."""

SUBNORMAL: Mapping[int, float] = {
    onnx.TensorProto.DOUBLE: 2.0**-1074,
    onnx.TensorProto.FLOAT: 2.0**-149,
    onnx.TensorProto.FLOAT16: 2.0**-24,
    onnx.TensorProto.BFLOAT16: 2.0**-133,
}
"""Smallest positive number of each float type."""

Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class OutputFigures:
    """How one output compares on one input set; errors are against the reference, over all levels.

    Attributes:
        output, inputs: which.
        status: ``same``, ``different``, ``undecided`` (behind a discrete choice) or ``skipped`` (decides nothing).
        error_before, error_after, max_error_before, max_error_after: rms and largest errors of the two models.
        rms, largest: of the reference.
        max_difference: largest absolute difference between the two models themselves.
        ratio: error of the new model over that of the original (rms); infinity if only the new one errs.
        limit: the ratio at which it would be judged different.
        examined: whether float64 was asked; else the following are 0.
        sway, max_sway: rms and largest change of the reference when each weight moves by at most one rounding of its
            type.
        function, max_function: rms and largest difference of the new model's own twin from the reference.
        detail: for a difference: where, and the values there.

    """

    output: str
    inputs: str
    status: str
    error_before: float = 0.0
    error_after: float = 0.0
    max_error_before: float = 0.0
    max_error_after: float = 0.0
    rms: float = 0.0
    largest: float = 0.0
    max_difference: float = 0.0
    ratio: float = 1.0
    limit: float = RMS_FACTOR
    examined: bool = False
    sway: float = 0.0
    max_sway: float = 0.0
    function: float = 0.0
    max_function: float = 0.0
    detail: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether errors of real numbers were measured."""
        return self.rms > 0 or self.error_after > 0 or self.error_before > 0


def compare(output: str, inputs: str, old: Sequence[Any], new: Sequence[Any], reference: Any) -> OutputFigures:
    """Compare one output on one input set; the errors that this measures are judged by :func:`settle`.

    ``old`` and ``new`` are the output of the original and of the new model, one array per level, in the same order;
    ``reference`` is the output in float64, or None if there is none (then values must be equal).

    """
    for a, b in zip(old, new, strict=True):
        if np.shape(a) != np.shape(b):
            return OutputFigures(output, inputs, "different", detail=f"shape {np.shape(b)} instead of {np.shape(a)}")
        if np.asarray(a).dtype != np.asarray(b).dtype:
            return OutputFigures(
                output, inputs, "different", detail=f"type {np.asarray(b).dtype} instead of {np.asarray(a).dtype}"
            )
    if np.size(old[0]) == 0:
        return OutputFigures(output, inputs, "skipped", detail="no element")
    if not np.issubdtype(np.asarray(old[0]).dtype, np.floating) or reference is None:
        return _exact(output, inputs, old, new)
    if np.shape(reference) != np.shape(old[0]):  # a window larger than its image, of which the runtime makes one pixel
        detail = f"by definition its shape is {np.shape(reference)}, and the runtime makes {np.shape(old[0])}"
        return OutputFigures(output, inputs, "skipped", detail=detail)
    wide = [np.asarray(a, np.float64) for a in old], [np.asarray(b, np.float64) for b in new]
    pattern = _non_finite(output, inputs, *wide, np.asarray(reference, np.float64))
    if pattern is not None:
        return pattern
    return _measured(output, inputs, *wide, np.asarray(reference, np.float64))


def _exact(output: str, inputs: str, old: Sequence[Any], new: Sequence[Any]) -> OutputFigures:
    """Compare values that must be equal."""
    for a, b in zip(old, new, strict=True):
        if not np.array_equal(a, b):
            where = np.argwhere(np.asarray(a) != np.asarray(b))
            place = tuple(int(i) for i in where[0]) if len(where) else ()
            values = f"{np.asarray(a)[place]} became {np.asarray(b)[place]}"
            return OutputFigures(output, inputs, "different", detail=f"{len(where)} values, first at {place}: {values}")
    return OutputFigures(output, inputs, "same")


def _non_finite(
    output: str, inputs: str, old: Sequence[NDArray[Any]], new: Sequence[NDArray[Any]], reference: NDArray[Any]
) -> OutputFigures | None:
    """Judge NaN and infinity; None if everything is finite."""
    if all(np.isfinite(a).all() for a in (*old, *new)):
        if np.isfinite(reference).all():
            return None
        return OutputFigures(output, inputs, "skipped", detail="the reference is not finite")
    for a, b in zip(old, new, strict=True):
        fresh = np.isfinite(a) & ~np.isfinite(b)
        if fresh.any():
            place = tuple(int(i) for i in np.argwhere(fresh)[0])
            detail = (
                f"{int(fresh.sum())} values became NaN or infinite, first at {place}: {a[place]:.6g} became {b[place]}"
            )
            return OutputFigures(output, inputs, "different", detail=detail)
        same = np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(a[np.isinf(a)], b[np.isinf(a)])
        if not same:
            return OutputFigures(output, inputs, "different", detail="NaN and infinity lie elsewhere")
    return OutputFigures(output, inputs, "skipped", detail="the original is not finite")


def _measured(
    output: str,
    inputs: str,
    old: Sequence[NDArray[np.float64]],
    new: Sequence[NDArray[np.float64]],
    reference: NDArray[np.float64],
) -> OutputFigures:
    """Measure both models' errors; :func:`settle` judges them."""
    if not any(np.any(values) for values in (reference, *old, *new)):
        return OutputFigures(output, inputs, "skipped", detail=ZERO)
    level = max(range(len(new)), key=lambda i: _largest(new[i] - reference))
    place = np.unravel_index(int(np.argmax(np.abs(new[level] - reference))), reference.shape)
    values = f"reference {reference[place]:.9g}, original {old[level][place]:.9g}, new {new[level][place]:.9g}"
    return OutputFigures(
        output,
        inputs,
        "same",
        max(_rms(a - reference) for a in old),
        max(_rms(b - reference) for b in new),
        max(_largest(a - reference) for a in old),
        max(_largest(b - reference) for b in new),
        _rms(reference),
        _largest(reference),
        max(_largest(a - b) for a, b in zip(old, new, strict=True)),
        detail=f"at {tuple(int(i) for i in place)}: {values}",
    )


def settle(figures: Sequence[OutputFigures], roundoff: float) -> list[OutputFigures]:
    """Judge one output's figures over all input sets by the ratio test.

    The original's error is that on the same input set, or its usual error (the median over the sets, relative to the
    output's size) where that is larger: on a handful of values the original may be right by luck.
    """
    measured = [f for f in figures if f.rms and f.status == "same"]
    usual = _Usual(
        median((f.error_before / f.rms for f in measured), 0.0),
        median((f.max_error_before / f.largest for f in measured), 0.0),
        median((f.rms for f in measured), 0.0),
        median((f.largest for f in measured), 0.0),
    )
    return [_judged(f, usual, roundoff) if f.is_measured and f.status == "same" else f for f in figures]


@dataclass(frozen=True)
class _Usual:
    """One output over all input sets: the original's relative errors, and the size of the reference."""

    error: float
    max_error: float
    rms: float
    largest: float


def _judged(f: OutputFigures, usual: _Usual, roundoff: float) -> OutputFigures:
    """Apply the ratio test to one input set; where its reference is zero, the output's usual size counts."""
    rms, largest = f.rms or usual.rms, f.largest or usual.largest
    old_rms = max(f.error_before, usual.error * rms, f.sway)
    old_max = max(f.max_error_before, usual.max_error * largest, f.max_sway)
    rms_limit = RMS_FACTOR * old_rms + RMS_FLOOR * roundoff * rms
    max_limit = MAX_FACTOR * old_max + MAX_FLOOR * roundoff * largest
    good = True
    if f.examined:
        good = f.function <= rms_limit and f.max_function <= max_limit
        rms_limit, max_limit = RUN_FACTOR * rms_limit, RUN_FACTOR * max_limit
    good = good and f.error_after <= rms_limit and f.max_error_after <= max_limit
    own = max(f.error_before, f.sway)
    if good and own > ILL_CONDITIONED * rms:
        detail = f"ill-conditioned: the original itself is off by {own / rms:.0%}" if rms else "nothing but rounding"
        return replace(f, status="skipped", detail=detail)
    ratio = f.error_after / old_rms if old_rms else (1.0 if not f.error_after else math.inf)
    limit = rms_limit / old_rms if old_rms else math.inf
    return replace(f, status="same" if good else "different", ratio=ratio, limit=limit, detail="" if good else f.detail)


def examined(figures: OutputFigures, moved: Any, new: Any, reference: Any) -> OutputFigures:
    """Return figures with what float64 tells.

    Args:
        figures: of one output on one input set.
        moved: the output of the original's twin after each weight moved.
        new: the output of the new model's twin.
        reference: the output of the original's twin, finite.

    """
    reference = np.asarray(reference, np.float64)
    if np.shape(new) != reference.shape:
        return figures
    sway, function = (np.asarray(values, np.float64) - reference for values in (moved, new))
    if not np.isfinite(sway).all() or not np.isfinite(function).all():
        return figures
    return replace(
        figures,
        examined=True,
        sway=_rms(sway),
        max_sway=_largest(sway),
        function=_rms(function),
        max_function=_largest(function),
    )


def relative_error(values: Any, reference: Any) -> float:
    """Return the rms error of an output relative to its size; 0 for one that holds no real numbers."""
    if not np.issubdtype(np.asarray(values).dtype, np.floating):
        return 0.0
    error = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
    size = _rms(np.asarray(reference, np.float64)) if error.size else 0.0
    return _rms(error) / size if size else 0.0


def median(values: Iterable[float], default: float) -> float:
    """Return the median, or ``default`` for none."""
    every = list(values)
    return float(np.median(every)) if every else default


def _rms(values: NDArray[np.float64]) -> float:
    largest = _largest(values)  # squares of what is very large or small would not be there
    return largest * float(np.sqrt(np.mean(np.square(values / largest)))) if largest else 0.0


def _largest(values: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(values)))
