"""Blocks with layers in series inside a branch, border frames among them, with their variations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from onnx import helper

from models.blocks import frames
from models.blocks.base import Block, Build, image
from models.blocks.frames import Frame, framed, legacy_pads
from models.blocks.weights import conv_of
from models.net import Net

FRAMES: dict[str, Frame] = {
    "Pad": frames.pad_frame,
    "ScatterND and Transposes": frames.scatter_frame,
    "ScatterND, Transposes composed": frames.merged_scatter_frame,
    "ScatterND with all indices": frames.index_frame,
    "Concat": frames.concat_frame,
}
SIZES = ((7, 7), (6, 8), (2, 1))
"""Static sizes for frames that are written for one size: odd, even, both borders at once."""

_ONE = {"Conv": 1, "Relu": 1}
_SILU = {"Conv": 1, "Sigmoid": 1, "Mul": 1}


def dbb(
    branches: str,
    frame: Frame = frames.pad_frame,
    *,
    kernel: int = 3,
    stride: int = 1,
    group: int = 1,
    own: bool = False,
) -> Build:
    """Return a sum of branches of the DiverseBranchBlock: ``origin``, ``small``, ``average`` and ``stack``.

    ``own``: the stack's first layer is the identity plus a learned part. A depthwise block pools its input itself.
    """

    def first(net: Net, x: str, outputs: int) -> str:
        if not own or net.folded:
            return net.conv_bn(x, outputs, 1, group=group)
        eye = np.eye(outputs // group)[np.arange(outputs) % (outputs // group), :, None, None]
        learned = net.constant(net.draw(*eye.shape, scale=0.5))
        return net.bn(conv_of(net, x, net.op("Add", learned, net.constant(eye)), outputs, group=group))

    def build(net: Net, x: str) -> str:
        channels, margin = net.channels[x], kernel // 2
        depthwise = group == channels
        parts = []
        for branch in branches.split():
            if branch in ("origin", "small"):
                parts.append(net.conv_bn(x, channels, kernel if branch == "origin" else 1, stride=stride, group=group))
            elif branch == "average":
                y = x if depthwise else framed(net, net.conv_bn(x, channels, 1, group=group), frame, margin)
                parts.append(net.bn(_average(net, y, kernel, stride, margin if depthwise else 0)))
            else:
                y = framed(net, first(net, x, 2 * channels if depthwise else channels), frame, margin)
                parts.append(net.conv_bn(y, channels, kernel, stride=stride, group=group, pads=0))
        return net.relu(net.add(*parts))

    return build


def _average(net: Net, x: str, kernel: int, stride: int, pads: int) -> str:
    """Add an AveragePool that counts padded positions."""
    size, strides = [kernel] * 2, [stride] * 2
    return net.op("AveragePool", x, kernel_shape=size, strides=strides, pads=[pads] * 4, count_include_pad=1)


SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
EDGES = {"sobel-x": SOBEL, "sobel-y": SOBEL.T, "laplacian": np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])}


def edge(net: Net, x: str, frame: Frame, kind: str) -> str:
    """Add C1+b, frame, depthwise scale * mask + b; the exporter folds the product unless the training form is kept."""
    channels = net.channels[x]
    y = framed(net, net.conv(x, channels, 1, bias=True), frame, 1)
    scales, mask = net.draw(channels, 1, 1, 1), np.tile(EDGES[kind], (channels, 1, 1, 1))
    bias = net.constant(net.draw(channels))
    weight = net.constant(scales * mask) if net.folded else net.op("Mul", net.constant(scales), net.constant(mask))
    return conv_of(net, y, weight, channels, bias=bias, group=channels)


def stack(net: Net, x: str, frame: Frame, ratio: int = 2) -> str:
    """Add C1+b to more channels, frame, C3 p0 +b."""
    channels = net.channels[x]
    y = framed(net, net.conv(x, ratio * channels, 1, bias=True), frame, 1)
    return net.conv(y, channels, 3, pads=0, bias=True)


def edge_block(branches: str, frame: Frame = frames.pad_frame) -> Build:
    """Return a sum of ``3x3``, ``1x1``, ``stack``, edge branches and ``x``, as ECBSR and EFDN have it."""

    def build(net: Net, x: str) -> str:
        channels, parts = net.channels[x], []
        for branch in branches.split():
            if branch == "x":
                parts.append(x)
            elif branch == "stack":
                parts.append(stack(net, x, frame))
            elif branch in EDGES:
                parts.append(edge(net, x, frame, branch))
            else:
                parts.append(net.conv(x, channels, int(branch[0]), bias=True))
        return net.relu(net.add(*parts))

    return build


def rep_rfn(frame: Frame = frames.pad_frame) -> Build:
    """Return RepRFN's block: asymmetric kernels, a stack without bias behind a zero padding, edges and the input."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        parts = [net.conv(x, channels, k, bias=True) for k in ((3, 3), (3, 1), (1, 3), (1, 1))]
        parts.append(net.conv(net.conv(x, 2 * channels, 1), channels, 3))
        parts += [edge(net, x, frame, kind) for kind in ("sobel-x", "sobel-y")]
        return net.relu(net.add(*parts, x))

    return build


def span(form: str, *, stride: int = 1, outputs: int = 8) -> Build:
    """Return SPAN's Conv3XC: 1x1, 3x3, 1x1 on a padded input, and a 1x1; ``form`` says where the padding is written."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        y = x
        if form != "merged":
            pads = legacy_pads(net, 1) if form == "computed" else net.constant([0, 0, 1, 1] * 2, dtype=np.int64)
            y = net.op("Pad", x, pads, net.constant(0.0))
        y = net.conv(y, 2 * channels, 1, pads=1 if form == "merged" else 0, bias=True)
        y = net.conv(y, 2 * outputs, 3, stride=stride, pads=0, bias=True)
        y = net.conv(y, outputs, 1, bias=True)
        return net.silu(net.add(y, net.conv(x, outputs, 1, stride=stride, bias=True)))

    return build


def rrrb(frame: Frame, *, gate: bool = False) -> Build:
    """Return FMEN's RRRB; with ``gate`` PlainUSR's MBConv, whose 3x3 is scaled by a function of a parameter."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        wide = net.conv(x, 2 * channels, 1, bias=True)
        y = net.conv(framed(net, wide, frame, 1), 2 * channels, 3, pads=0, bias=True)
        if gate:
            y = net.op("Mul", _gate(net, 2 * channels), y, channels=2 * channels)
        return net.relu(net.add(net.conv(net.add(y, wide), channels, 1, bias=True), x))

    return build


def _gate(net: Net, channels: int) -> str:
    """Add sigmoid(1x1(gelu(1x1(parameter)))), as an exporter leaves it when it folds no constants."""
    value = net.constant(net.draw(1, channels, 1, 1))
    net.axes[value], net.channels[value] = 2, channels
    hidden = net.conv(value, channels // 4, 1, bias=True)
    return net.op("Sigmoid", net.conv(net.gelu(hidden), channels, 1, bias=True))


def chain(*layers: tuple[int, int, int], bias: bool = True, residual: bool = False, form: str = "pads") -> Build:
    """Return Convs in a row, each ``(width, kernel, pads)``, the width a multiple of the block's channels.

    ``form``: "pads", "SAME_UPPER" as TensorFlow's models have it, or "stride 2" in the 3x3.
    """

    def build(net: Net, x: str) -> str:
        y, channels = x, net.channels[x]
        for width, kernel, pads in layers:
            padding: dict[str, Any] = {"auto_pad": form} if form == "SAME_UPPER" else {"pads": pads}
            stride = 2 if form == "stride 2" and kernel == 3 else 1
            y = net.conv(y, width * channels, kernel, stride=stride, bias=bias, **padding)
        return net.relu(net.add(y, x) if residual else y)

    return build


def same_stride(net: Net, x: str) -> str:
    """Add BN(C3) + BN(C1) with stride 2, both with auto_pad SAME_UPPER."""
    convs = [net.conv_bn(x, 16, k, stride=2, auto_pad="SAME_UPPER") for k in (3, 1)]
    return net.relu(net.add(*convs))


def _channels(net: Net, x: str, first: int, last: int) -> str:
    """Add a Slice of channels."""
    bounds = [net.constant([i], dtype=np.int64) for i in (first, last, 1)]
    return net.op("Slice", x, *bounds, channels=last - first)


def _split(net: Net, x: str, *sizes: int) -> list[str]:
    """Add a Split of channels."""
    outputs = [net.name("part") for _ in sizes]
    node = helper.make_node("Split", [x, net.constant(sizes, dtype=np.int64)], outputs, axis=1)
    net.nodes.append(node)
    for output, size in zip(outputs, sizes, strict=True):
        net.axes[output], net.channels[output] = net.axes[x], size
    return outputs


def partial_conv(form: str, *, stride: int = 1, norm: bool = False) -> Build:
    """Return PlainUSR's PConv: a 3x3, then a 1x1 on the first quarter of its channels, by Slice or Split."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        part = channels // 4
        y = net.conv(x, channels, 3, stride=stride, bias=True)
        if form == "Split":
            first, rest = _split(net, y, part, channels - part)
        else:
            first, rest = _channels(net, y, 0, part), _channels(net, y, part, channels)
        first = net.conv_bn(first, part, 1) if norm else net.conv(first, part, 1, bias=True)
        return net.relu(net.op("Concat", first, rest, axis=1, channels=channels))

    return build


def faster(net: Net, x: str) -> str:
    """Add FasterNet's partial convolution: a 3x3 on a quarter of the channels, then a 1x1 on all."""
    channels = net.channels[x]
    first, rest = _split(net, x, channels // 4, channels - channels // 4)
    mixed = net.op("Concat", net.conv(first, channels // 4, 3), rest, axis=1, channels=channels)
    return net.relu(net.conv_bn(mixed, channels, 1))


def to_depth(form: str, factor: int, kernel: int, *, norm: bool = False) -> Build:
    """Return pixels moved to channels, [BN], and a Conv."""

    def build(net: Net, x: str) -> str:
        y = _STEPS[form](net, x, factor)
        if norm:
            y = net.bn(y)
        return net.silu(net.conv_bn(y, 16, kernel))

    return build


def _strided(net: Net, x: str, factor: int, axes: Sequence[int], starts: Sequence[int]) -> str:
    """Add a strided Slice."""
    end, step = [np.iinfo(np.int64).max] * len(axes), [factor] * len(axes)
    return net.op("Slice", x, *(net.constant(v, dtype=np.int64) for v in (starts, end, axes, step)))


def _focus(net: Net, x: str, factor: int, *, one_by_one: bool = False) -> str:
    """Add Slices, one per phase or one per phase and axis, and their Concat; the phases of H run fastest."""
    parts = []
    for column, row in product(range(factor), repeat=2):
        if one_by_one:
            parts.append(_strided(net, _strided(net, x, factor, [2], [row]), factor, [3], [column]))
        else:
            parts.append(_strided(net, x, factor, [2, 3], [row, column]))
    return net.op("Concat", *parts, axis=1, channels=factor**2 * net.channels[x])


def _unshuffle(net: Net, x: str, factor: int, *, blocks_first: bool = False) -> str:
    """Add Reshape, Transpose, Reshape for the size of the input, as the exporters write PixelUnshuffle."""
    channels = net.channels[x]
    height, width = (d.dim_value // factor for d in net.inputs[0].type.tensor_type.shape.dim[2:])
    shapes = ([-1, channels, height, factor, width, factor], [-1, factor**2 * channels, height, width])
    split, joined = (net.constant(s, dtype=np.int64) for s in shapes)
    perm = [0, 3, 5, 1, 2, 4] if blocks_first else [0, 1, 3, 5, 2, 4]
    moved = net.op("Transpose", net.op("Reshape", x, split), perm=perm)
    net.op("Reshape", moved, joined, channels=factor**2 * channels)
    y = net.nodes[-1].output[0]
    net.axes[y] = net.axes[x]
    return y


def _space_to_depth(net: Net, x: str, factor: int) -> str:
    """Add the operator."""
    return net.op("SpaceToDepth", x, blocksize=factor, channels=factor**2 * net.channels[x])


_STEPS: dict[str, Callable[[Net, str, int], str]] = {
    "Slices over both axes": _focus,
    "Slices axis by axis": partial(_focus, one_by_one=True),
    "Reshape, Transpose, Reshape": _unshuffle,
    "Reshape, Transpose, Reshape, blocks first": partial(_unshuffle, blocks_first=True),
    "SpaceToDepth": _space_to_depth,
}


def chunk_conv(net: Net, x: str) -> str:
    """Add RepNeXt's ChunkConv, its BatchNormalization and the 1x1."""
    channels = net.channels[x]
    part = channels // 4
    same, small, middle, large = _split(net, x, *[part] * 4)

    def depthwise(y: str, *kernels: tuple[int, int], dilation: int = 1, bias: bool = False) -> str:
        for kernel in kernels:
            pads = [1] * 4 if dilation > 1 else None
            y = net.conv(y, part, kernel, dilation=dilation, pads=pads, group=part, bias=bias)
        return y

    corners = depthwise(small, (2, 2), dilation=2)
    small = net.add(depthwise(small, (3, 3), bias=True), *(depthwise(small, k) for k in ((3, 1), (1, 3))), corners)
    singles = [depthwise(middle, k, bias=k == (7, 7)) for k in ((7, 7), (5, 3), (3, 5))]
    middle = net.add(*singles, *(depthwise(middle, (k, 1), (1, k)) for k in (7, 5)))
    large = depthwise(large, (11, 1), (1, 11), bias=True)
    y = net.op("Concat", same, small, middle, large, axis=1, channels=channels)
    return net.conv_bn(net.bn(y), 2 * channels, 1)


def aconv(net: Net, x: str) -> str:
    """Add YOLOv9's AConv."""
    return net.silu(net.conv_bn(_average(net, x, 2, 1, 0), 16, 3, stride=2))


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    yield from _dbb()
    yield from _edges()
    yield from _super_resolution()
    yield from _chains()
    yield from _moves()


def static(channels: int, size: tuple[int, int], batch: int = 1) -> tuple[int, int, int, int]:
    """Return an input shape without dynamic sizes."""
    return batch, channels, *size


def _dbb() -> Iterator[Block]:
    """Yield the DiverseBranchBlock: branches alone, the whole, and every form of its frame."""
    whole = "origin small average stack"
    form = "BN(Ck) + BN(C1) + BN(AP(bp(BN(C1)))) + BN(Ck p0(bp(BN(C1)))); Relu"
    make = partial(Block, "DBB", "DiverseBranchBlock, PaddleClas", form)
    pooled = {"Conv": 1, "AveragePool": 1, "BatchNormalization": 1, "Relu": 1}
    yield make("average alone", dbb("average"), image(), pooled, exact=False)
    yield make("stack alone", dbb("stack"), image(), _ONE)
    yield make("origin and average", dbb("origin average"), image(), _ONE, exact=False)
    yield make("origin, small and stack", dbb("origin small stack"), image(), _ONE)
    for words, build in {
        "whole": dbb(whole),
        "kernel 5": dbb(whole, kernel=5),
        "stride 2": dbb(whole, stride=2),
        "2 groups": dbb(whole, group=2),
        "depthwise": dbb("origin average stack", group=8),
        "identity in the stack's weight": dbb(whole, own=True),
        "identity in the stack's weight, 2 groups": dbb(whole, own=True, group=2),
    }.items():
        yield make(words, build, image(), _ONE, exact=False)
    for words, size in (
        ("ScatterND and Transposes", SIZES[1]),
        ("ScatterND and Transposes", SIZES[2]),
        ("ScatterND, Transposes composed", SIZES[0]),
        ("ScatterND with all indices", SIZES[1]),
        ("Concat", SIZES[0]),
        ("Concat", SIZES[2]),
    ):
        build, shape = dbb(whole, FRAMES[words]), static(8, size, batch=1 + size[0] % 2)
        yield make(f"{size[0]}x{size[1]}, frame by {words}", build, shape, _ONE, exact=False)
    build = dbb(whole, frames.scatter_frame, kernel=5, stride=2)
    yield make("kernel 5, stride 2, frame by ScatterND", build, static(8, (7, 6)), _ONE, exact=False)


def _edges() -> Iterator[Block]:
    """Yield edge-oriented blocks."""
    form = "C3+b + (C1+b;bp;C3+b) + (C1+b;bp;dw Sobel-x, Sobel-y, Laplacian +b) + [x]"
    make = partial(Block, "ECBSR ECB, EFDN EDBB", "super-resolution", form)
    whole = "3x3 stack sobel-x sobel-y laplacian"
    yield make("sobel-x alone", edge_block("sobel-x"), image(), {"Conv": 2, "Relu": 1})
    for words, branches in {
        **{f"3x3 and {kind}": f"3x3 {kind}" for kind in EDGES},
        "stack alone": "stack",
        "ECB": whole,
        "ECB, residual": f"{whole} x",
        "EDBB": f"{whole} 1x1 x",
    }.items():
        yield make(words, edge_block(branches), image(), _ONE)
    for words, size in zip(list(FRAMES)[1:], (SIZES[1], SIZES[0], SIZES[2], SIZES[0]), strict=True):
        build = edge_block(f"{whole} x", FRAMES[words])
        yield make(f"ECB, residual, {size[0]}x{size[1]}, frame by {words}", build, static(8, size), _ONE)
    form = "C3 + C(3,1) + C(1,3) + C1 + (C1;C3 zp) + Sobel bp + x"
    yield Block("RepRFN", "NTIRE23", form, "any size", rep_rfn(), image(), _ONE)
    yield Block(
        "RepRFN", "NTIRE23", form, "5x6, frame by ScatterND", rep_rfn(frames.scatter_frame), static(8, (5, 6)), _ONE
    )


def _super_resolution() -> Iterator[Block]:
    """Yield SPAN, RRRB and MBConv."""
    make = partial(Block, "SPAN Conv3XC", "SPAN", "Pad(x,0);C1+b;C3 p0+b;C1+b, + C1+b")
    for words, build in {
        "Pad": span("Pad"),
        "operand of the Pad computed": span("computed"),
        "pads in the first 1x1": span("merged"),
        "stride 2, 16 outputs": span("Pad", stride=2, outputs=16),
    }.items():
        yield make(words, build, image(), _SILU, exact=False)
    form = "C1+b;bp;u=C3 p0+b;(a*u+y1);C1+b;+x"
    make = partial(Block, "FMEN RRRB, PlainUSR MBConv", "super-resolution", form)
    yield make("RRRB", rrrb(frames.pad_frame), image(), _ONE)
    yield make("MBConv", rrrb(frames.pad_frame, gate=True), image(), _ONE, exact=False)
    for words in ("ScatterND and Transposes", "Concat"):
        yield make(f"RRRB, frame by {words}", rrrb(FRAMES[words]), static(8, (5, 6)), _ONE)
    yield make(
        "MBConv, frame by ScatterND", rrrb(frames.scatter_frame, gate=True), static(8, (6, 5)), _ONE, exact=False
    )
    left, border = {"Conv": 2, "Add": 1, "Relu": 1}, frozenset({"border"})
    yield make("RRRB, frame of zeros: wrong", rrrb(frames.zero_frame), image(), left, border)


def _chains() -> Iterator[Block]:
    """Yield linear over-parameterisation, and SAME at stride 2."""
    make = partial(Block, "ExpandNets, SESR LinearBlock", "over-parameterisation", "C1;Ck;C1, or C3;C3 .. KxK; [+ x]")
    for words, build in {
        "1x1 with pads, 3x3, 1x1": chain((4, 1, 1), (4, 3, 0), (1, 1, 0)),
        "1x1 with pads, 3x3 stride 2, 1x1": chain((4, 1, 1), (4, 3, 0), (2, 1, 0), form="stride 2"),
        "1x1, 3x3 with pads, 1x1, no bias": chain((4, 1, 0), (4, 3, 1), (1, 1, 0), bias=False),
        "5x5 as two 3x3, first padded": chain((4, 3, 2), (1, 3, 0)),
        "7x7 as three 3x3, first padded": chain((4, 3, 3), (4, 3, 0), (1, 3, 0)),
        "SESR 3x3": chain((4, 3, 0), (1, 1, 0), form="SAME_UPPER", residual=True),
        "SESR 5x5, no bias": chain((4, 5, 0), (1, 1, 0), form="SAME_UPPER", residual=True, bias=False),
    }.items():
        yield make(words, build, image(), _ONE)
    left, border = {"Conv": 2, "Relu": 1}, frozenset({"border"})
    inner = chain((4, 1, 0), (4, 3, 1), (1, 1, 0))
    yield make("1x1, 3x3 with pads, 1x1, inner bias", inner, image(), left, border)
    yield make("two 3x3, both SAME", chain((4, 3, 0), (1, 3, 0), form="SAME_UPPER"), image(), left, border)
    yield make("5x5 as two 3x3, no wider", chain((1, 3, 2), (1, 3, 0)), image(), left)
    make = partial(Block, "SAME at stride 2", "TensorFlow exports", "BN(C3 s2 SAME) + BN(C1 s2 SAME); Relu")
    for size in ((8, 6), (7, 5), (2, 1)):
        yield make(f"{size[0]}x{size[1]}", same_stride, static(8, size), _ONE)
    left = {"Conv": 2, "Add": 1, "Relu": 1}
    yield make("any size", same_stride, image(), left, frozenset({"not-aligned"}))


def _moves() -> Iterator[Block]:
    """Yield blocks that cut, move and join channels."""
    make = partial(Block, "PlainUSR PConv, partial conv", "super-resolution", "y=C3+b; Concat(C1(y1), y2)")
    yield make("by Slice", partial_conv("Slice"), image(), _ONE)
    yield make("by Slice, stride 2", partial_conv("Slice", stride=2), image(), _ONE)
    yield make("by Split, BN", partial_conv("Split", norm=True), image(), _ONE)
    left = {"Split": 1, "Conv": 2, "Concat": 1, "Relu": 1}
    yield make("FasterNet: 3x3 on a quarter, then 1x1", faster, image(), left)
    name = "Focus, PixelUnshuffle, patch merging + Conv"
    make = partial(Block, name, "YOLOv5, edge-SR", "q^2 strided Slices;Concat;[BN];C3 p1; SiLU")
    for form in _STEPS:
        yield make(f"{form}, 3x3", to_depth(form, 2, 3), ("batch", 3, 8, 6), _SILU, exact=False)
    for form in ("Slices over both axes", "Reshape, Transpose, Reshape"):
        yield make(f"{form}, BN, 1x1", to_depth(form, 2, 1, norm=True), ("batch", 3, 8, 6), _SILU, exact=False)
    form = "Reshape, Transpose, Reshape"
    yield make(f"{form}, q = 4, 1x1", to_depth(form, 4, 1), (2, 3, 4, 8), _SILU, exact=False)
    form = "Slices over both axes"
    shape = ("batch", 3, "height", 6)
    yield make(f"{form}, 3x3, any height", to_depth(form, 2, 3), shape, _SILU, sizes=(2, 4, 8), exact=False)
    left = {"Split": 1, "Conv": 5, "Concat": 1}
    form = "Split; [x, S, M, dw(11,1)+b;dw(1,11)+b]; Concat; BN;C1"
    yield Block("RepNeXt ChunkConv", "RepNeXt", form, "", chunk_conv, image(16), left)
    left = {"AveragePool": 1, **_SILU}
    border, sizes = frozenset({"border"}), (2, 3, 5, 8)
    yield Block("YOLOv9 AConv", "YOLOv9", "AP2 s1;BN(C3 s2 p1)", "", aconv, image(), left, border, sizes, exact=False)
