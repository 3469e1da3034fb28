"""Blocks that look foldable and are not, and blocks that a careless fold gets wrong."""

from __future__ import annotations

from collections.abc import Iterator

from models.blocks.base import Block, Build, chain, concat, same, total
from models.blocks.tokens import (
    LINE,
    WIDTH,
    Row,
    bn,
    conv,
    conv_bn,
    conv_transpose,
    crop,
    depthwise,
    family,
    gelu,
    mul,
    op,
    pad,
    product,
    relu,
    shift,
    silu,
)
from models.net import Net

_THREE, _ONE = conv_bn(None, 3), conv_bn(None, 1)
_REP = chain(total(_THREE, _ONE), relu)
_CONV = {"Conv": 1}
_SUM = {"Conv": 2, "Add": 1}
_GELU = {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    yield from _activated_residuals()
    yield from _sequences()
    yield from _data_dependent()
    yield from _aligned()
    yield from _not_aligned()
    yield from _borders()
    yield from _groups()
    yield from _scales()
    yield from _readers()
    yield from _two_inputs()
    yield from _loose_scales()


# -- look foldable, are not -------------------------------------------------------------------------------------------


def csp(net: Net, x: str) -> str:
    """Add RT-DETR's CSPRepLayer: two activated paths."""
    first = chain(conv_bn(None, 1), relu, _REP, _REP)(net, x)
    return net.add(first, chain(conv_bn(None, 1), relu)(net, x))


def _activated_residuals() -> Iterator[Block]:
    """Yield sums one of whose branches ends in an activation."""
    body, form = chain(_REP, _REP), "alpha*x + f(x), x1 + x2; f ends in an activation"
    two, three = {"Conv": 2, "Relu": 2, "Add": 1}, {"Conv": 3, "LeakyRelu": 3, "Add": 1}
    zero = total(mul([0.0], first=True), body)
    rows = [
        ("BottleRep", "YOLOv6", Row("alpha", total(body, mul([0.5], first=True)), {**two, "Mul": 1})),
        ("BottleRep", "YOLOv6", Row("no alpha", total(body, same), two)),
        ("YoloNASBottleneck", "super-gradients", Row("alpha 0", zero, {**two, "Mul": 1})),
        ("CSPRepLayer", "RT-DETR, D-FINE", Row("two RepVGG blocks", csp, {"Conv": 4, "Relu": 4, "Add": 1})),
        ("RMNet", "RMNet, ResRep", Row("residual", total(same, chain(_THREE, relu, _THREE)), {**_SUM, "Relu": 1})),
        ("LeYOLO", "LeYOLO, MobileNetV2", Row("inverted residual", _inverted, {"Conv": 3, "Relu": 2, "Add": 1})),
        ("RLFN", "super-resolution", Row("three activated 3x3", total(_rlfn, same), three)),
    ]
    for system, used, row in rows:
        yield from family(system, used, form, [row])


def _inverted(net: Net, x: str) -> str:
    """Add an inverted residual block."""
    return net.add(x, chain(conv_bn(16, 1), relu, depthwise(3), relu, conv_bn(WIDTH, 1))(net, x))


def _rlfn(net: Net, x: str) -> str:
    """Add RLFN's three convolutions, each with its activation."""
    for _ in range(3):
        x = net.op("LeakyRelu", net.conv(x, WIDTH, 3, bias=True), alpha=0.5)
    return x


def _sequences() -> Iterator[Block]:
    """Yield convolutions in a row, and norms in front of padded ones."""
    border = ("border",)
    short = chain(_ONE, depthwise((1, 5)), depthwise((5, 1)))
    rows = [
        Row("dense 1x1, depthwise 3x3 with stride", chain(_ONE, depthwise(3, stride=2)), {"Conv": 2}),
        Row("depthwise 1x1 and 3x3", chain(depthwise(1), depthwise(3)), {"Add": 1, "Conv": 1}, border),
        Row("GhostNetV3's 1x1, 1x5, 5x1", short, {"Conv": 3}),
    ]
    yield from family("SCDown, GhostNetV3 short conv", "YOLOv10, D-FINE, GhostNetV3", "BN(C1);BN(dwk s p)", rows)
    norm = {"BatchNormalization": 1, "Conv": 1}
    behind, front = chain(bn, total(_THREE, _ONE, same)), total(same, chain(bn, total(_THREE, _ONE)))
    rows = [
        Row("identity behind the norm", behind, norm, border),
        Row("identity in front of the norm", front, {**norm, "Add": 1}, border),
    ]
    yield from family("CS-Rep Rep-TDNN", "speaker verification", "BN; C1d k3 p1 + C1d k1 + x", rows, shape=LINE)
    feed = chain(depthwise(7), conv(32, 1, bias=True), gelu, conv(WIDTH, 1, bias=True))
    rows = [Row("dw into dense does not pay", feed, {"Conv": 3, **_GELU})]
    yield from family("FastViT ConvFFN", "FastViT", "BN(dw7);1x1;GELU;1x1", rows, exact=False)


def star(net: Net, x: str) -> str:
    """Add StarNet's block: the product of two branches."""
    value = depthwise(7)(net, x)
    gate = net.op("Clip", net.conv(value, 16, 1, bias=True), net.constant(0.0), net.constant(6.0))
    value = net.op("Mul", gate, net.conv(value, 16, 1, bias=True))
    return net.add(x, chain(conv_bn(WIDTH, 1), depthwise(7))(net, value))


def gated_lora(net: Net, x: str) -> str:
    """Add Conv-LoRA's expert: a low-rank branch whose scale is computed from the input."""
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", x), 1, 1, bias=True))
    low = chain(conv(2, 3), conv(WIDTH, 1))(net, x)
    return net.add(net.conv(x, WIDTH, 3, bias=True), net.op("Mul", low, gate))


def excited(net: Net, x: str) -> str:
    """Add a squeeze-and-excitation on one of two branches."""
    return net.add(net.squeeze_excite(_THREE(net, x)), _ONE(net, x))


def dual_path(net: Net, x: str) -> str:
    """Add a block that weighs two convolutions by a softmax over the channels of their sum."""
    first, second = _THREE(net, x), _ONE(net, x)
    gate = net.op("Softmax", net.op("GlobalAveragePool", net.add(first, second)), axis=1)
    return net.add(net.op("Mul", first, gate), net.op("Mul", second, gate))


def _data_dependent() -> Iterator[Block]:
    """Yield products of two data tensors, and activations between."""
    left = {"Conv": 5, "Clip": 1, "Mul": 1, "Add": 1}
    yield from family("StarNet", "StarNet (timm)", "relu6(f1 x) * (f2 x)", [Row("block", star, left)])
    rows = [
        ("Conv-LoRA with gating", "Conv-LoRA (SAM)", Row("C3 + gate(x)*(C3;C1)", gated_lora, _gated("Sigmoid", 4, 1))),
        ("Selective kernels", "SKNet", Row("g*C3 + g*C1", dual_path, {**_gated("Softmax", 2, 2), "Mul": 2})),
        (
            "SE gate beside a branch",
            "RepVGG-D2se",
            Row("SE(BN(C3)) + BN(C1)", excited, {**_gated("Sigmoid", 4, 1), "Relu": 1}),
        ),
    ]
    for system, used, row in rows:
        yield from family(system, used, "product with a gate computed from data", [row], exact=False)
    body = chain(concat(chain(_ONE, relu, _REP), chain(_ONE, relu)), conv_bn(WIDTH, 1))
    rows_ = [Row("activations between", body, {"Conv": 4, "Relu": 3, "Concat": 1})]
    yield from family("BepC3", "YOLOv6", "C1(Concat(f(x), act(C1 x)))", rows_)


def _gated(gate: str, convs: int, sums: int) -> dict[str, int]:
    """Return what is left of a block with a gate."""
    return {"GlobalAveragePool": 1, "Conv": convs, gate: 1, "Mul": 1, "Add": sums}


# -- sums: sizes and places -------------------------------------------------------------------------------------------


def _aligned() -> Iterator[Block]:
    """Yield sums whose pads are unusual and that fold nevertheless, at the right place of the kernel."""
    rows = [
        Row("1x1 with pads 1, 3x3 with pads 2", total(conv(None, 1, pads=1), conv(None, 3, pads=2)), _CONV),
        Row("cropped 1x1, 3x3 without pads", total(chain(conv(None, 1), _crop), conv(None, 3, pads=0)), _CONV),
        Row("3x3 padded at the end only", total(conv(None, 3, pads=[0, 0, 2, 2]), conv(None, 1)), _CONV),
        Row("3x3 padded differently per axis", total(conv(None, 3, pads=[2, 0, 0, 2]), bn), _CONV),
        Row("2x2 padded at the beginning", total(conv(None, 2, pads=[1, 1, 0, 0]), conv(None, 1), same), _CONV),
        Row("2x2 padded at the end", total(conv(None, 2, pads=[0, 0, 1, 1]), conv(None, 1), bn), _CONV),
        Row("4x4, centre left of the middle", total(conv(None, 4, pads=[1, 1, 2, 2]), conv(None, 1)), _CONV),
        Row("SAME_UPPER, even kernel", total(conv(None, 2, auto_pad="SAME_UPPER"), conv(None, 1)), _CONV),
        Row("SAME_LOWER, even kernel", total(conv(None, 2, auto_pad="SAME_LOWER"), same), _CONV),
    ]
    yield from family("Unusual pads", "converted models", "Ck + C1 + [x]", rows, sizes=(3, 4, 5, 8))
    system, used, form = "SAME with stride", "TensorFlow exports", "C3 s2 + C1 s2"
    stepped = total(conv(None, 3, stride=2, auto_pad="SAME_UPPER"), conv(None, 1, stride=2))
    for size in (7, 8):
        rows = [Row(f"static size {size}", stepped, _CONV)]
        yield from family(system, used, form, rows, shape=("batch", WIDTH, size, size))
    yield from family(system, used, form, [Row("unknown size", stepped, _SUM, ("not-aligned",))])


_crop = crop(1, -1, 1, (2, 3))


def _not_aligned() -> Iterator[Block]:
    """Yield sums that are legal for some sizes only, or by broadcasting."""
    system, used, form = "Sums of different grids", "shortcuts, converted models", "f1 + f2 of other stride or size"
    pool = op("AveragePool", kernel_shape=[2], strides=[2])
    wide, bare, odd = conv(None, 3), conv(None, 3, pads=0), conv(None, 3, stride=2)
    why, pooled = ("broadcast",), {**_SUM, "AveragePool": 1}
    rows = [
        Row("AP2 s2 beside C3 s2", total(odd, pool), {**pooled, "Conv": 1}, why),
        Row("AP2 s2, 1x1 beside C3 s2", total(odd, chain(pool, conv(None, 1))), pooled),
        Row("2x2 s2 beside 3x3 s2", total(odd, conv(None, 2, stride=2, pads=0)), _SUM, why),
    ]
    yield from family(system, used, form, rows, shape=LINE, sizes=(2, 4, 6, 8))
    rows = [
        Row("3x3 with and without pads on 3 pixels", total(wide, bare), _SUM, why),
        Row("1x1 beside an unpadded 3x3 on 3 pixels", total(conv(None, 1), bare), _SUM, why),
        Row("stride 1 beside stride 3 on 3 pixels", total(wide, conv(None, 1, stride=3)), _SUM, why),
    ]
    yield from family(system, used, form, rows, shape=LINE, sizes=(3,))
    rows = [Row("static 3x3 input", total(wide, bare), _SUM, why)]
    yield from family(system, used, form, rows, shape=("batch", WIDTH, 3, 3))


def _borders() -> Iterator[Block]:
    """Yield shifts in front of padding, and padding with something else than zero."""
    border = ("border",)
    biased = chain(conv(None, 1, bias=True), conv(None, 3))
    lab = chain(relu, mul([2.0]), shift())
    average = op("AveragePool", kernel_shape=[3, 3], pads=[1] * 4)
    included = op("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    ones = chain(pad(1, 1, 1, 1, value=1.0), conv(None, 3, pads=0))
    yield from family(
        "Shift in front of padding",
        "pre-norm and YOLOv7-like code",
        "t + x; Ck with zero padding",
        [
            Row("BN", chain(bn, _THREE), {"BatchNormalization": 1, "Conv": 1}, border),
            Row("1x1 with bias", biased, {"Conv": 2}, border),
            Row("1x1 with bias, beside a 3x3", total(biased, conv(None, 3)), {"Conv": 3, "Add": 1}, border),
            Row("summand per channel", chain(shift(), _THREE), {"Add": 1, "Conv": 1}, border),
            Row("LAB with a summand per channel", chain(lab, _THREE), {"Relu": 1, "Add": 1, "Conv": 1}, border),
            Row("1x1 with bias before a ConvTranspose", _before_transpose, {"Conv": 1, "ConvTranspose": 1}, border),
        ],
    )
    yield from family(
        "Padding with real pixels or values",
        "Paddle and style-transfer models",
        "Pad or AP in front of or beside a Conv",
        [
            Row(
                "AP3 that counts real pixels", total(average, _THREE), {"AveragePool": 1, **_CONV, "Add": 1}, ("pool",)
            ),
            Row(
                "AP3 that counts real pixels, behind a 1x1",
                total(chain(conv(None, 1), average), _THREE),
                {"AveragePool": 1, **_SUM},
                ("pool",),
            ),
            Row("AP3 that counts the padding", total(included, _THREE), _CONV),
            Row(
                "reflected border",
                total(chain(pad(1, 1, 1, 1, mode="reflect"), conv(None, 3, pads=0)), _ONE),
                {"Pad": 1, **_SUM},
            ),
            Row("border of ones", total(ones, _ONE), {"Pad": 1, **_SUM}, border),
            Row("border of zeros", total(chain(pad(1, 1, 1, 1), conv(None, 3, pads=0)), _ONE), _CONV),
        ],
        sizes=(2, 3, 5, 8),
        exact=False,
    )


def _before_transpose(net: Net, x: str) -> str:
    """Add a 1x1 with bias and a ConvTranspose whose windows overlap."""
    return conv_transpose(WIDTH, 4, 2, 1)(net, net.conv(x, WIDTH, 1, bias=True))


# -- groups, scales, readers -------------------------------------------------------------------------------------------


def _groups() -> Iterator[Block]:
    """Yield groups."""
    apart = ("price",)
    yield from family(
        "Groups",
        "RepVGG-g4, ResNeXt-like blocks",
        "BN(C3 g) + BN(C1 g') + BN(x)",
        [
            Row("identity in 2 groups", total(conv_bn(None, 3, group=2), bn), _CONV),
            Row("raw identity in 4 groups", total(conv_bn(None, 3, group=4), same), _CONV),
            Row("3x3 in 2, 1x1 in 4 groups", total(conv_bn(None, 3, group=2), conv_bn(None, 1, group=4)), _CONV),
            Row("3x3 in 4, 1x1 in 2 groups", total(conv_bn(None, 3, group=4), conv_bn(None, 1, group=2)), _SUM, apart),
            Row("depthwise 3x3, dense 1x1", total(depthwise(3), conv_bn(None, 1)), _SUM, apart),
            Row("dense 3x3, depthwise 3x3", total(conv_bn(None, 3), depthwise(3)), _CONV),
        ],
    )


def _scales() -> Iterator[Block]:
    """Yield constants that are no scale per channel, and a scale of zero."""
    vector = [1.0, 2.0, -1.0, 0.5, 3.0, -2.0, 1.0, 4.0]
    sized = ("batch", WIDTH, 5, WIDTH)
    per_pixel = [[vector[(i + j) % 8] for j in range(8)] for i in range(5)]
    wrong = ("not-per-channel",)
    system, used, form = "Constants beside a sum", "hand-written layers", "v*BN(C3) + BN(C1)"
    yield from family(
        system,
        used,
        form,
        [
            Row("factor [C] lies along the width", total(chain(_THREE, mul(vector)), _ONE), {**_SUM, "Mul": 1}, wrong),
            Row(
                "summand [C] lies along the width",
                total(chain(_THREE, shift(vector)), _ONE),
                {"Conv": 2, "Add": 2},
                wrong,
            ),
            Row("factor per pixel", total(chain(_THREE, mul(per_pixel)), _ONE), {**_SUM, "Mul": 1}, wrong),
        ],
        shape=sized,
    )
    zero = total(_THREE, chain(_ONE, mul([0.0], first=True)))
    yield from family(
        system,
        used,
        form,
        [
            Row("alpha 0", zero, _CONV),
            Row("alpha 0 and identity", total(zero, bn), _CONV),
            Row("everything times 0", chain(total(_THREE, _ONE), mul([0.0])), _CONV),
        ],
    )


def _read_twice(net: Net, x: str) -> str:
    """Add a sum one of whose branches is read elsewhere."""
    branch = _THREE(net, x)
    return net.op("Mul", net.add(branch, _ONE(net, x)), net.relu(branch))


def _norm_beside(net: Net, x: str) -> str:
    """Add a BatchNormalization on a convolution that is read elsewhere."""
    value = net.conv(x, WIDTH, 3)
    return net.op("Mul", net.bn(value), net.relu(value))


def _shared_weight(net: Net, x: str) -> str:
    """Add a RepVGG block whose 3x3 weight a later convolution uses too."""
    weight = net.constant(net.draw(WIDTH, WIDTH, 3, 3))
    pads = [1, 1, 1, 1]
    value = net.relu(net.add(net.op("Conv", x, weight, pads=pads), net.conv(x, WIDTH, 1)))
    return net.op("Conv", value, weight, pads=pads)


def _readers() -> Iterator[Block]:
    """Yield values and weights that something else needs."""
    other = ("other-reader",)
    yield from family(
        "Values and weights with other readers",
        "any graph",
        "a = BN(C3); (a + BN(C1)) * act(a)",
        [
            Row("branch is read elsewhere", _read_twice, {**_SUM, "Relu": 1, "Mul": 1}, other),
            Row(
                "norm on a Conv with two readers",
                _norm_beside,
                {**_CONV, "BatchNormalization": 1, "Relu": 1, "Mul": 1},
                other,
            ),
            Row("shared weight", _shared_weight, {"Conv": 2, "Relu": 1}),
        ],
    )


def _sources(net: Net, x: str) -> tuple[str, str]:
    """Add two different values."""
    return net.relu(x), net.relu(net.op("Neg", x))


def two_inputs(first: Build, second: Build) -> Build:
    """Return BN over the sum of two convolutions of different inputs."""

    def build(net: Net, x: str) -> str:
        left, right = _sources(net, x)
        return net.bn(net.add(first(net, left), second(net, right)))

    return build


def _two_inputs() -> Iterator[Block]:
    """Yield norms over a sum of two inputs: the shift is added once."""
    left = {"Relu": 2, "Neg": 1, "Conv": 2, "Add": 1}
    yield from family(
        "BN over the sum of two inputs",
        "NextViT, feature pyramids",
        "BN(C x + C y)",
        [
            Row("1x1 and 3x3", two_inputs(conv(None, 1), conv(None, 3)), left),
            Row("1x1 and 1x1 with biases", two_inputs(*(conv(None, 1, bias=True),) * 2), left),
            Row("RepVGG sum and 1x1", two_inputs(total(_THREE, _ONE), conv(None, 1)), left),
        ],
    )


def _loose_scales() -> Iterator[Block]:
    """Yield scales that no convolution can take over."""
    system, used, form = "Scales without a Conv", "ConvNeXt, ViT", "x + g*f(x), x/sqrt(2)"
    scaled = total(chain(relu, mul()), same)
    yield from family(
        system,
        used,
        form,
        [
            Row("layer scale behind an activation", scaled, {"Relu": 1, "Mul": 1, "Add": 1}),
            Row("BN in front of an activation", chain(bn, relu), {"BatchNormalization": 1, "Relu": 1}),
            Row(
                "product of two branches",
                product(chain(bn, relu), mul()),
                {"BatchNormalization": 1, "Relu": 1, "Mul": 2},
            ),
            Row("layer scale behind a Conv", total(same, chain(_ONE, relu, _ONE, mul())), {**_SUM, "Relu": 1}),
        ],
    )
    yield from family(
        system,
        used,
        form,
        [
            Row("GELU alone", gelu, _GELU),
            Row("GELU behind a Conv", chain(_THREE, gelu), {**_GELU, "Conv": 1}),
            Row("GELU between 1x1 Convs", chain(_ONE, gelu, _ONE), {**_GELU, "Conv": 2}),
            Row("SiLU between RepVGG blocks", chain(_REP, _ONE, silu), {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Mul": 1}),
        ],
        exact=False,
    )
