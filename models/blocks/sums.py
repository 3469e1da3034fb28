"""Plain multi-branch sums: several convolutions, norms and identities of one value, added up.

A block is written with a few combinators: a branch, a sum of branches and a whole block are all of type ``Build``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from models.blocks.base import TINY_ODD_EVEN, Block, Build, chain, concat, image, same, total
from models.net import Net, Size

# -- steps ----------------------------------------------------------------------------------------------------------


def conv(
    kernel: Size,
    outputs: int | None = None,
    *,
    bn: bool = True,
    dw: bool = False,
    epsilon: float | None = None,
    **attributes: Any,
) -> Build:
    """Return Conv and BatchNormalization, or a Conv alone; ``dw`` makes one group per channel."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        group: dict[str, Any] = {"group": channels} if dw else {}
        if not bn:
            return net.conv(x, outputs or channels, kernel, **group, **attributes)
        if net.folded or epsilon is None:
            return net.conv_bn(x, outputs or channels, kernel, **group, **attributes)
        return net.bn(net.conv(x, outputs or channels, kernel, **group, **attributes), epsilon)

    return build


def alpha(value: float) -> Build:
    """Return a learnable factor of shape ``[1]``, as the first operand."""
    return lambda net, x: net.scale(x, [value], first=True)


def lab(factor: float, shift: float) -> Build:
    """Return a learnable affine block: scale and shift of shape ``[1]``."""
    return lambda net, x: net.op("Add", net.scale(x, [factor], first=True), net.constant([shift]))


def plus_zero(net: Net, x: str) -> str:
    """Add the 0 that stands for a missing branch in Python."""
    return net.op("Add", x, net.constant(0.0, as_node=True))


def scale_layer(net: Net, x: str) -> str:
    """Multiply by a parameter of shape ``[1, C, 1, 1]``."""
    return net.scale(x, net.draw(1, net.channels[x], 1, 1))


def layer_scale(net: Net, x: str) -> str:
    """Multiply by a parameter of shape ``[C, 1, 1]``."""
    return net.scale(x, net.per_channel(x))


def average(include_pad: bool) -> Build:
    """Return AveragePool of 3x3 with padding 1."""
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": int(include_pad)}
    return lambda net, x: net.op("AveragePool", x, **attributes)


def cut(axis: int, start: int, end: int, channels: int | None = None) -> Build:
    """Return a Slice of one axis."""

    def build(net: Net, x: str) -> str:
        bounds = [net.constant([v], dtype=np.int64) for v in (start, end, axis)]
        return net.op("Slice", x, *bounds, channels=channels)

    return build


def hard_gate(net: Net, x: str) -> str:
    """Add a squeeze-and-excitation gate with ReduceMean and HardSigmoid."""
    pooled = net.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    steps = chain(conv(1, 4, bn=False, bias=True), Net.relu, conv(1, net.channels[x], bn=False, bias=True))
    return net.op("Mul", x, net.op("HardSigmoid", steps(net, pooled)))


def hard_swish(net: Net, x: str) -> str:
    """Add a HardSwish."""
    return net.op("HardSwish", x)


IMAGE = image()
CONV = {"Conv": 1}
RELU = {"Relu": 1}
ADD = {"Add": 1}
SILU = {"Sigmoid": 1, "Mul": 1}
GELU = {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
SE = {"GlobalAveragePool": 1, "Conv": 2, "Relu": 1, "Sigmoid": 1, "Mul": 1}
HARD_SE = {"ReduceMean": 1, "Conv": 2, "Relu": 1, "HardSigmoid": 1, "Mul": 1}


def counts(*parts: Mapping[str, int], times: int = 1) -> dict[str, int]:
    """Return the sum of several counts, ``times`` times."""
    found: Counter[str] = Counter()
    for part in parts:
        found.update({op: times * n for op, n in part.items()})
    return dict(found)


def rows(
    words: tuple[str, str, str],
    left: Mapping[str, int],
    builds: Mapping[str, Build],
    *then: Build,
    shape: tuple[int | str, ...] = IMAGE,
    refused: tuple[str, ...] = (),
    sizes: tuple[int, ...] = TINY_ODD_EVEN,
    exact: bool = True,
) -> Iterator[Block]:
    """Yield variations of one system that leave the same; ``words`` are system, use and form, ``then`` follows each."""
    for variation, build in builds.items():
        whole = chain(build, *then)
        yield Block(*words, variation, whole, shape, left, frozenset(refused), sizes, exact)


CONV_RELU, CONV_SILU = counts(CONV, RELU), counts(CONV, SILU)


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    for section in (
        _repvgg,
        _quantization_aware,
        _yolo,
        _transformer_detectors,
        _large_kernels,
        _asymmetric,
        _other_ranks,
    ):
        yield from section()


# -- RepVGG and its kin ---------------------------------------------------------------------------------------------


def norm_as_affine(net: Net, x: str) -> str:
    """Write an identity's norm as Mul and Add of ``[1, C, 1, 1]``."""
    return net.op("Add", scale_layer(net, x), net.constant(net.draw(1, net.channels[x], 1, 1)))


def one_sum(net: Net, *values: str) -> str:
    """Join values by one Sum."""
    return net.op("Sum", *values)


def _repvgg() -> Iterator[Block]:
    """Yield RepVGG with its gates."""
    words = "RepVGG", "RepVGG, timm, EfficientLoFTR, RT-DETR", "BN(C3 s p1) + BN(C1 s) + [BN(x)]; Relu"
    forms = {
        "with identity": total(conv(3), conv(1), Net.bn),
        "without identity, stride 2": total(conv(3, 16, stride=2), conv(1, 16, stride=2)),
        "with identity, 4 groups": total(Net.bn, conv(3, group=4), conv(1, group=4)),
        "2 groups, stride 2": total(conv(3, 16, stride=2, group=2), conv(1, 16, stride=2, group=2)),
        "branches joined by one Sum": total(conv(3), conv(1), Net.bn, join=one_sum),
        "identity as Mul and Add": total(norm_as_affine, conv(1), conv(3)),
    }
    yield from rows(words, CONV_RELU, forms, Net.relu)
    words = "RepVGG-D2se, RepVGGplus", "RepVGG, timm", "BN(C3 s p1) + BN(C1 s) + [BN(x)]; SE and Relu"
    tree = total(conv(3), conv(1), Net.bn)
    gated = {
        "SE before Relu": chain(tree, Net.squeeze_excite, Net.relu),
        "SE after Relu": chain(tree, Net.relu, Net.squeeze_excite),
    }
    yield from rows(words, counts(CONV_RELU, SE), gated, exact=False)


def _quantization_aware() -> Iterator[Block]:
    """Yield the blocks with a norm, or scales, of their own around the sum."""
    words = "QARepVGG V1 and V2", "YOLOv6, QARepVGG", "BN(BN(C3) + C1 + [x] + [AP3 p1]); Relu"
    plain = conv(1, bn=False)
    first = {
        "V1 with identity": total(conv(3), plain, same),
        "V1 without identity, stride 2": total(conv(3, 16, stride=2), conv(1, 16, stride=2, bn=False)),
        "V1 with identity, 2 groups": total(conv(3, group=2), conv(1, group=2, bn=False), same),
    }
    yield from rows(words, CONV_RELU, first, Net.bn, Net.relu)
    second = {"V2": total(conv(3), plain, same, average(True))}
    yield from rows(words, CONV_RELU, second, Net.bn, Net.relu, exact=False)
    third = {"V2, average of real pixels only": total(conv(3), plain, same, average(False))}
    left = counts(CONV_RELU, {"AveragePool": 1, "Mul": 1, "Add": 1})
    yield from rows(words, left, third, Net.bn, Net.relu, refused=("pool",), exact=False)

    words = "YOLO-NAS QARepVGG", "super-gradients", "BN(BN(C3 p=d) + alpha*(C1+b) + [x]); Relu; [SE]"
    small = conv(1, bn=False, bias=True)
    usual = total(conv(3), chain(small, alpha(0.75)), same)
    forms = {
        "alpha 0.75 with identity": usual,
        "alpha 0 with identity": total(conv(3), chain(small, alpha(0.0)), same),
        "alpha -1.5 without identity, plus 0": total(conv(3), chain(small, alpha(-1.5)), join=_add_and_zero),
        "no alpha, dilation 2": total(conv(3, dilation=2), small, same),
    }
    yield from rows(words, CONV_RELU, forms, Net.bn, Net.relu)
    gated = {"SE after Relu": chain(usual, Net.bn, Net.relu, Net.squeeze_excite)}
    yield from rows(words, counts(CONV_RELU, SE), gated, exact=False)
    hard = {"SE with HardSigmoid": chain(usual, Net.bn, Net.relu, hard_gate)}
    yield from rows(words, counts(CONV_RELU, HARD_SE), hard, exact=False)

    words = "LinearAddBlock", "RepOptimizer, YOLOv6", "BN(s3*C3 + s1*C1 + [s0*x]); Relu"
    big, tiny = chain(conv(3, bn=False), scale_layer), chain(plain, scale_layer)
    down = [chain(conv(k, 16, bn=False, stride=2), scale_layer) for k in (3, 1)]
    fourth = {
        "with identity": total(big, tiny, scale_layer),
        "without identity, stride 2": total(*down),
        "scale layers with shifts": total(big, chain(plain, norm_as_affine), norm_as_affine),
    }
    yield from rows(words, CONV_RELU, fourth, Net.bn, Net.relu)


def _add_and_zero(net: Net, *values: str) -> str:
    """Add values, and a 0 for a missing branch."""
    return plus_zero(net, net.add(*values))


# -- detectors ------------------------------------------------------------------------------------------------------


def unit(kernel: int, outputs: int | None = None, dw: bool = False) -> Build:
    """Return Conv, BatchNormalization, SiLU."""
    return chain(conv(kernel, outputs, dw=dw), Net.silu)


def elan(stage: Build) -> Build:
    """Return an ELAN of two stages on the second half of 16 channels."""

    def build(net: Net, x: str) -> str:
        x = unit(1, 16)(net, x)
        values = [cut(1, 0, 8, 8)(net, x), cut(1, 8, 16, 8)(net, x)]
        for _ in range(2):
            values.append(chain(stage, unit(3))(net, values[-1]))
        return unit(1, 8)(net, net.op("Concat", *values, axis=1, channels=32))

    return build


def _yolo() -> Iterator[Block]:
    """Yield the blocks of the YOLO families."""
    pair = total(conv(3), conv(1))
    words = "YOLOv7 RepConv", "WongKinYiu/yolov7", "BN(C3 s p1) + BN(C1 s) + [BN(x)]; SiLU"
    seventh = {
        "with identity": total(conv(3), conv(1), Net.bn),
        "stride 2, plus 0": total(conv(3, 16, stride=2), conv(1, 16, stride=2), join=_add_and_zero),
        "2 groups with identity": total(conv(3, group=2), conv(1, group=2), Net.bn),
    }
    yield from rows(words, CONV_SILU, seventh, Net.silu, exact=False)

    words = "YOLOv9 RepConvN, ultralytics RepConv", "YOLOv9, ultralytics", "BN(C3) + BN(C1) + [BN(x)]; SiLU"
    ninth = {"two branches": pair, "plus 0": total(conv(3), conv(1), join=_add_and_zero)}
    yield from rows(words, CONV_SILU, ninth, Net.silu, exact=False)
    words = "RepNCSPELAN4", "YOLOv9", "C1; split; 2 (RepNCSP; C3); Concat; C1"
    bottleneck = total(same, chain(pair, Net.silu, unit(3)))
    csp = chain(concat(chain(unit(1), bottleneck), unit(1)), unit(1, 8))
    left = counts(counts(CONV_SILU, times=14), {"Slice": 2, "Concat": 3, "Add": 2})
    yield from rows(words, left, {"one bottleneck per stage": elan(csp)}, exact=False)

    words = "Conv2", "ultralytics", "BN(C3 s + C1 s); SiLU"
    bare = {
        "stride 1": total(conv(3, bn=False), conv(1, bn=False)),
        "stride 2, 4 groups": total(*[conv(k, 16, bn=False, stride=2, group=4) for k in (3, 1)]),
    }
    yield from rows(words, CONV_SILU, bare, Net.bn, Net.silu, exact=False)

    words = "RepVGGDW of YOLOv10", "ultralytics CIB", "BN(dw7 p3) + BN(dw3 p1); SiLU"
    wide = chain(total(conv(7, dw=True), conv(3, dw=True)), Net.silu)
    yield from rows(words, CONV_SILU, {"alone": wide}, exact=False)
    inner = chain(unit(3, dw=True), unit(1, 16), wide, unit(1, 8), unit(3, dw=True))
    left = counts(counts(CONV_SILU, times=5), ADD)
    yield from rows(words, left, {"in a CIB": total(same, inner)}, exact=False)

    words = "mmyolo RepVGGBlock", "mmyolo, DAMO-YOLO, Gold-YOLO", "BN(C3) + [alpha*]BN(C1) + [BN(x)]; Relu"
    big, small = conv(3, epsilon=1e-3), conv(1, epsilon=1e-3)
    forms = {
        "with identity, epsilon 1e-3": total(big, small, lambda net, x: net.bn(x, 1e-3)),
        "alpha first, plus 0": total(big, chain(small, alpha(0.5)), join=_add_and_zero),
        "alpha first with identity": total(big, chain(small, alpha(-1.0)), Net.bn),
    }
    yield from rows(words, CONV_RELU, forms, Net.relu)


def _transformer_detectors() -> Iterator[Block]:
    """Yield RT-DETR's block, alone and inside its layers."""
    words = "RepVggBlock of RT-DETR", "RT-DETR, D-FINE, DEIM, LW-DETR, RF-DETR", "BN(C3) + BN(C1); SiLU"
    rep = chain(total(conv(3), conv(1)), Net.silu)
    yield from rows(words, CONV_SILU, {"SiLU": rep}, exact=False)
    layer = chain(total(chain(unit(1), rep, rep, rep), unit(1)), unit(1, 16))
    words = "CSPRepLayer", "RT-DETR, LW-DETR", "C1; 3 (BN(C3) + BN(C1); SiLU), plus C1; C1"
    yield from rows(words, counts(counts(CONV_SILU, times=6), ADD), {"three blocks": layer}, exact=False)
    words = "RepNCSPELAN4 of D-FINE", "D-FINE, DEIM", "C1; split; 2 (CSP of RepVggBlock; C3); Concat; C1"
    small = total(chain(unit(1), rep), unit(1))
    left = counts(counts(CONV_SILU, times=10), {"Slice": 2, "Concat": 1, "Add": 2})
    yield from rows(words, left, {"one block per stage": elan(small)}, exact=False)


# -- large and uneven kernels, other ranks ----------------------------------------------------------------------------


_DILATED = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    5: ((3, 1), (3, 2)),
}
"""UniRepLKNet: size of the large kernel -> (size, dilation) of the others."""


def _large_kernels() -> Iterator[Block]:
    """Yield large kernels with small ones beside them."""
    words = "RepLKNet", "RepLKNet-pytorch, mmpretrain", "BN(dwCK) + BN(dwC5); Relu"
    for size in (13, 31):
        large = chain(total(conv(size, dw=True), conv(5, dw=True)), Net.relu)
        yield from rows(words, CONV_RELU, {f"{size}x{size}": large})
    block = total(same, chain(Net.bn, conv(1, 16), Net.relu, large, conv(1, 8)))
    left = counts(CONV, CONV, CONV, RELU, RELU, ADD)
    yield from rows(words, left, {"whole block, norm before the first 1x1": block}, exact=False)

    words = "FastViT large kernel", "ml-fastvit, timm", "BN(C7 s2 g=Ci) + BN(C3 s2 g=Ci), Co = 2Ci; GELU"
    embed = chain(total(*[conv(k, 16, dw=True, stride=2) for k in (7, 3)]), Net.gelu)
    two = chain(embed, total(Net.bn, conv(1)), Net.gelu)
    left = counts(CONV, GELU, CONV, GELU)
    yield from rows(words, left, {"patch embedding, then MobileOne 1x1": two}, exact=False)

    words = "UniRepLKNet dilated re-param", "UniRepLKNet", "BN(BN(dwK) + sum of BN(dw k_i d_i))"
    forms = {
        f"{size}x{size}": chain(total(conv(size, dw=True), *[conv(k, dw=True, dilation=d) for k, d in rest]), Net.bn)
        for size, rest in _DILATED.items()
    }
    yield from rows(words, CONV, forms)
    gated = chain(forms["13x13"], Net.squeeze_excite)
    yield from rows(words, counts(CONV, SE), {"13x13 with SE": gated}, exact=False)

    words = "SLaK", "VITA-Group/SLaK", "BN(dwKx5) + BN(dw5xK) + BN(dw5x5)"
    stripes = total(*[conv(k, dw=True) for k in ((51, 5), (5, 51), 5)])
    yield from rows(words, counts(CONV, CONV, ADD), {"stripes of 51": stripes}, refused=("price",))
    stripes = total(*[conv(k, dw=True) for k in ((7, 5), (5, 7), 5)])
    yield from rows(words, CONV, {"stripes so short that all merge": stripes})


def acb(size: int, padding: int, outputs: int | None = None, **attributes: Any) -> Build:
    """Return ACNet's block; with a padding below k//2 the flat kernels read a crop."""
    margin = padding - size // 2
    across, along = max(margin, 0), padding
    tall = conv((size, 1), outputs, pads=[along, across] * 2, **attributes)
    flat = conv((1, size), outputs, pads=[across, along] * 2, **attributes)
    if margin < 0:
        tall, flat = chain(cut(3, -margin, margin), tall), chain(cut(2, -margin, margin), flat)
    return total(conv(size, outputs, pads=padding, **attributes), tall, flat)


def _asymmetric() -> Iterator[Block]:
    """Yield sums of square, tall and flat kernels."""
    words = "ACNet block", "DingXiaoH/ACNet", "BN(CKxK) + BN(CKx1) + BN(C1xK)"
    forms = {
        "3x3, padding 1": acb(3, 1),
        "5x5, padding 2, 2 groups": acb(5, 2, group=2),
        "3x3, padding 1, stride 2": acb(3, 1, 16, stride=2),
        "3x3, padding 2": acb(3, 2),
        "3x3, no padding: crop": acb(3, 0),
        "5x5, padding 1, stride 2: crop": acb(5, 1, 16, stride=2),
    }
    for variation, build in forms.items():
        sizes = (3, 4, 5, 8) if "crop" in variation else TINY_ODD_EVEN
        yield from rows(words, CONV, {variation: build}, sizes=sizes)

    words = "TextNet", "transformers (TextNet, FAST)", "BN(C(h,w)) + BN(C(h,1)) + BN(C(1,w)) + [BN(x)]; Relu"
    forms = {
        "3x3 with identity": total(conv(3), conv((3, 1)), conv((1, 3)), Net.bn),
        "3x3, stride 2": total(*[conv(k, 16, stride=2) for k in (3, (3, 1), (1, 3))]),
        "1x3 with identity": total(conv((1, 3)), conv(1), Net.bn),
    }
    yield from rows(words, CONV_RELU, forms, Net.relu)


def _other_ranks() -> Iterator[Block]:
    """Yield RepVGG in one and three dimensions."""
    words = "RepVGG 1-D", "VITS-style models, time series", "BN(C3) + BN(C1) + [BN(x)]; or n BN(Ck); Relu"
    forms = {
        "with identity": total(conv(3), conv(1), Net.bn),
        "stride 2, 2 groups": total(*[conv(k, 16, stride=2, group=2) for k in (3, 1)]),
        "three equal branches of 5": total(*[conv(5)] * 3),
        "dilation 2, depthwise, identity": total(conv(3, dilation=2, dw=True), conv(1, dw=True), same),
    }
    yield from rows(words, CONV_RELU, forms, Net.relu, shape=image(8, 1))
    words = "RepVGG 3-D", "RepSPK and others", "BN(C(1,3,3) d=(1,d,d)) + BN(C1) + [BN(x)]; Relu"
    forms = {
        "1x3x3 with identity": total(conv((1, 3, 3)), conv(1), Net.bn),
        "1x3x3, dilation (1, 2, 2)": total(conv((1, 3, 3), dilation=(1, 2, 2)), conv(1), Net.bn),
        "3x3x3, stride 2": total(conv(3, 16, stride=2), conv(1, 16, stride=2)),
        "3x3x3 + 1x3x3 + 3x1x1, depthwise": total(*[conv(k, dw=True) for k in (3, (1, 3, 3), (3, 1, 1))], same),
    }
    yield from rows(words, CONV_RELU, forms, Net.relu, shape=image(8, 3))
