"""How ops without a double kernel are written with ops that have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxrep.proof.errors import NeedsSizes, NoTwin
from onnxrep.shapes import UnknownWindow, window

if TYPE_CHECKING:
    from onnxrep.proof.twin import Writer

_ROWS_FROM = 4
"""Taps from which a depthwise kernel is lowered row by row."""

_DENSE_FROM = 32
"""Channels per group from which each tap is a matrix product of its own."""

_BROADCASTING = 7
"""Opset from which on element-wise ops have a double kernel, and broadcast."""

_FAR = int(np.iinfo(np.int64).max)


def _conv(n: Writer) -> None:
    """Lower a Conv to slices and matrix products."""
    dims = _weight_dims(n)
    _convolve(n, n.node.input[0], n.node.input[1], dims, n.attributes, int(n.attributes.get("group", 1)))


def _weight_dims(n: Writer) -> list[int]:
    """Return the shape of a convolution's weight."""
    dims = n.twin.dims.get(n.node.input[1], ())
    static = [d for d in dims if d is not None]
    if len(static) != len(dims) or len(dims) < 3:
        raise NoTwin("a convolution whose weight has no static shape")
    return static


def _convolve(n: Writer, x: str, weight: str, dims: Sequence[int], attributes: dict[str, Any], group: int) -> None:
    """Make the node's result: the convolution of ``x`` as in :func:`_correlate`, and the node's bias if it has one."""
    bias = n.node.input[2] if len(n.node.input) > 2 else ""
    result = _correlate(n, x, weight, dims, attributes, group, "" if bias else n.node.output[0])
    if bias:
        shape = n.integers([1, -1, *(1,) * (len(dims) - 2)])
        n.op("Add", result, n.op("Reshape", bias, shape), output=n.node.output[0])


def _placed(
    n: Writer, x: str, kernel: Sequence[int], attributes: dict[str, Any]
) -> tuple[str, list[int], list[int], list[int]]:
    """Pad a windowed op's input; return it with strides, dilations and the window's extent per axis."""
    dims = n.twin.dims.get(x)
    lengths = None if dims is None else [d if d is not None else f"{x}:{i}" for i, d in enumerate(dims)][2:]
    try:
        taps, stride, size, mode = window(attributes, kernel, lengths)  # type: ignore[arg-type]
    except UnknownWindow as error:
        raise NoTwin(str(error)) from None
    if mode != "conv":
        raise NeedsSizes("SAME padding of a size that is not known")
    dilation = [t[1] - t[0] if len(t) > 1 else 1 for t in taps]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    begins = [-t[0] for t in taps]
    ends = [c + r - b for c, r, b in zip(size, reach, begins, strict=True)]
    return n.pad(x, begins, ends), list(stride), dilation, reach


def unfolding(dims: Sequence[int], group: int, stretch: float = 1.0) -> float:
    """Return how many times the size of its result a lowered convolution takes while it runs.

    ``dims : (Co, Ci / group, *kernel)``; ``stretch``: rows of the padded image per row of the result. What a Reshape or
    Concat makes lies beside what it reads, for a moment.
    """
    outputs, width, *kernel = dims
    if _by_rows(dims, group):
        rows, cols = kernel
        return stretch * (max(2.0 * cols, cols + 2.0 * rows) + 2.0)
    columns = width * group / max(outputs, 1)
    return 2.0 + columns if width >= _DENSE_FROM else 2.0 * math.prod(kernel) * columns


def _by_rows(dims: Sequence[int], group: int) -> bool:
    """Whether a kernel is lowered row by row."""
    outputs, width, *kernel = dims
    return len(kernel) == 2 and width == 1 and outputs == group and math.prod(kernel) >= _ROWS_FROM


def _correlate(
    n: Writer,
    x: str,
    weight: str,
    dims: Sequence[int],
    attributes: dict[str, Any],
    group: int,
    output: str,
) -> str:
    """Return the convolution of ``x`` with ``weight : (Co, Ci / group, *kernel)`` of shape ``dims``, without bias."""
    outputs, width, *kernel = dims
    padded, stride, dilation, reach = _placed(n, x, kernel, attributes)
    count = math.prod(kernel)
    if _by_rows(dims, group):
        return _depthwise_rows(n, padded, weight, dims, stride, dilation, reach, output)
    inner = n.integers([0, group, width, -1])
    seen, total = "", ""
    columns: list[str] = []
    blocks = [group, outputs // group, width, count]
    per_tap = width >= _DENSE_FROM
    matrices = n.per_tap(weight, blocks) if per_tap else []
    for index, tap in enumerate(np.ndindex(*kernel)):
        seen = n.window_slice(padded, [d * k for d, k in zip(dilation, tap, strict=True)], reach, stride)
        column = n.op("Reshape", seen, inner)
        if per_tap:
            product = n.op("MatMul", matrices[index], column)
            total = n.op("Add", total, product) if total else product
        else:
            columns.append(column)
    if columns:
        stacked = columns[0] if len(columns) == 1 else n.op("Concat", *columns, axis=2)
        matrix = n.rearranged(weight, blocks, [0, 1, 3, 2], [group, outputs // group, count * width])
        total = n.op("MatMul", matrix, stacked)
    return n.op("Reshape", total, _result_shape(n, seen, outputs), output=output)


def _result_shape(n: Writer, like: str, channels: int) -> str:
    """Return the shape of ``like`` with another number of channels, as a tensor."""
    shape = n.op("Shape", like)
    batch, spatial = n.slice(shape, [0], [1], [0], [1]), n.slice(shape, [2], [_FAR], [0], [1])
    return n.op("Concat", batch, n.integers([channels]), spatial, axis=0)


def _depthwise_rows(
    n: Writer,
    padded: str,
    weight: str,
    dims: Sequence[int],
    stride: list[int],
    dilation: list[int],
    reach: list[int],
    output: str,
) -> str:
    """Lower a large depthwise kernel: unfold columns, multiply by all rows at once, then add the shifted rows.

    ``Y[c, ky, h, q] = sum over kx of w[c, ky, kx] * x[c, h, s*q + d*kx]``, then
    ``y[c, p, q] = sum over ky of Y[c, ky, s*p + d*ky, q]``.
    """
    channels, _, rows, cols = dims
    lead = n.integers([0, channels, 1, -1])
    columns = []
    seen = ""
    for kx in range(cols):
        start = dilation[1] * kx
        seen = n.slice(padded, [start], [start - (reach[1] - 1) or _FAR], [3], [stride[1]])
        columns.append(n.op("Reshape", seen, lead))
    unfolded = n.op("Concat", *columns, axis=2)
    matrix = n.rearranged(weight, dims, [0, 1, 2, 3], [channels, rows, cols])
    product = n.op("MatMul", matrix, unfolded)
    shape = n.op("Shape", seen)
    spatial = n.slice(shape, [2], [_FAR], [0], [1])
    product = n.op("Reshape", product, n.op("Concat", n.integers([0, channels, rows]), spatial, axis=0))
    total = ""
    shape_of_one = ""
    for ky in range(rows):
        start = dilation[0] * ky
        row = n.slice(product, [ky, start], [ky + 1, start - (reach[0] - 1) or _FAR], [2, 3], [1, stride[0]])
        total = n.op("Add", total, row) if total else row
        shape_of_one = row
    whole = n.op("Shape", shape_of_one)
    final = n.op("Concat", n.slice(whole, [0], [2], [0], [1]), n.slice(whole, [3], [_FAR], [0], [1]), axis=0)
    return n.op("Reshape", total, final, output=output)


def _conv_transpose(n: Writer) -> None:
    """Lower a ConvTranspose: insert zeros between the pixels, then convolve with the flipped kernel."""
    x, weight = n.node.input[0], n.node.input[1]
    inputs_, width, *kernel = _weight_dims(n)
    if n.attributes.get("output_shape") or n.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        n.island()
        return
    group = int(n.attributes.get("group", 1))
    axes = len(kernel)
    ones, zeros = [1] * axes, [0] * axes
    stride = list(n.attributes.get("strides", ones))
    dilation = list(n.attributes.get("dilations", ones))
    pads = list(n.attributes.get("pads", zeros + zeros)) if n.attributes.get("auto_pad") != "VALID" else zeros + zeros
    extra = list(n.attributes.get("output_padding", zeros))
    spread = _spread(n, x, stride, axes)
    begins, ends = [], []
    for a in range(axes):
        edge = dilation[a] * (kernel[a] - 1)
        begins.append(edge - pads[a])
        ends.append(edge - pads[axes + a] + extra[a] - (stride[a] - 1))
    final = [group * width, inputs_ // group, *kernel]
    order = [0, 2, 1, *range(3, 3 + axes)]
    swapped = n.rearranged(weight, [group, inputs_ // group, width, *kernel], order, final)
    placed = n.pad(spread, begins, ends)
    _convolve(n, placed, n.flipped(swapped, range(2, 2 + axes)), final, {"dilations": dilation}, group)


def _spread(n: Writer, x: str, stride: Sequence[int], axes: int) -> str:
    """Follow every pixel by ``stride - 1`` zeros on each axis."""
    for a, step in enumerate(stride):
        if step == 1:
            continue
        axis = 2 + a
        shape = n.op("Shape", x)
        head, size = n.slice(shape, [0], [axis], [0], [1]), n.slice(shape, [axis], [axis + 1], [0], [1])
        tail = n.slice(shape, [axis + 1], [_FAR], [0], [1])
        column = n.op("Reshape", x, n.op("Concat", head, size, n.integers([1]), tail, axis=0))
        pads = [0] * (2 * (axes + 3))
        pads[axes + 3 + axis + 1] = step - 1
        padded = n.raw_pad(column, pads)
        longer = n.op("Mul", size, n.integers([step]))
        x = n.op("Reshape", padded, n.op("Concat", head, longer, tail, axis=0))
    return x


def _average_pool(n: Writer) -> None:
    """Lower an AveragePool: a sum of slices, divided by the number of pixels seen."""
    if n.attributes.get("ceil_mode", 0):
        _average_pool_ceil(n)
        return
    kernel = list(n.attributes["kernel_shape"])
    total = _window_sum(n, n.node.input[0], kernel)
    if n.attributes.get("count_include_pad", 0):
        n.op("Div", total, n.constant(math.prod(kernel)), output=n.node.output[0])
        return
    ones = n.op("Add", n.op("Mul", n.node.input[0], n.constant(0.0)), n.constant(1.0))
    n.op("Div", total, _window_sum(n, ones, kernel), output=n.node.output[0])


def _average_pool_ceil(n: Writer) -> None:
    """Lower an AveragePool in ceil mode where rounding up changes nothing."""
    kernel = list(n.attributes["kernel_shape"])
    dims = n.twin.dims.get(n.node.input[0], ())
    _, stride, size, mode = window(n.attributes, kernel, None)
    lengths = [d for d in dims[2:] if d is not None]
    if (
        mode != "conv"
        or len(lengths) != len(kernel)
        or any((length + c) % s for length, c, s in zip(lengths, size, stride, strict=True))
    ):
        n.island()
        return
    n.attributes["ceil_mode"] = 0
    _average_pool(n)


def _window_sum(n: Writer, x: str, kernel: Sequence[int]) -> str:
    """Return the sum over a window, one axis after the other."""
    padded, stride, dilation, _ = (
        _placed(n, n.node.input[0], kernel, n.attributes) if x == n.node.input[0] else _placed_like(n, x, kernel)
    )
    for a, count in enumerate(kernel):
        reach = dilation[a] * (count - 1)
        total = ""
        for k in range(count):
            start = dilation[a] * k
            part = n.slice(padded, [start], [start - reach or _FAR], [2 + a], [stride[a]])
            total = n.op("Add", total, part) if total else part
        padded = total
    return padded


def _placed_like(n: Writer, x: str, kernel: Sequence[int]) -> tuple[str, list[int], list[int], list[int]]:
    """Pad a value that has the shape of the node's input."""
    n.twin.dims.setdefault(x, n.twin.dims.get(n.node.input[0], ()))
    return _placed(n, x, kernel, n.attributes)


def _spatial(n: Writer) -> list[int]:
    """Return the spatial axes of the node's input."""
    return list(range(2, n.twin.rank(n.node.input[0])))


def _global(kind: str) -> Callable[[Writer], None]:
    """Return the lowering of a global pool to a reduction."""

    def lower(n: Writer) -> None:
        n.reduce(kind, n.node.input[0], _spatial(n), output=n.node.output[0])

    return lower


def _instance_normalization(n: Writer) -> None:
    """``scale * (x - mean) / sqrt(var + eps) + bias`` over the spatial axes."""
    x, scale, bias = n.node.input
    axes = _spatial(n)
    shape = n.integers([1, -1, *(1,) * len(axes)])
    centred = n.op("Sub", x, n.reduce("ReduceMean", x, axes))
    variance = n.reduce("ReduceMean", n.op("Mul", centred, centred), axes)
    root = n.op("Sqrt", n.op("Add", variance, n.constant(n.attributes.get("epsilon", 1e-5))))
    normal = n.op("Div", centred, root)
    scaled = n.op("Mul", normal, n.op("Reshape", scale, shape))
    n.op("Add", scaled, n.op("Reshape", bias, shape), output=n.node.output[0])


def _lrn(n: Writer) -> None:
    """``x / (bias + alpha / size * sum of squares over neighbouring channels) ** beta``."""
    x, size = n.node.input[0], int(n.attributes["size"])
    square = n.op("Mul", x, x)
    rank = n.twin.rank(x)
    begin, end = (size - 1) // 2, size - 1 - (size - 1) // 2
    pads = [0, begin, *[0] * (rank - 2), 0, end, *[0] * (rank - 2)]
    padded = n.raw_pad(square, pads)
    total = ""
    for k in range(size):
        part = n.slice(padded, [k], [k - (size - 1) or _FAR], [1], [1])
        total = n.op("Add", total, part) if total else part
    alpha = n.attributes.get("alpha", 1e-4) / size
    base = n.op("Add", n.op("Mul", total, n.constant(alpha)), n.constant(n.attributes.get("bias", 1.0)))
    power = n.op("Pow", base, n.constant(n.attributes.get("beta", 0.75)))
    n.op("Div", x, power, output=n.node.output[0])


def _sigmoid(n: Writer) -> None:
    """``1 / (1 + exp(-x))``: ONNX Runtime's own double kernel takes twice as long."""
    if n.opset < _BROADCASTING:
        n.plain()
        return
    grown = n.op("Add", n.op("Exp", n.op("Neg", n.node.input[0])), n.constant(1.0))
    n.op("Reciprocal", grown, output=n.node.output[0])


def _hard_sigmoid(n: Writer) -> None:
    """``clip(alpha * x + beta, 0, 1)``."""
    alpha, beta = n.attributes.get("alpha", 0.2), n.attributes.get("beta", 0.5)
    line = n.op("Add", n.op("Mul", n.node.input[0], n.constant(alpha)), n.constant(beta))
    n.op("Identity", n.clip(line, 0.0, 1.0), output=n.node.output[0])


def _hard_swish(n: Writer) -> None:
    """``x * clip(x / 6 + 1/2, 0, 1)``."""
    x = n.node.input[0]
    line = n.op("Add", n.op("Mul", x, n.constant(1 / 6)), n.constant(0.5))
    n.op("Mul", x, n.clip(line, 0.0, 1.0), output=n.node.output[0])


def _halves(n: Writer) -> tuple[str, str]:
    """Return ``(max(x, 0), min(x, 0))``."""
    zero = n.constant(0.0)
    return n.op("Max", n.node.input[0], zero), n.op("Min", n.node.input[0], zero)


def _leaky(default: float) -> Callable[[Writer], None]:
    """Return the lowering of ``max(x, 0) + alpha * min(x, 0)``."""

    def lower(n: Writer) -> None:
        above, below = _halves(n)
        n.op("Add", above, n.op("Mul", below, n.constant(n.attributes.get("alpha", default))), output=n.node.output[0])

    return lower


def _prelu(n: Writer) -> None:
    """``max(x, 0) + slope * min(x, 0)``."""
    above, below = _halves(n)
    n.op("Add", above, n.op("Mul", below, n.node.input[1]), output=n.node.output[0])


def _exponential(alpha: float, gamma: float) -> Callable[[Writer], None]:
    """Return the lowering of ``gamma * (max(x, 0) + alpha * (exp(min(x, 0)) - 1))``."""

    def lower(n: Writer) -> None:
        above, below = _halves(n)
        curve = n.op("Sub", n.op("Exp", below), n.constant(1.0))
        total = n.op("Add", above, n.op("Mul", curve, n.constant(n.attributes.get("alpha", alpha))))
        n.op("Mul", total, n.constant(n.attributes.get("gamma", gamma)), output=n.node.output[0])

    return lower


def _celu(n: Writer) -> None:
    """``max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))``."""
    alpha = n.attributes.get("alpha", 1.0)
    above, below = _halves(n)
    curve = n.op("Sub", n.op("Exp", n.op("Div", below, n.constant(alpha))), n.constant(1.0))
    n.op("Add", above, n.op("Mul", curve, n.constant(alpha)), output=n.node.output[0])


def _softplus_of(n: Writer, x: str) -> str:
    """``max(x, 0) + log(1 + exp(-|x|))``."""
    tail = n.op("Log", n.op("Add", n.op("Exp", n.op("Neg", n.op("Abs", x))), n.constant(1.0)))
    return n.op("Add", n.op("Max", x, n.constant(0.0)), tail)


def _softplus(n: Writer) -> None:
    n.op("Identity", _softplus_of(n, n.node.input[0]), output=n.node.output[0])


def _mish(n: Writer) -> None:
    n.op("Mul", n.node.input[0], n.op("Tanh", _softplus_of(n, n.node.input[0])), output=n.node.output[0])


def _softsign(n: Writer) -> None:
    x = n.node.input[0]
    n.op("Div", x, n.op("Add", n.op("Abs", x), n.constant(1.0)), output=n.node.output[0])


def _thresholded_relu(n: Writer) -> None:
    x = n.node.input[0]
    above = n.op("Greater", x, n.constant(n.attributes.get("alpha", 1.0)))
    n.op("Where", above, x, n.op("Mul", x, n.constant(0.0)), output=n.node.output[0])


@cache
def erfc_coefficients(degree: int = 24) -> tuple[float, ...]:
    """Return the coefficients of ``log(erfc(z) / t) + z**2`` as a power series in ``2t - 1``, ``t = 2 / (2 + z)``."""
    nodes = np.cos((np.arange(4 * degree) + 0.5) * np.pi / (4 * degree))
    t = (nodes + 1) / 2
    values = [_log_scaled_erfc(2 / v - 2) - math.log(v) for v in t]
    fit = np.polynomial.chebyshev.chebfit(nodes, values, degree)
    return tuple(float(c) for c in np.polynomial.chebyshev.cheb2poly(fit))


def _log_scaled_erfc(z: float) -> float:
    """Return ``log(exp(z**2) * erfc(z))``; by its asymptotic series where erfc itself underflows."""
    if z < 20:
        return math.log(math.erfc(z)) + z * z
    term, total = 1.0, 1.0
    for k in range(1, 12):
        term *= -(2 * k - 1) / (2 * z * z)
        total += term
    return math.log(total / (z * math.sqrt(math.pi)))


def _erf_of(n: Writer, x: str) -> str:
    """``sign(x) * (1 - erfc(|x|))``, ``erfc(z) = t * exp(P(t) - z**2)``; absolute error 2e-15."""
    z = n.op("Abs", x)
    t = n.op("Div", n.constant(2.0), n.op("Add", z, n.constant(2.0)))
    u = n.op("Sub", n.op("Mul", t, n.constant(2.0)), n.constant(1.0))
    *rest, top = erfc_coefficients()
    value = n.op("Add", n.op("Mul", u, n.constant(top)), n.constant(rest.pop()))
    while rest:
        value = n.op("Add", n.op("Mul", u, value), n.constant(rest.pop()))
    tail = n.op("Mul", t, n.op("Exp", n.op("Sub", value, n.op("Mul", z, z))))
    return n.op("Mul", n.op("Sign", x), n.op("Sub", n.constant(1.0), tail))


def _erf(n: Writer) -> None:
    n.op("Identity", _erf_of(n, n.node.input[0]), output=n.node.output[0])


def _gelu(n: Writer) -> None:
    """``x / 2 * (1 + erf(x / sqrt(2)))`` or its tanh approximation."""
    x = n.node.input[0]
    if n.attributes.get("approximate", "none") == "tanh":
        cube = n.op("Mul", n.op("Mul", x, x), x)
        inner = n.op("Add", x, n.op("Mul", cube, n.constant(0.044715)))
        curve = n.op("Tanh", n.op("Mul", inner, n.constant(math.sqrt(2 / math.pi))))
    else:
        curve = _erf_of(n, n.op("Mul", x, n.constant(math.sqrt(0.5))))
    half = n.op("Mul", x, n.constant(0.5))
    n.op("Mul", half, n.op("Add", curve, n.constant(1.0)), output=n.node.output[0])


LOWERINGS: dict[str, Callable[[Writer], None]] = {
    "AveragePool": _average_pool,
    "Celu": _celu,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Elu": _exponential(1.0, 1.0),
    "Erf": _erf,
    "Gelu": _gelu,
    "GlobalAveragePool": _global("ReduceMean"),
    "GlobalMaxPool": _global("ReduceMax"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LeakyRelu": _leaky(0.01),
    "Mish": _mish,
    "PRelu": _prelu,
    "Selu": _exponential(1.67326319217681884765625, 1.05070102214813232421875),
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "ThresholdedRelu": _thresholded_relu,
}
"""Ops without a double kernel, and how each is written with ops that have one."""
