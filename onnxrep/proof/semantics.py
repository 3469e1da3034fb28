"""What ONNX says that linear ops do, in float64, on many inputs of many equal regions at once.

A *stack* of a value of shape ``dims`` is an array ``[regions, probes, *dims]``; weights have one probe. Integers
(shapes, indices) are plain arrays, the same for all regions. Nothing in here knows the algebra of the folds: a
convolution is the sum over its taps, a normalisation its formula.

Every op has a second reading, its *magnitude*: the same sums with all terms counted as positive. It bounds what
rounding can do to a result, also where large terms cancel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxrep.constants import evaluate

Array = NDArray[Any]

_MOST_ELEMENTS = 1 << 26
"""Elements of a padded image that is still evaluated."""
_REALS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

MOVES = frozenset(
    "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Reshape ScatterND Slice SpaceToDepth Split"
    " Squeeze Tile Transpose Unsqueeze".split()
)
"""Ops whose result holds elements of their inputs, by position alone."""


class CannotEvaluate(Exception):
    """An op has no meaning here."""


class IllegalSize(CannotEvaluate):
    """An op cannot run on these shapes, in any runtime."""


@dataclass(frozen=True)
class Call:
    """One node with its inputs: stacks, plain integers, or None for an input that is left out.

    ``lenient``: a window may be a little larger than its image, as runtimes allow.
    """

    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    inputs: Sequence[Array | None]
    magnitude: bool
    opset: int
    lenient: bool = False

    def stack(self, index: int) -> Array:
        """Return an input that holds numbers."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None or value.dtype.kind != "f":
            raise CannotEvaluate(f"input {index} of {self.node.op_type}")
        return value

    def optional(self, index: int) -> Array | None:
        """Return an input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None


def is_float(value: Array) -> bool:
    """Whether an array is a stack of numbers."""
    return bool(value.dtype.kind == "f")


# -- each element by itself ------------------------------------------------------------------------------------------


def _aligned(*stacks: Array) -> list[Array]:
    """Return stacks of equal rank: axes are added in front of the value's own, as ONNX broadcasts."""
    rank = max(s.ndim for s in stacks)
    return [s.reshape(*s.shape[:2], *(1,) * (rank - s.ndim), *s.shape[2:]) for s in stacks]


def _per_channel(vector: Array, rank: int) -> Array:
    """Return a vector ``[N, P, C]`` shaped to meet the channels of a stack of images of a rank."""
    return vector.reshape(*vector.shape[:2], 1, -1, *(1,) * (rank - 4))


def _cut(x: Array, *index: Any) -> Array:
    """Return a part of the last axes."""
    return np.asarray(x[(..., *index)])


def _add(call: Call) -> Array:
    first, *rest = _aligned(*(call.stack(i) for i in range(len(call.inputs))))
    for other in rest:
        first = first + other
    return first


def _sub(call: Call) -> Array:
    first, second = _aligned(call.stack(0), call.stack(1))
    return np.asarray(first + second if call.magnitude else first - second)


def _mul(call: Call) -> Array:
    first, second = _aligned(call.stack(0), call.stack(1))
    return np.asarray(first * second)


def _div(call: Call) -> Array:
    first, second = _aligned(call.stack(0), call.stack(1))
    return np.asarray(first / second)


def _mean(call: Call) -> Array:
    return np.asarray(_add(call) / len(call.inputs))


def _neg(call: Call) -> Array:
    return call.stack(0) if call.magnitude else -call.stack(0)


def _same(call: Call) -> Array:
    return call.stack(0)


def _dropout(call: Call) -> Array:
    training = call.optional(2)
    if any(call.node.output[1:]) or (training is not None and np.any(training)):
        raise CannotEvaluate("a Dropout in training")
    return call.stack(0)


def _cast(call: Call) -> Array:
    if call.attributes.get("to") not in _REALS:
        raise CannotEvaluate("a Cast of numbers to another kind")
    return call.stack(0)


def _batch_normalization(call: Call) -> Array:
    """Return ``(x - mean) / sqrt(var + eps) * scale + bias``."""
    found = call.attributes
    if found.get("training_mode", 0) or not found.get("spatial", 1) or any(call.node.output[1:]):
        raise CannotEvaluate("a normalisation by other statistics")
    x = call.stack(0)
    scale, bias, mean, variance = (_per_channel(call.stack(i), x.ndim) for i in range(1, 5))
    root = np.sqrt(variance + call.attributes.get("epsilon", float(np.float32(1e-5))))
    difference = x + mean if call.magnitude else x - mean
    return np.asarray(difference / root * scale + bias)


# -- sliding windows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """Where a window lies: per axis its stride, dilation and extent, and the padding on both sides."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begins: Sequence[int]
    ends: Sequence[int]


def _window(call: Call, kernel: Sequence[int], sizes: Sequence[int]) -> _Window:
    """Read the attributes of a windowed op; ``sizes`` are those of its input."""
    axes, found = len(kernel), call.attributes
    strides, dilations = (list(found.get(key) or [1] * axes) for key in ("strides", "dilations"))
    pads = list(found.get("pads") or [0] * 2 * axes)
    auto = found.get("auto_pad", "NOTSET") or "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        columns = zip(sizes, kernel, strides, dilations, strict=True)
        totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in columns]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    elif auto == "VALID":
        pads = [0] * 2 * axes
    return _Window(kernel, strides, dilations, pads[:axes], pads[axes:])


def _padded(x: Array, begins: Sequence[int], ends: Sequence[int], value: float | Array = 0.0) -> Array:
    """Pad (or, by negative numbers, crop) the last axes."""
    axes = len(begins)
    if not any((*begins, *ends)):
        return x
    cut = [slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(begins, ends, x.shape[-axes:], strict=True)]
    x = _cut(x, *cut)
    sizes = [n + max(b, 0) + max(e, 0) for n, b, e in zip(x.shape[-axes:], begins, ends, strict=True)]
    lead = x.shape[:-axes] if isinstance(value, float) else np.broadcast_shapes(x.shape[:-axes], value.shape[:-axes])
    if math.prod((*lead, *sizes)) > _MOST_ELEMENTS:
        raise CannotEvaluate(f"an image of {list(sizes)} is too large")
    result = np.empty((*lead, *sizes))
    result[...] = value
    inner = [slice(max(b, 0), max(b, 0) + n) for b, n in zip(begins, x.shape[-axes:], strict=True)]
    _cut(result, *inner)[...] = x
    return result


def _taps(x: Array, w: _Window, *, lenient: bool = False) -> list[tuple[tuple[int, ...], Array]]:
    """Return per tap what all windows see there; ``x`` is padded.

    ``lenient``: as in runtimes, the size is rounded towards zero: a window a little larger than the image sees zeros.
    """
    axes = len(w.kernel)
    reach = [d * (k - 1) + 1 for d, k in zip(w.dilations, w.kernel, strict=True)]
    spare = [n - r for n, r in zip(x.shape[-axes:], reach, strict=True)]
    if any(m < 0 if not lenient else m <= -s for m, s in zip(spare, w.strides, strict=True)):
        raise IllegalSize("a window larger than its image")
    sizes = [max(m, 0) // s + 1 for m, s in zip(spare, w.strides, strict=True)]
    x = _padded(x, [0] * axes, [max(-m, 0) for m in spare])
    found = []
    for tap in itertools.product(*map(range, w.kernel)):
        first = [t * d for t, d in zip(tap, w.dilations, strict=True)]
        cut = [slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, sizes, w.strides, strict=True)]
        found.append((tap, _cut(x, *cut)))
    return found


def _by_channel(x: Array, group: int) -> Array:
    """Return an image ``[N, P, B, C, *sizes]`` as ``[N, group, C / group, P, B, *sizes]``."""
    n, p, b, c = x.shape[:4]
    if group < 1 or c % group:
        raise CannotEvaluate("channels that the groups do not divide")
    return np.moveaxis(x.reshape(n, p, b, group, c // group, *x.shape[4:]), (3, 4), (1, 2))


def _product(weight: Array, seen: Array) -> Array:
    """Return ``weight [N, group, rows, cols]`` times ``seen [N, group, cols, ...]``."""
    columns = seen.reshape(*seen.shape[:3], -1)
    found = weight * columns if weight.shape[-1] == 1 else np.matmul(weight, columns)
    return np.asarray(found.reshape(*found.shape[:3], *seen.shape[3:]))


def _as_image(total: Array) -> Array:
    """Return ``[N, group, C / group, P, B, *sizes]`` as an image ``[N, P, B, C, *sizes]``."""
    moved_back = np.moveaxis(total, (1, 2), (3, 4))
    return moved_back.reshape(*moved_back.shape[:3], -1, *moved_back.shape[5:])


def _with_bias(call: Call, result: Array) -> Array:
    """Add the bias ``[N, 1, Co]`` of a convolution."""
    bias = call.optional(2)
    return result if bias is None else result + _per_channel(bias, result.ndim)


def _conv(call: Call) -> Array:
    """Return the sum over the taps: ``y[o] = b + sum over k of W[k] x[stride * o + dilation * k - begin]``."""
    x, weight = call.stack(0), call.stack(1)
    n, outputs, width, *kernel = (weight.shape[0], *weight.shape[2:])
    group = int(call.attributes.get("group", 1))
    if x.ndim != weight.ndim or x.shape[3] != width * group or outputs % group:
        raise CannotEvaluate("a convolution whose weight does not fit")
    w = _window(call, kernel, x.shape[4:])
    taps = _taps(_by_channel(_padded(x, w.begins, w.ends), group), w, lenient=call.lenient)
    return _with_bias(call, _as_image(_sum_over_taps(weight.reshape(n, group, outputs // group, width, *kernel), taps)))


def _sum_over_taps(weight: Array, taps: Sequence[tuple[tuple[int, ...], Array]]) -> Array:
    """Return the sum of each tap's matrix, of ``weight [N, group, rows, cols, *kernel]``, times what is seen there."""
    first = taps[0][1]
    if math.prod(first.shape[3:]) <= weight.shape[2]:  # one product, where the images are no larger than the weight
        seen = np.stack([seen for _, seen in taps], axis=3)
        return _product(weight.reshape(*weight.shape[:3], -1), seen.reshape(*seen.shape[:2], -1, *first.shape[3:]))
    total = _product(_cut(weight, *taps[0][0]), first)
    for tap, seen in taps[1:]:
        total = np.add(total, _product(_cut(weight, *tap), seen), out=total)
    return total


def _conv_transpose(call: Call) -> Array:
    """Return the image that every input position adds its kernel to, pads cut off."""
    x, weight = call.stack(0), call.stack(1)
    n, inputs, width, *kernel = (weight.shape[0], *weight.shape[2:])
    group, found, axes = int(call.attributes.get("group", 1)), call.attributes, len(kernel)
    if x.shape[3] != inputs or found.get("output_shape") or found.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise CannotEvaluate("a transposed convolution that is sized by its output")
    w = _window(call, kernel, x.shape[4:])
    extra = list(found.get("output_padding") or [0] * axes)
    columns = zip(x.shape[4:], w.strides, w.dilations, kernel, extra, strict=True)
    whole = [s * (length - 1) + d * (k - 1) + 1 + e for length, s, d, k, e in columns]
    image = np.zeros((max(n, x.shape[0]), group, width, *x.shape[1:3], *whole))
    matrix = np.swapaxes(weight.reshape(n, group, inputs // group, width, *kernel), 2, 3)
    grouped = _by_channel(x, group)
    for tap in itertools.product(*map(range, kernel)):
        first = [t * d for t, d in zip(tap, w.dilations, strict=True)]
        cut = [slice(f, f + s * (m - 1) + 1, s) for f, s, m in zip(first, w.strides, x.shape[4:], strict=True)]
        _cut(image, *cut)[...] += _product(_cut(matrix, *tap), grouped)
    kept = [slice(b, m - e) for b, e, m in zip(w.begins, w.ends, whole, strict=True)]
    return _with_bias(call, _as_image(_cut(image, *kept)))


def _average_pool(call: Call) -> Array:
    """Return the mean of what each window sees; of real pixels only unless ``count_include_pad`` is set."""
    x, kernel = call.stack(0), list(call.attributes.get("kernel_shape") or ())
    w = _window(call, kernel, x.shape[4:])
    taps = _taps(_padded(x, w.begins, w.ends), w, lenient=call.lenient)
    if call.attributes.get("ceil_mode", 0):
        for n, b, e, k, s, d in zip(x.shape[4:], w.begins, w.ends, kernel, w.strides, w.dilations, strict=True):
            windows, more = divmod(n + b + e - d * (k - 1) - 1, s)
            if more and (windows + 1) * s < n + b:
                raise CannotEvaluate("a pool whose last window hangs over the edge")
    total = np.sum([seen for _, seen in taps], axis=0)
    if call.attributes.get("count_include_pad", 0):
        return np.asarray(total / math.prod(kernel))
    inside = _taps(_padded(np.ones(x.shape[4:]), w.begins, w.ends), w, lenient=call.lenient)
    return np.asarray(total / np.sum([seen for _, seen in inside], axis=0))


def _global_average_pool(call: Call) -> Array:
    """Return the mean of each channel's image."""
    x = call.stack(0)
    return np.asarray(np.mean(x, axis=tuple(range(4, x.ndim)), keepdims=True))


def _reduce_mean(call: Call) -> Array:
    """Return the mean over some axes."""
    x, axes = call.stack(0), call.attributes.get("axes")
    if call.optional(1) is not None:
        axes = np.asarray(call.optional(1)).tolist()
    if axes is None or not len(axes):
        raise CannotEvaluate("a mean over axes that are not said")
    places = tuple(int(a) % (x.ndim - 2) + 2 for a in axes)
    return np.asarray(np.mean(x, axis=places, keepdims=bool(call.attributes.get("keepdims", 1))))


def _resize(call: Call) -> Array:
    """Return what a nearest Resize (from opset 11 on) or Upsample picks, by constant scales of the spatial axes.

    https://onnx.ai/onnx/operators/onnx__Resize.html
    """
    x, found, old = call.stack(0), call.attributes, call.node.op_type == "Upsample"
    given = call.optional(1 if old else 2)
    scales = np.asarray(found.get("scales", []) if given is None else given, np.float64)
    factors = scales.reshape(-1, x.ndim - 2) if scales.size else np.zeros((1, 0))
    fits = factors.shape[1] == x.ndim - 2 and np.all(factors == factors[0]) and np.all(factors[0, :2] == 1)
    how = "asymmetric" if old else found.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else found.get("nearest_mode", "round_prefer_floor")
    plain = found.get("mode", "nearest") == "nearest" and how in _COORDINATES and rounding in _ROUNDINGS
    if not fits or not plain or call.optional(3) is not None or (call.opset < 11 and not old) or found.get("axes"):
        raise CannotEvaluate("a Resize of another kind")
    for axis, scale in enumerate(factors[0, 2:], 4):
        length = x.shape[axis]
        places = np.arange(math.floor(length * scale), dtype=np.float64)
        picked = _ROUNDINGS[rounding](_COORDINATES[how](places, scale))
        x = np.take(x, np.clip(picked, 0, length - 1).astype(np.int64), axis=axis)
    return x


_COORDINATES: Mapping[str, Callable[[Array, float], Array]] = {
    "asymmetric": lambda p, scale: p / scale,
    "half_pixel": lambda p, scale: (p + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda p, scale: (p + 0.5) / scale - 0.5 if len(p) > 1 else 0.0 * p,
}
_ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _pad(call: Call) -> Array:
    """Return the value with a constant around it."""
    x, value = call.stack(0), call.optional(2)
    rank = x.ndim - 2
    pads = call.attributes.get("pads") if call.optional(1) is None else np.asarray(call.optional(1)).tolist()
    axes = list(range(rank)) if call.optional(3) is None else [int(a) % rank for a in np.asarray(call.optional(3))]
    if pads is None or call.attributes.get("mode", "constant") != "constant" or len(pads) != 2 * len(axes):
        raise CannotEvaluate("a Pad of another kind")
    begins, ends = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        begins[axis], ends[axis] = int(pads[index]), int(pads[index + len(axes)])
    if value is not None:
        return _padded(x, begins, ends, value.reshape(*value.shape[:2], *(1,) * rank))
    constant = float(call.attributes.get("value", 0.0))
    return _padded(x, begins, ends, abs(constant) if call.magnitude else constant)


# -- products --------------------------------------------------------------------------------------------------------


def _matmul(call: Call) -> Array:
    first, second = call.stack(0), call.stack(1)
    if min(first.ndim, second.ndim) < 4:
        raise CannotEvaluate("a product with a vector")
    first, second = _aligned(first, second)
    return np.asarray(np.matmul(first, second))


def _gemm(call: Call) -> Array:
    """Return ``alpha * A' B' + beta * C``."""
    a, b, c = call.stack(0), call.stack(1), call.optional(2)
    factors = [float(call.attributes.get(key, 1.0)) for key in ("alpha", "beta")]
    alpha, beta = (abs(f) if call.magnitude else f for f in factors)
    a = np.swapaxes(a, -1, -2) if call.attributes.get("transA", 0) else a
    b = np.swapaxes(b, -1, -2) if call.attributes.get("transB", 0) else b
    result = alpha * np.matmul(a, b)
    if c is not None:
        result, c = _aligned(result, c)
        result = result + beta * c
    return np.asarray(result)


OPS: Mapping[str, Callable[[Call], Array]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "CastLike": _same,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _same,
    "MatMul": _matmul,
    "Mean": _mean,
    "Mul": _mul,
    "Neg": _neg,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Resize": _resize,
    "Sub": _sub,
    "Sum": _add,
    "Upsample": _resize,
}
"""Ops that calculate."""


# -- ops that only move elements -------------------------------------------------------------------------------------


def moved(call: Call) -> list[Array]:
    """Run an op that moves elements once on their positions, and pick the elements of all stacks accordingly."""
    names, feeds, stacks, count = list(call.node.input), {}, [], 0
    for name, value in zip(names, call.inputs, strict=False):
        if value is None or name in feeds:
            continue
        if is_float(value):
            size = math.prod(value.shape[2:])
            feeds[name] = np.arange(count, count + size, dtype=np.int64).reshape(value.shape[2:])
            stacks.append(value.reshape(*value.shape[:2], size))
            count += size
        else:
            feeds[name] = value
    if call.attributes.get("reduction", "none") != "none":
        raise CannotEvaluate(f"{call.node.op_type} that adds")
    results = evaluate(call.node, feeds, call.opset)
    if not results:
        raise IllegalSize(call.node.op_type)
    lead = np.broadcast_shapes(*(s.shape[:2] for s in stacks))
    pool = np.concatenate([np.broadcast_to(s, (*lead, s.shape[2])) for s in stacks], axis=2)
    return [np.take(pool, results[name], axis=2) if name else pool for name in call.node.output]
