"""Plain multi-branch sums of networks for phones and the edge: many branches, and depthwise ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from models.blocks.base import Block, Build, chain, concat, same, total
from models.blocks.sums import (
    ADD,
    CONV,
    CONV_RELU,
    GELU,
    RELU,
    SE,
    conv,
    counts,
    hard_swish,
    lab,
    layer_scale,
    plus_zero,
    rows,
)
from models.net import Net, Size


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    for section in (_mobileone, _lcnet, _repvit, _repnext, _ghosts, _mixers):
        yield from section()


def _mobileone() -> Iterator[Block]:
    """Yield MobileOne: an identity, a 1x1 and several equal convolutions."""
    words = "MobileOne", "ml-fastvit, timm, mmpretrain", "[BN(x)] + [BN(C1)] + n BN(Ck); Relu"
    wide = [conv(3, 16, stride=2) for _ in range(4)]
    down = [conv(3, dw=True, stride=2), conv(1, dw=True, stride=2)]
    forms = {
        "dense 3x3, 4 branches, identity": total(conv(1), Net.bn, *[conv(3)] * 4),
        "dense 3x3, stride 2, plus 0": total(chain(conv(1, 16, stride=2), plus_zero), *wide),
        "depthwise 3x3, 1 branch, stride 2": total(*down),
        "depthwise 3x3, 4 branches, identity": total(conv(1, dw=True), Net.bn, *[conv(3, dw=True)] * 4),
        "1x1, 4 branches, identity, plus 0": total(chain(Net.bn, plus_zero), *[conv(1)] * 4),
        "depthwise 7x7, 3 branches, balanced": total(*[conv(7, dw=True)] * 3, conv(1, dw=True), join=Net.balanced),
    }
    yield from rows(words, CONV_RELU, forms, Net.relu)
    gate = chain(forms["depthwise 3x3, 4 branches, identity"], Net.squeeze_excite, Net.relu)
    yield from rows(words, counts(CONV, SE, RELU), {"depthwise with SE": gate}, exact=False)


def lcnet(kernel: int, act: Build, outputs: int | None = None, *, dw: bool = False, stride: Size = 1) -> Build:
    """Return PP-LCNetV3's LearnableRepLayer with four equal branches; a stride of 2 has no activation."""
    shape: dict[str, Any] = {"outputs": outputs, "dw": dw, "stride": stride}
    branches: list[Build] = [Net.bn] if outputs is None and stride == 1 else []
    branches += [conv(1, **shape)] if kernel > 1 else []
    branches += [conv(kernel, **shape)] * 4
    last = () if stride == 2 else (act, lab(0.5, 1.0))
    return chain(total(*branches), lab(0.75, -2.0), *last)


def _lcnet() -> Iterator[Block]:
    """Yield the blocks of the PP-LCNet family."""
    words = "LearnableRepLayer of PP-LCNetV3", "PaddleOCR, transformers", "LAB([BN(x)] + [BN(C1)] + 4 BN(Ck)); act; LAB"
    act, tail = {"HardSwish": 1}, {"Mul": 1, "Add": 1}
    alone = {
        "depthwise 3x3 with identity": lcnet(3, hard_swish, dw=True),
        "depthwise 5x5, stride (2, 1)": lcnet(5, hard_swish, dw=True, stride=(2, 1)),
        "dense 3x3, stride (1, 2)": lcnet(3, hard_swish, 16, stride=(1, 2)),
    }
    yield from rows(words, counts(CONV, act, tail), alone, exact=False)
    yield from rows(words, CONV, {"depthwise 3x3, stride 2, no activation": lcnet(3, Net.relu, dw=True, stride=2)})
    pair = chain(lcnet(3, hard_swish, dw=True), lcnet(1, hard_swish))
    yield from rows(words, counts(CONV, CONV, act, act, tail), {"depthwise, then 1x1": pair}, exact=False)
    exact = chain(lcnet(3, Net.relu, dw=True), lcnet(1, Net.relu, 16))
    yield from rows(words, counts(CONV, CONV, RELU, RELU, tail), {"depthwise, then 1x1, Relu": exact})
    padded = chain(lcnet(1, Net.relu), lcnet(3, Net.relu, dw=True))
    left = counts(CONV, CONV, RELU, RELU, tail, {"Add": 1})
    yield from rows(words, left, {"1x1, then padded depthwise: the shift stays": padded})

    words = "PP-LCNetV2", "PaddleClas, timm", "sum over k = K, K-2, .. of BN(dwCk s p=k//2); Relu"
    for size, stride in ((5, 1), (5, 2), (7, 2)):
        kernels = [k for k in range(size, 0, -2) if k > 1 or stride == 1]
        build = chain(total(*[conv(k, dw=True, stride=stride) for k in kernels]), Net.relu)
        yield from rows(words, CONV_RELU, {f"{size}x{size}, stride {stride}": build})


def _repvit() -> Iterator[Block]:
    """Yield RepViT's token mixer."""
    words = "RepVGGDW of RepViT", "THU-MIG/RepViT, timm", "BN(BN(dw3) + dw1+b + x)"
    small = conv(1, dw=True, bn=False, bias=True)
    forms = {f"{k}x{k}": chain(total(conv(k, dw=True), small, same), Net.bn) for k in (3, 7)}
    yield from rows(words, CONV, forms)
    mixer = total(same, chain(conv(1, 16), Net.gelu, conv(1, 8)))
    tail = counts(CONV, CONV, GELU, ADD)
    yield from rows(words, counts(CONV, tail), {"whole block": chain(forms["3x3"], mixer)}, exact=False)
    gated = chain(forms["3x3"], Net.squeeze_excite, mixer)
    yield from rows(words, counts(CONV, SE, tail), {"whole block with SE": gated}, exact=False)


def small_repnext(stride: int) -> Build:
    """Return RepDWConvS: with stride 2 the 1x3 and 3x1 are in series."""
    corners = conv(2, dw=True, bn=False, bias=True, dilation=2, pads=1, stride=stride)
    square = conv(3, dw=True, bn=False, bias=True, stride=stride)
    bars = [conv(k, dw=True, bn=False, bias=True) for k in ((3, 1), (1, 3))]
    return total(square, *(bars if stride == 1 else [separable(3, stride)]), corners)


def separable(kernel: int, stride: int) -> Build:
    """Return 1xk and kx1 in series, without bias."""
    flat = conv((1, kernel), dw=True, bn=False, stride=(1, stride))
    return chain(flat, conv((kernel, 1), dw=True, bn=False, stride=(stride, 1)))


def medium_repnext(stride: int) -> Build:
    """Return RepDWConvM."""
    boxes = [conv(k, dw=True, bn=False, bias=True, stride=stride) for k in (7, (5, 3), (3, 5))]
    return total(*boxes, separable(7, stride), separable(5, stride))


def _repnext() -> Iterator[Block]:
    """Yield RepNeXt's convolutions."""
    words = (
        "RepDWConvS of RepNeXt",
        "suous/RepNeXt",
        "dw3 + dw3x1 + dw1x3 + dw2x2 d2 p1; s2: dw3 + (dw1x3; dw3x1) + dw2x2",
    )
    yield from rows(words, CONV, {f"stride {s}": small_repnext(s) for s in (1, 2)})
    words = "RepDWConvM of RepNeXt", "suous/RepNeXt", "dw7 + dw5x3 + dw3x5 + (dw1x7; dw7x1) + (dw1x5; dw5x1)"
    yield from rows(words, CONV, {f"stride {s}": medium_repnext(s) for s in (1, 2)})
    words = "CopyConv of RepNeXt", "suous/RepNeXt", "Concat(S s2, M s2); BN"
    copies = concat(small_repnext(2), medium_repnext(2))
    left = counts(CONV, CONV, {"Concat": 1})
    yield from rows(words, left, {"alone": copies, "norm after the Concat": chain(copies, Net.bn)})
    mixer = total(same, chain(conv(1, 32), Net.gelu, conv(1, 16)))
    whole = chain(copies, Net.bn, mixer)
    left = counts(left, CONV, CONV, GELU, ADD)
    yield from rows(words, left, {"whole downsampling": whole}, exact=False)


def ghost(relu: bool, twice: bool = False) -> Build:
    """Return RepGhostModule: a 1x1, then a depthwise 3x3 beside a norm of the same value."""
    act = Net.relu if relu else same
    cheap = total(conv(3, dw=True), Net.bn, *([same] if twice else []))
    return chain(conv(1), act, cheap, act)


def ghost_v3(gated: bool) -> Build:
    """Return GhostNetV3's module: sums of four and five branches, Concat, and perhaps its gate chain."""

    def build(net: Net, x: str) -> str:
        primary = chain(total(chain(Net.bn, plus_zero), *[conv(1)] * 3), Net.relu)(net, x)
        cheap = total(conv(1, dw=True), Net.bn, *[conv(3, dw=True)] * 3)
        out = concat(same, chain(cheap, Net.relu))(net, primary)
        if not gated:
            return out
        pooled = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        gate = chain(conv(1, 16), conv((1, 5), dw=True), conv((5, 1), dw=True))(net, pooled)
        gate = net.op("Sigmoid", net.op("Div", gate, net.constant(1.0)))
        scales = net.constant([1, 1, 2, 2], dtype=np.float32)
        return net.op("Mul", out, net.op("Resize", gate, "", scales, mode="nearest"))

    return build


def _ghosts() -> Iterator[Block]:
    """Yield the blocks with cheap operations."""
    words = "RepGhostModule", "RepGhost, timm", "x1 = [Relu](BN(C1)); [Relu](BN(dw3 x1) + BN(x1) [+ x1])"
    two = counts(CONV, CONV)
    yield from rows(words, counts(two, RELU, RELU), {"Relu": ghost(True), "Relu, identity too": ghost(True, True)})
    yield from rows(words, two, {"no Relu": ghost(False), "no Relu, identity too": ghost(False, True)})
    down = total(same, chain(ghost(True), Net.squeeze_excite, ghost(False)))
    left = counts(two, two, RELU, RELU, SE, ADD)
    yield from rows(words, left, {"bottleneck with SE": down}, exact=False)

    words = (
        "GhostModuleV3",
        "Efficient-AI-Backbones, timm",
        "3 BN(C1) + [BN(x)]; Relu; 3 BN(dw3) + BN(dw1) + BN(x1); Relu",
    )
    left = counts(two, RELU, RELU, {"Concat": 1})
    yield from rows(words, left, {"without gate": ghost_v3(False)})
    gate = {"AveragePool": 1, "Conv": 3, "Sigmoid": 1, "Resize": 1, "Mul": 1}
    yield from rows(words, counts(left, gate), {"with gate": ghost_v3(True)}, shape=(2, 8, 6, 8), exact=False)


def rep_mixer(kernel: int, scale: Build) -> Build:
    """Return FastViT's RepMixer: x + scale * (BN(x) + BN(dw1) + BN(dwk) - BN'(x))."""

    def build(net: Net, x: str) -> str:
        mixed = total(Net.bn, conv(1, dw=True), conv(kernel, dw=True))(net, x)
        return net.add(x, scale(net, net.op("Sub", mixed, net.bn(x))))

    return build


def vim(form: str) -> Build:
    """Return EfficientViM's residual, whose weight is the sigmoid of a parameter."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        gates = net.op("Sigmoid", net.constant(net.draw(4, channels)))
        gates = net.op("Reshape", gates, net.constant([4, channels, 1, 1], dtype=np.int64))
        gate = net.op("Gather", gates, net.constant(1, dtype=np.int64), axis=0)
        mixed = conv(3, dw=True)(net, x)
        if form == "difference":
            return net.add(x, net.op("Mul", gate, net.op("Sub", mixed, x)))
        rest = net.op("Sub", net.constant(1.0), gate)
        return net.add(net.op("Mul", rest, x), net.op("Mul", gate, mixed))

    return build


def _mixers() -> Iterator[Block]:
    """Yield depthwise convolutions inside residuals."""
    words = "RepMixer", "ml-fastvit, timm", "x + g*((BN(x) + BN(dw1) + BN(dwk)) - BN'(x)), g [C,1,1]"
    forms = {
        "3x3": rep_mixer(3, layer_scale),
        "3x3, scale first": rep_mixer(3, lambda net, x: net.scale(x, net.per_channel(x), first=True)),
        "3x3 without scale": rep_mixer(3, same),
    }
    yield from rows(words, CONV, forms)
    words = "Depthwise residual", "EfficientViT, TinyViT, SHViT", "x + BN(dwk x)"
    yield from rows(words, CONV, {f"{k}x{k}": total(same, conv(k, dw=True)) for k in (3, 5, 7)})
    words = "EfficientViM residual", "EfficientViM", "x + sigmoid(alpha)*(BN(dw3 x) - x)"
    forms = {"difference": vim("difference"), "convex combination": vim("combination")}
    yield from rows(words, CONV, forms, exact=False)
