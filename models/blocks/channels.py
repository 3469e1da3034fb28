"""Blocks that cut, join or shuffle channels, scale behind an activation, work on partitions, or transpose a Conv."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from models.blocks.base import Block, Build, chain, concat, image, joined, same, total
from models.blocks.tokens import (
    WIDTH,
    Row,
    bn,
    chunks,
    conv,
    conv_bn,
    conv_transpose,
    depthwise,
    family,
    gemm,
    matmul,
    mul,
    pad,
    relu,
    shaped,
    shift,
    shuffle,
    slices,
    split,
    turn,
)
from models.net import Net

_ONE = {"Conv": 1}
_UP = {"ConvTranspose": 1}


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    yield from _lora_of_images()
    yield from _implicit()
    yield from _lab()
    yield from _rep_mlp()
    yield from _concat()
    yield from _split()
    yield from _shuffle()
    yield from _conv_transpose()
    yield from _chained_transpose()


# -- adapters and implicit knowledge --------------------------------------------------------------------------------


def _lora_of_images() -> Iterator[Block]:
    """Yield LoRA of convolutions as PEFT writes it: A has the kernel, B is pointwise."""
    rows = [
        Row("1x1", total(conv(None, 1), chain(conv(2, 1), conv(WIDTH, 1), mul(0.5))), {"Conv": 1}),
        Row("3x3", total(conv(None, 3, bias=True), chain(conv(2, 3), conv(WIDTH, 1), mul(0.5))), {"Conv": 1}),
        Row(
            "3x3, stride 2",
            total(conv(16, 3, stride=2), chain(conv(2, 3, stride=2), conv(16, 1), mul(0.5))),
            {"Conv": 1},
        ),
    ]
    yield from family("LoRA on Conv", "loralib, PEFT", "Ck + s*(Ck;C1)", rows)


def _implicit() -> Iterator[Block]:
    """Yield YOLOv7's implicit knowledge."""
    one = {"Conv": 1}
    yield from family(
        "YOLOv7 ImplicitA / ImplicitM",
        "YOLOv7 heads",
        "im*(C1(x + ia) + b)",
        [
            Row("both", chain(shift(), conv(16, 1, bias=True), mul()), one),
            Row("constants first", chain(shift(first=True), conv(16, 1, bias=True), mul(first=True)), one),
            Row("ImplicitA alone", chain(shift(), conv(16, 1)), one),
            Row("ImplicitM alone", chain(conv(16, 1, bias=True), mul()), one),
            Row("ImplicitA before an unpadded 3x3", chain(shift(), conv(None, 3, pads=0)), one),
        ],
        sizes=(3, 4, 5, 8),
    )
    padded = chain(shift(), conv(None, 3, bias=True), mul())
    yield from family(
        "YOLOv7 ImplicitA / ImplicitM",
        "YOLOv7 heads",
        "im*(C3(x + ia) + b)",
        [Row("ImplicitA before a padded 3x3", padded, {"Add": 1, "Conv": 1}, ("border",))],
    )


# -- learnable affine behind an activation --------------------------------------------------------------------------


def lab(scale: float = 2.0, offset: float = 3.0) -> Build:
    """Return a learnable affine block: one factor and one summand for all channels, each of shape ``[1]``."""
    return chain(mul([scale], first=True), shift([offset]))


def unit(kernel: int, scale: float = 2.0, offset: float = 3.0) -> Build:
    """Return HGNetV2's ConvBNAct: LAB(Relu(BN(C x)))."""
    return chain(conv_bn(None, kernel), relu, lab(scale, offset))


def light(scale: float = 2.0, offset: float = 3.0) -> Build:
    """Return HGNetV2's LightConvBNAct: BN(C1); LAB(Relu(BN(dw5)))."""
    return chain(conv_bn(None, 1), depthwise(5), relu, lab(scale, offset))


def _dense_block(layer: Callable[[float, float], Build]) -> Build:
    """Return HG_Block: layers in a row, all their results concatenated, then a 1x1 Conv."""

    def build(net: Net, x: str) -> str:
        values = [x]
        for scale, offset in ((2.0, 3.0), (0.5, -1.0)):
            values.append(layer(scale, offset)(net, values[-1]))
        return net.relu(net.conv_bn(joined(net, values), WIDTH, 1))

    return build


def _several(net: Net, x: str) -> str:
    """Add one LAB that three unpadded convolutions read."""
    value = unit(3)(net, x)
    return joined(net, [net.relu(net.conv_bn(value, 4, 1)) for _ in range(3)])


def _beside(net: Net, x: str) -> str:
    """Add a LAB that goes into a Concat with the input, then a 1x1 Conv."""
    return net.conv_bn(joined(net, [unit(3)(net, x), x]), WIDTH, 1)


def _lab() -> Iterator[Block]:
    """Yield scale and shift behind an activation, folded into the next Conv."""
    two = {"Conv": 2, "Relu": 1}
    padded = {**two, "Add": 1}
    last = relu
    yield from family(
        "HGNetV2 LAB",
        "HGNetV2 (D-FINE, PaddleClas), PP-LCNetV4",
        "a*Relu(BN(C x)) + t; C",
        [
            Row("before a 1x1", chain(unit(3), conv_bn(None, 1)), two),
            Row("before an unpadded 3x3", chain(unit(3), conv_bn(None, 3, pads=0)), two),
            Row("before an unpadded 3x3, negative scale", chain(unit(1, -0.5), conv_bn(None, 3, pads=0)), two),
            Row("scale alone before a padded 3x3", chain(conv_bn(None, 3), relu, mul([0.5]), conv_bn(None, 3)), two),
            Row("shift 0 before a padded 3x3", chain(unit(3, 0.5, 0.0), conv_bn(None, 3)), two),
            Row("before a padded 3x3", chain(unit(3), conv_bn(None, 3)), padded),
            Row("before a padded 3x3 with stride", chain(unit(3, 0.5), conv_bn(None, 3, stride=2)), padded),
            Row("before a padded depthwise 5x5", chain(unit(1), depthwise(5)), padded),
            Row("Pad at the end, even kernel", chain(unit(3), pad(0, 0, 1, 1), conv_bn(None, 2, pads=0)), padded),
            Row("at the end of a block", unit(3), {"Conv": 1, "Relu": 1, "Mul": 1, "Add": 1}),
            Row("before and behind the activation", chain(conv_bn(None, 3), lab(), last), {"Conv": 1, "Relu": 1}),
            Row("three unpadded readers", _several, {"Conv": 4, "Relu": 4, "Concat": 1}),
            Row("Concat with the input, then 1x1", _beside, {"Conv": 2, "Relu": 1, "Concat": 1}),
            Row(
                "HG_Block of 3x3",
                _dense_block(lambda a, t: unit(3, a, t)),
                {"Conv": 3, "Relu": 3, "Concat": 1, "Add": 1},
            ),
            Row(
                "HG_Block of light convolutions",
                _dense_block(light),
                {"Conv": 5, "Relu": 3, "Concat": 1},
            ),
        ],
        sizes=(3, 4, 5, 8),
    )


# -- partitions -----------------------------------------------------------------------------------------------------

_TILE = 4


def _full(groups: int, norm: bool) -> Build:
    """Return RepMLP's fully connected branch over the pixels of all channels, as a grouped 1x1 Conv on one pixel."""
    size = WIDTH * _TILE * _TILE

    def build(net: Net, x: str) -> str:
        flat = shaped(-1, size, 1, 1, channels=size)(net, x)
        value = net.conv(flat, size, 1, group=groups, bias=not norm)
        value = shaped(-1, WIDTH, _TILE, _TILE, channels=WIDTH)(net, value)
        return net.bn(value) if norm else value

    return build


def _partitioned(net: Net, x: str) -> str:
    """Add RepMLPNet's partition of an image into tiles, the block on each of them, and the way back."""
    tiles = shaped(-1, WIDTH, 2, _TILE, 2, _TILE, channels=WIDTH)(net, x)
    tiles = turn(0, 2, 4, 1, 3, 5)(net, tiles)
    flat = shaped(-1, WIDTH * _TILE * _TILE, 1, 1, channels=WIDTH * _TILE * _TILE)(net, tiles)
    value = net.conv(flat, WIDTH * _TILE * _TILE, 1, group=WIDTH)
    value = net.bn(shaped(-1, WIDTH, _TILE, _TILE, channels=WIDTH)(net, value))
    value = shaped(-1, 2, 2, WIDTH, _TILE, _TILE, channels=WIDTH)(net, value)
    small = shaped(-1, WIDTH, _TILE, _TILE, channels=WIDTH)(net, tiles)
    local = total(depthwise(1), depthwise(3))(net, small)
    value = net.add(value, shaped(-1, 2, 2, WIDTH, _TILE, _TILE, channels=WIDTH)(net, local))
    value = turn(0, 3, 1, 4, 2, 5)(net, value)
    return shaped(-1, WIDTH, 2 * _TILE, 2 * _TILE, channels=WIDTH)(net, value)


def _vector_full(layer: Callable[[int], Build]) -> Build:
    """Return the fully connected branch as a layer on vectors of the pixels of all channels."""
    size = WIDTH * _TILE * _TILE
    return chain(shaped(-1, size, channels=size), layer(size), shaped(-1, WIDTH, _TILE, _TILE, channels=WIDTH))


def _rep_mlp() -> Iterator[Block]:
    """Yield RepMLP: a fully connected layer and convolutions on the same pixels."""
    left, one = {"Reshape": 2, "Conv": 1}, {"Reshape": 1, "Conv": 1}
    product, dense = {"Reshape": 2, "Gemm": 1}, conv_bn(None, 3)
    as_matmul, as_gemm = _vector_full(matmul), _vector_full(gemm)
    system, used, form = "RepMLPNet", "RepMLP", "BN(FC) + sum of BN(Ck)"
    locals_ = (depthwise(1), depthwise(3))
    yield from family(
        system,
        used,
        form,
        [
            Row("one group per channel, 1x1 and 3x3", total(_full(WIDTH, norm=True), *locals_), left),
            Row("three kernels", total(_full(WIDTH, norm=True), *locals_, depthwise(5)), left),
            Row("dense layer, dense 3x3", total(_full(1, norm=False), dense), one),
            Row("no local branch", _full(WIDTH, norm=True), left),
            Row("residual", total(same, _full(WIDTH, norm=True)), left),
            Row("MatMul as the layer", total(as_matmul, dense), product),
            Row("MatMul as the layer, no bias", total(as_matmul, conv(None, 3)), {"Reshape": 2, "MatMul": 1}),
            Row("MatMul as the layer, no local branch", chain(as_matmul, bn), product),
            Row("MatMul and BN on vectors", total(_vector_full(lambda n: chain(matmul(n), bn)), dense), product),
            Row("Gemm as the layer, residual", total(same, chain(as_gemm, bn), *locals_), product),
            Row("Conv and Gemm as layers", total(_full(WIDTH, norm=True), as_gemm), product),
        ],
        shape=("batch", WIDTH, _TILE, _TILE),
    )
    yield from family(
        system,
        used,
        form,
        [Row("partitions of an image", _partitioned, {"Reshape": 4, "Transpose": 2, "Conv": 1})],
        shape=("batch", WIDTH, 2 * _TILE, 2 * _TILE),
    )


# -- Concat and Split -----------------------------------------------------------------------------------------------


def _concat() -> Iterator[Block]:
    """Yield Concats of convolutions of one input."""
    apart = {"Conv": 2, "Concat": 1}
    rep = total(conv_bn(6, 3), conv_bn(6, 1))
    yield from family(
        "Concat of Convs on one input",
        "Inception, q/k/v, two-headed stems",
        "Concat(C x, C x)",
        [
            Row("two 1x1", concat(conv(6, 1), conv(4, 1)), _ONE),
            Row("three 1x1 with BN", concat(conv_bn(6, 1), conv_bn(4, 1), conv_bn(2, 1)), _ONE),
            Row("two 3x3, one bias", concat(conv(6, 3, bias=True), conv(4, 3)), _ONE),
            Row("two 3x3 with stride", concat(conv_bn(6, 3, stride=2), conv_bn(4, 3, stride=2)), _ONE),
            Row("two 3x3, then BN", chain(concat(conv(6, 3), conv(4, 3)), bn), _ONE),
            Row("two RepVGG sums", concat(rep, rep), _ONE),
            Row("1x1 and 3x3", concat(conv_bn(6, 1), conv_bn(6, 3)), apart, ("price",)),
            Row(
                "1x1 with stride and 3x3 with stride",
                concat(conv(6, 1, stride=2), conv(6, 3, stride=2)),
                apart,
                ("price",),
            ),
            Row("1x1 and 3x3, then BN", chain(concat(conv(6, 1), conv(6, 3)), bn), apart, ("price",)),
            Row("the input and a 1x1", concat(same, conv_bn(None, 1)), {"Conv": 1, "Concat": 1}),
            Row("two depthwise 3x3", concat(depthwise(3), depthwise(3)), apart),
            Row("activation between", concat(chain(conv(6, 1), relu), chain(conv(6, 1), relu)), {**apart, "Relu": 2}),
            Row(
                "1x1, 3x3 and 3x3",
                concat(conv_bn(4, 1), conv_bn(4, 3), conv_bn(4, 3)),
                apart,
            ),
        ],
    )


Cut = Callable[[Net, str, Sequence[int]], list[str]]


def per_part(cut: Cut, sizes: Sequence[int], layers: Sequence[Build], order: Sequence[int] | None = None) -> Build:
    """Return a layer of its own for each part of the channels, and a Concat."""

    def build(net: Net, x: str) -> str:
        parts = [layer(net, part) for part, layer in zip(cut(net, x, sizes), layers, strict=True)]
        return joined(net, [parts[i] for i in order] if order else parts)

    return build


def _split() -> Iterator[Block]:
    """Yield Split, one Conv per part, Concat."""
    half, quarter = (4, 4), (2, 2, 2, 2)
    three, small = conv_bn(4, 3), conv_bn(4, 1)
    untouched = {"Split": 1, "Conv": 2, "Concat": 1}
    rep = total(three, small, bn)
    yield from family(
        "Split; Conv_i; Concat",
        "RepNeXt, MoSR, SHViT",
        "block-diagonal",
        [
            Row("Split, two 3x3", per_part(split, half, (three,) * 2), _ONE),
            Row("Split, four 3x3", per_part(split, quarter, (conv_bn(2, 3),) * 4), _ONE),
            Row("Split, two 1x1 that widen", per_part(split, half, (conv_bn(6, 1),) * 2), _ONE),
            Row("Slice, two 3x3", per_part(slices, half, (three,) * 2), _ONE),
            Row("Slice with computed ends", per_part(chunks, half, (three,) * 2), _ONE),
            Row("four Slices with computed ends", per_part(chunks, quarter, (conv_bn(2, 3),) * 4), _ONE),
            Row("then BN", chain(per_part(split, half, (conv(4, 3),) * 2), bn), _ONE),
            Row("a RepVGG block per part", per_part(split, half, (rep,) * 2), _ONE),
            Row("depthwise per part", per_part(split, half, (depthwise(3),) * 2), _ONE),
            Row("unequal depthwise parts", per_part(split, (2, 6), (depthwise(3),) * 2), _ONE),
            Row("1x1 and 3x3", per_part(split, half, (small, three)), untouched),
            Row("unequal blocks", per_part(split, (2, 6), (conv_bn(2, 3), conv_bn(6, 3))), untouched),
            Row("first part as it is", per_part(split, half, (same, three)), {**untouched, "Conv": 1}),
            Row("parts in another order", per_part(split, half, (three,) * 2, (1, 0)), untouched),
        ],
    )


# -- channel shuffle ------------------------------------------------------------------------------------------------


def _shuffle() -> Iterator[Block]:
    """Yield channel shuffles between convolutions."""
    yield from _shuffles("static sizes", (8, 8), {"Reshape": 2, "Transpose": 1})
    steps = {"Shape": 2, "Gather": 6, "Unsqueeze": 6, "Concat": 2}
    yield from _shuffles("computed sizes", None, {"Reshape": 2, "Transpose": 1, **steps})


def _shuffles(label: str, size: tuple[int, int] | None, movement: dict[str, int]) -> Iterator[Block]:
    """Yield channel shuffles of one form."""
    two, four, last = shuffle(2, size), shuffle(4, size), conv_bn(None, 1)
    apart = {"Conv": 2, **movement}
    table = [
        Row("between 1x1 in 2 groups", chain(conv_bn(None, 1, group=2), two, conv_bn(None, 1, group=2)), _ONE),
        Row("1x1 in 4 groups", chain(conv_bn(None, 1, group=4), four, conv_bn(None, 1, group=4)), apart),
        Row("behind a dense 3x3", chain(conv_bn(None, 3), two), _ONE),
        Row("before a dense 1x1", chain(two, last), _ONE),
        Row("before a grouped 3x3", chain(last, four, conv_bn(None, 3, group=4)), {"Conv": 2}),
        Row("depthwise, shuffle, dense 1x1", chain(depthwise(3), four, last), {"Conv": 2}),
        Row("forth and back", chain(conv_bn(None, 3), two, four, bn), _ONE),
        Row("no Conv", chain(two, relu), {**movement, "Relu": 1}),
    ]
    rows = [row._replace(variation=f"{row.variation}, {label}") for row in table]
    shape = image(WIDTH) if size is None else ("batch", WIDTH, *size)
    yield from family("ShuffleNet shuffle", "ShuffleNet, ShuffleNetV2", "C1(g); shuffle; C1(g)", rows, shape=shape)


# -- ConvTranspose --------------------------------------------------------------------------------------------------


def _conv_transpose() -> Iterator[Block]:
    """Yield scales, shifts and sums of ConvTransposes."""
    up, wide = conv_transpose(8, 2, 2), conv_transpose(8, 4, 2, 1)
    for axes in (1, 2):
        rows = [
            Row(f"{axes}-D, BN", chain(up, bn), _UP),
            Row(f"{axes}-D, bias and BN", chain(conv_transpose(8, 4, 2, 1, bias=True), bn), _UP),
            Row(f"{axes}-D, 4x4 and 2x2 summed", total(wide, up), _UP),
        ]
        yield from family(
            "ConvTranspose + BN", "ultralytics, YOLOv6", "BN(ConvT); sums of ConvT", rows, shape=image(WIDTH, axes)
        )
    yield from family(
        "ConvTranspose + BN",
        "ultralytics, YOLOv6",
        "BN(ConvT); sums of ConvT",
        [
            Row("scale per channel", chain(up, mul()), _UP),
            Row("shift per channel", chain(up, shift()), _UP),
            Row("scale first, then shift", chain(up, mul([0.5], first=True), shift()), _UP),
            Row("output padding", chain(conv_transpose(8, 3, 2, 1, extra=1), bn), _UP),
            Row("2 groups", chain(conv_transpose(4, 2, 2, group=2), bn), _UP),
            Row("depthwise", chain(conv_transpose(8, 4, 2, 1, group=8), bn), _UP),
            Row("dilation", chain(conv_transpose(8, 3, 2, 1, dilation=2), bn), _UP),
            Row("BN on each branch", total(chain(wide, bn), chain(up, bn)), _UP),
            Row("three branches, BN behind", chain(total(wide, up, up), bn), _UP),
        ],
    )


def _chained_transpose() -> Iterator[Block]:
    """Yield a ConvTranspose before or behind a Conv."""
    up = conv_transpose(8, 2, 2)
    biased = conv_transpose(8, 2, 2, bias=True)
    both = {"Conv": 1, "ConvTranspose": 1}
    yield from family(
        "ConvTranspose and Conv",
        "segmentation and pose heads",
        "ConvT;C and C;ConvT",
        [
            Row("then 1x1 with BN", chain(biased, conv_bn(None, 1)), _UP),
            Row("narrow, then 1x1: does not pay", chain(conv_transpose(2, 2, 2), conv(8, 1)), both),
            Row("then unpadded 3x3", chain(biased, conv(None, 3, pads=0)), _UP),
            Row("no bias, then padded 3x3", chain(up, conv(None, 3)), _UP),
            Row("bias, then padded 3x3", chain(biased, conv(None, 3)), both, ("border",)),
            Row("padded, then padded 3x3", chain(conv_transpose(8, 4, 2, 1), conv(None, 3)), both, ("border",)),
            Row("behind a 1x1 without bias", chain(conv(None, 1), biased), _UP),
            Row("behind a 1x1 with bias", chain(conv(None, 1, bias=True), up), both, ("border",)),
            Row("behind a 1x1 with BN", chain(conv_bn(None, 1), up, bn), both, ("border",)),
            Row("behind a scale", chain(mul(), up), _UP),
            Row("behind a shift", chain(shift(), up), {"Add": 1, "ConvTranspose": 1}, ("border",)),
            Row("behind an unpadded 3x3", chain(conv(None, 3, pads=0), up), both),
        ],
        sizes=(3, 4, 5, 8),
    )
