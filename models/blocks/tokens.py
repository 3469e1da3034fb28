"""Steps of which blocks are composed: each adds nodes behind an image, tokens ``[N, L, C]`` or vectors ``[N, C]``.

A step is a :data:`~models.blocks.base.Build`; :func:`chain` and :func:`total` compose steps as the notation of the
catalogue does. ``net.channels`` is the width of the last axis for tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper

from models.blocks.base import TINY_ODD_EVEN, Block, Build, image
from models.net import Net, Size

WIDTH = 8
"""Channels of the inputs below."""

TOKENS: tuple[int | str, ...] = ("batch", "tokens", WIDTH)
VECTORS: tuple[int | str, ...] = ("batch", WIDTH)
LINE = image(WIDTH, 1)

_FAR = (1 << 63) - 1


class Row(NamedTuple):
    """What is particular to one variation of a block."""

    variation: str
    build: Build
    left: Mapping[str, int]
    refused: tuple[str, ...] = ()
    missing: str = ""


def family(
    system: str,
    used: str,
    form: str,
    rows: Iterable[Row],
    *,
    shape: tuple[int | str, ...] | None = None,
    sizes: tuple[int, ...] = TINY_ODD_EVEN,
    exact: bool = True,
) -> Iterator[Block]:
    """Yield the variations of one block."""
    shape = image(WIDTH) if shape is None else shape
    for row in rows:
        yield Block(
            system,
            used,
            form,
            row.variation,
            _wide(row.build) if len(shape) > 2 and shape[-1] == WIDTH else row.build,
            shape,
            row.left,
            frozenset(row.refused),
            sizes,
            exact,
            row.missing,
        )


def _wide(build: Build) -> Build:
    """Return a block whose input has its channels last."""

    def wide(net: Net, x: str) -> str:
        net.channels[x] = WIDTH
        return build(net, x)

    return wide


# -- composition ----------------------------------------------------------------------------------------------------


def product(first: Build, second: Build) -> Build:
    """Return the product of two branches: no linear op."""
    return lambda net, x: net.op("Mul", first(net, x), second(net, x))


# -- one node ---------------------------------------------------------------------------------------------------------


def width(net: Net, x: str) -> int:
    """Return the channels of a value."""
    return net.channels[x]


def op(kind: str, **attributes: Any) -> Build:
    """Return a node with one input and no parameters."""
    return lambda net, x: net.op(kind, x, channels=width(net, x), **attributes)


def relu(net: Net, x: str) -> str:
    """Add a Relu."""
    return net.relu(x)


def silu(net: Net, x: str) -> str:
    """Add ``x * sigmoid(x)``."""
    return net.silu(x)


def gelu(net: Net, x: str) -> str:
    """Add a GELU of five nodes."""
    return net.gelu(x)


def bn(net: Net, x: str) -> str:
    """Add a BatchNormalization."""
    return net.bn(x)


def conv(outputs: int | None, kernel: Size, **attributes: Any) -> Build:
    """Return a Conv; ``outputs=None`` keeps the channels."""
    return lambda net, x: net.conv(x, outputs or width(net, x), kernel, **attributes)


def conv_bn(outputs: int | None, kernel: Size, **attributes: Any) -> Build:
    """Return Conv and BatchNormalization, or the Conv with bias that an exporter makes of them."""
    return lambda net, x: net.conv_bn(x, outputs or width(net, x), kernel, **attributes)


def depthwise(kernel: Size, **attributes: Any) -> Build:
    """Return a depthwise Conv and BatchNormalization."""
    return lambda net, x: net.conv_bn(x, width(net, x), kernel, group=width(net, x), **attributes)


def conv_transpose(
    outputs: int,
    kernel: int,
    stride: int,
    pads: int = 0,
    *,
    extra: int = 0,
    group: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> Build:
    """Return a ConvTranspose."""

    def build(net: Net, x: str) -> str:
        axes = net.axes[x]
        names = [net.constant(net.draw(net.channels[x], outputs // group, *(kernel,) * axes))]
        if bias:
            names.append(net.constant(net.draw(outputs)))
        attributes: dict[str, Any] = {
            "kernel_shape": [kernel] * axes,
            "strides": [stride] * axes,
            "pads": [pads] * 2 * axes,
            "output_padding": [extra] * axes,
            "dilations": [dilation] * axes,
        }
        return net.op("ConvTranspose", x, *names, channels=outputs, group=group, **attributes)

    return build


def mul(factor: Any = None, *, first: bool = False, kind: str = "Mul") -> Build:
    """Return the product with a constant; None: one random factor per channel in front of the spatial axes."""

    def build(net: Net, x: str) -> str:
        constant = net.constant(net.per_channel(x) if factor is None else factor)
        return net.op(kind, *((constant, x) if first else (x, constant)))

    return build


def shift(values: Any = None, *, first: bool = False) -> Build:
    """Return the sum with a constant; None: one random summand per channel in front of the spatial axes."""
    return mul(values, first=first, kind="Add")


def pad(*pads: int, value: float = 0.0, mode: str = "constant") -> Build:
    """Return a Pad of the spatial axes, all begins first."""

    def build(net: Net, x: str) -> str:
        axes = len(pads) // 2
        whole = net.constant([0, 0, *pads[:axes], 0, 0, *pads[axes:]], dtype=np.int64)
        filled = [net.constant(value)] if mode == "constant" else []
        return net.op("Pad", x, whole, *filled, mode=mode)

    return build


def crop(first: int, behind: int, step: int, axes: Sequence[int]) -> Build:
    """Return a Slice; ``behind=0`` goes on to the end."""

    def build(net: Net, x: str) -> str:
        columns = ([first], [behind or _FAR], [1], [step])
        starts, ends, _, steps = (net.constant(c * len(axes), dtype=np.int64) for c in columns)
        return net.op("Slice", x, starts, ends, net.constant(axes, dtype=np.int64), steps)

    return build


# -- products -----------------------------------------------------------------------------------------------------


def matmul(outputs: int | None = None, *, bias: bool = False, first: bool = False, ones: int = 0) -> Build:
    """Return ``MatMul(x, W)`` and perhaps an Add, the bias ``first`` as PyTorch writes it; ``ones`` lead W's shape."""

    def build(net: Net, x: str) -> str:
        inputs, count = width(net, x), outputs or WIDTH
        weight = net.constant(net.draw(inputs, count, scale=inputs**-0.5).reshape((1,) * ones + (inputs, count)))
        value = net.op("MatMul", x, weight, channels=count)
        return shift(net.draw(count), first=first)(net, value) if bias else value

    return build


def matmul_left(outputs: int | None = None) -> Build:
    """Return ``MatMul(W, x)`` on ``[N, C, L]``."""

    def build(net: Net, x: str) -> str:
        count = outputs or WIDTH
        weight = net.constant(net.draw(count, width(net, x), scale=width(net, x) ** -0.5))
        value = net.op("MatMul", weight, x, channels=count)
        net.axes[value] = net.axes[x]
        return value

    return build


def gemm(outputs: int | None = None, *, summand: str = "vector", flip: bool = True, **attributes: Any) -> Build:
    """Return a Gemm; ``summand`` is the shape of C: vector, row, scalar, column (one number per sample) or none."""

    def build(net: Net, x: str) -> str:
        inputs, count = width(net, x), outputs or WIDTH
        weight = net.draw(inputs, count, scale=inputs**-0.5)
        names = [x, net.constant(weight.T if flip else weight)]
        shapes: dict[str, tuple[int, ...]] = {"vector": (count,), "row": (1, count), "scalar": (), "column": (2, 1)}
        if summand in shapes:
            names.append(net.constant(net.draw(*shapes[summand])))
        return net.op("Gemm", *names, channels=count, transB=int(flip), **attributes)

    return build


# -- movements ----------------------------------------------------------------------------------------------------


def turn(*order: int) -> Build:
    """Return a Transpose; the channels stay the channels."""
    return op("Transpose", perm=order)


def shaped(*dims: int, channels: int | None = None, allow_zero: int = 0) -> Build:
    """Return a Reshape to constant sizes."""

    def build(net: Net, x: str) -> str:
        target = net.constant(dims, dtype=np.int64)
        value = net.op("Reshape", x, target, channels=channels or width(net, x))
        net.axes[value] = len(dims) - 2
        return value

    return build


def flattened(axis: int) -> Build:
    """Return a Flatten to a matrix."""

    def build(net: Net, x: str) -> str:
        value = net.op("Flatten", x, channels=width(net, x), axis=axis)
        net.axes[value] = 0
        return value

    return build


def pooled(keep: bool) -> Build:
    """Return the mean over both spatial axes."""

    def build(net: Net, x: str) -> str:
        value = net.op("ReduceMean", x, axes=[2, 3], keepdims=int(keep))
        net.axes[value] = 2 if keep else 0
        return value

    return build


def shaped_like(net: Net, x: str, template: str) -> str:
    """Add a Reshape of ``x`` to the shape of another value."""
    value = net.op("Reshape", x, net.op("Shape", template), channels=width(net, template))
    net.axes[value] = net.axes[template]
    return value


def shaped_computed(*dims: int | None) -> Build:
    """Return a Reshape to sizes written as the older exporter does; None copies the size of that axis."""

    def build(net: Net, x: str) -> str:
        target = computed_sizes(net, x, enumerate(dims))
        value = net.op("Reshape", x, target, channels=width(net, x))
        net.axes[value] = len(dims) - 2
        return value

    return build


def computed_sizes(net: Net, x: str, sizes: Iterable[tuple[int, int | None]]) -> str:
    """Add the nodes that compute a shape of ``(axis, size)``; size None: that of ``x`` along the axis."""
    whole, parts = net.op("Shape", x), []
    for axis, size in sizes:
        if size is not None:
            parts.append(net.constant([size], dtype=np.int64))
            continue
        one = net.op("Gather", whole, net.constant(axis, dtype=np.int64), axis=0)
        parts.append(net.op("Unsqueeze", one, net.constant([0], dtype=np.int64)))
    return net.op("Concat", *parts, channels=1, axis=0)


def shuffle(groups: int, sizes: tuple[int, int] | None = None) -> Build:
    """Return ShuffleNet's channel shuffle of an image; ``sizes=None``: height and width are computed."""

    def build(net: Net, x: str) -> str:
        channels, axes = width(net, x), net.axes[x]
        parts = (groups, channels // groups)
        if sizes is None:
            space = [(2, None), (3, None)]
            wide = computed_sizes(net, x, [(0, None), (1, parts[0]), (1, parts[1]), *space])
            back = computed_sizes(net, x, [(0, None), (1, channels), *space])
        else:
            wide = net.constant([-1, *parts, *sizes], dtype=np.int64)
            back = net.constant([-1, channels, *sizes], dtype=np.int64)
        value = net.op("Transpose", net.op("Reshape", x, wide), perm=[0, 2, 1, 3, 4])
        value = net.op("Reshape", value, back)
        net.axes[value] = axes
        return value

    return build


# -- parts of the channels ------------------------------------------------------------------------------------------


def split(net: Net, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
    """Add a Split of channels."""
    names = [net.name("Split") for _ in sizes]
    net.nodes.append(helper.make_node("Split", [x, net.constant(sizes, dtype=np.int64)], names, axis=axis))
    return _parts(net, x, names, sizes)


def slices(net: Net, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
    """Add one Slice per part."""
    names, start = [], 0
    for size in sizes:
        names.append(crop(start, start + size, 1, [axis])(net, x))
        start += size
    return _parts(net, x, names, sizes)


def chunks(net: Net, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
    """Add equal Slices whose ends are computed from the number of channels, as the older exporter writes a chunk."""
    count = len(sizes)
    length = net.op("Gather", net.op("Shape", x), net.constant(axis, dtype=np.int64), axis=0)
    rounded = net.op("Add", length, net.constant(count - 1, dtype=np.int64))
    each = net.op("Div", rounded, net.constant(count, dtype=np.int64))
    start, where, names = net.constant([0], dtype=np.int64), net.constant([axis], dtype=np.int64), []
    for index in range(1, count + 1):
        end = net.op("Mul", each, net.constant([index], dtype=np.int64))
        names.append(net.op("Slice", x, start, end, where))
        start = end
    return _parts(net, x, names, sizes)


def _parts(net: Net, x: str, names: list[str], sizes: Sequence[int]) -> list[str]:
    """Note the sizes of parts of the channels."""
    for name, size in zip(names, sizes, strict=True):
        net.channels[name], net.axes[name] = size, net.axes[x]
    return names
