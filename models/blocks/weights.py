"""Blocks whose weights are computed in the graph from other parameters, with their variations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from models.blocks.base import Block, Build, image
from models.net import Net

Array = NDArray[Any]
Weight = Callable[[Net, int, int], str]
"""Adds nodes that compute a Conv's weight for numbers of outputs and inputs, and returns its name."""


def conv_of(net: Net, x: str, weight: str, outputs: int, *, bias: str = "", pads: int = 0, **attributes: Any) -> str:
    """Add a Conv whose weight, and bias if any, are values of the graph; ``pads`` on every side."""
    inputs = [x, weight, bias] if bias else [x, weight]
    return net.op("Conv", *inputs, channels=outputs, pads=[pads] * 2 * net.axes[x], **attributes)


def numbers(net: Net, *values: int) -> str:
    """Add a Constant node of integers."""
    return net.constant(values, as_node=True, dtype=np.int64)


def reshape(net: Net, value: str, *shape: int) -> str:
    """Add a Reshape."""
    return net.op("Reshape", value, numbers(net, *shape))


def learned(net: Net, *shape: int) -> str:
    """Add a random parameter."""
    return net.constant(net.draw(*shape, scale=0.3))


def scattered(net: Net, value: str, columns: list[int], updates: str) -> str:
    """Add what is made of ``value[:, :, columns] = updates``, all of rank 3."""
    turned = [net.op("Transpose", v, perm=[2, 0, 1]) for v in (value, updates)]
    indices = net.constant(np.reshape(columns, (-1, 1)), dtype=np.int64)
    return net.op("Transpose", net.op("ScatterND", turned[0], indices, turned[1]), perm=[1, 2, 0])


# -- OREPA --------------------------------------------------------------------------------------------------------


def orepa(group: int = 1, *, identity: bool = True) -> Weight:
    """Return OREPA's weight: six terms, each scaled by a row of a table; ``identity`` is part of the 1x1;3x3 term."""

    def build(net: Net, outputs: int, inputs: int) -> str:
        per = inputs // group
        table = learned(net, 6, outputs)
        terms = [
            learned(net, outputs, per, 3, 3),
            net.op("Einsum", learned(net, outputs, per), learned(net, 3, 3), equation="oi,hw->oihw"),
            net.op("Einsum", learned(net, outputs, per), learned(net, per, 3, 3), equation="oi,ihw->oihw"),
            _one_by_three(net, outputs, per, group, identity),
            net.op("Pad", learned(net, outputs, per, 1, 1), numbers(net, 0, 0, 1, 1, 0, 0, 1, 1)),
            _separable(net, outputs, per, group),
        ]
        scaled = []
        for index, term in enumerate(terms):
            row = net.op("Gather", table, net.constant(index, as_node=True, dtype=np.int64), axis=0)
            scaled.append(net.op("Einsum", term, row, equation="oihw,o->oihw"))
        return net.add(*scaled)

    return build


def _one_by_three(net: Net, outputs: int, per: int, group: int, identity: bool) -> str:
    """Add the product of a 1x1 and a 3x3, group by group."""
    mid = per * group
    first = learned(net, mid, per, 1, 1)
    if identity:
        eye = np.eye(per)[np.arange(mid) % per, :, None, None]
        first = net.op("Add", first, net.constant(eye))
    first = net.op("Squeeze", first, numbers(net, 2, 3))
    if group == 1:
        return net.op("Einsum", first, learned(net, outputs, mid, 3, 3), equation="ti,othw->oihw")
    factors = (
        reshape(net, first, group, mid // group, per),
        reshape(net, learned(net, outputs, mid // group, 3, 3), group, outputs // group, mid // group, 3, 3),
    )
    return reshape(net, net.op("Einsum", *factors, equation="gti,gothw->goihw"), outputs, per, 3, 3)


def _separable(net: Net, outputs: int, per: int, group: int) -> str:
    """Add the product of a depthwise 3x3 with eight outputs per input and a 1x1."""
    depthwise = reshape(net, learned(net, 8 * per * group, 1, 3, 3), group, per, 8, 3, 3)
    pointwise = reshape(net, learned(net, outputs, 8 * per, 1, 1), group, outputs // group, per, 8)
    product = net.op("Einsum", depthwise, pointwise, equation="gimhw,goim->goihw")
    return reshape(net, product, outputs, per, 3, 3)


# -- refocused and difference convolutions ------------------------------------------------------------------------


def refocused(net: Net, outputs: int, inputs: int) -> str:
    """Add RefConv's weight: a basis kernel plus what a grouped 3x3 makes of it, as an image of one pixel per tap."""
    basis, count = learned(net, outputs, inputs, 3, 3), outputs * inputs
    flat = reshape(net, basis, 1, count, 3, 3)
    refocus = learned(net, count, outputs, 3, 3)
    seen = net.op("Conv", flat, refocus, pads=[1] * 4, group=inputs)
    return net.op("Add", basis, reshape(net, seen, outputs, inputs, 3, 3))


def _central(net: Net, weight: str) -> str:
    """Add the sum of a weight's taps."""
    return net.op("ReduceSum", weight, numbers(net, 2, 3), keepdims=1)


def central_difference(theta: float, bias: str) -> Build:
    """Return C3(x) - theta * C1(x) with the sum of the 3x3's taps; ``bias``: none, once or twice, as some copies do."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        weight = learned(net, channels, channels, 3, 3)
        shift = "" if bias == "no bias" else net.constant(net.draw(channels))
        normal = conv_of(net, x, weight, channels, bias=shift, pads=1)
        central = conv_of(net, x, _central(net, weight), channels, bias=shift if bias == "bias twice" else "")
        if theta != 1:
            central = net.scale(central, theta)
        return net.relu(net.op("Sub", normal, central))

    return build


_RING = [3, 0, 1, 6, 4, 2, 7, 8, 5]


def angular(net: Net, outputs: int, inputs: int) -> str:
    """Add PDC's angular weight: each tap minus its neighbour on the ring."""
    flat = reshape(net, learned(net, outputs, inputs, 3, 3), outputs, inputs, -1)
    turned = net.op("Gather", flat, numbers(net, *_RING), axis=2)
    return reshape(net, net.op("Sub", flat, turned), outputs, inputs, 3, 3)


def radial(net: Net, outputs: int, inputs: int) -> str:
    """Add PDC's radial weight: 5x5, the outer taps minus the inner ones."""
    flat = reshape(net, learned(net, outputs, inputs, 3, 3), outputs, inputs, -1)
    outer = net.op("Slice", flat, numbers(net, 1), numbers(net, np.iinfo(np.int64).max), numbers(net, 2))
    y = net.op("ConstantOfShape", numbers(net, outputs, inputs, 25))
    y = scattered(net, y, [0, 2, 4, 10, 14, 20, 22, 24], outer)
    y = scattered(net, y, [6, 7, 8, 11, 13, 16, 17, 18], net.op("Neg", outer))
    return reshape(net, y, outputs, inputs, 5, 5)


def detail_enhanced(net: Net, outputs: int, inputs: int) -> str:
    """Add DEConv's weight: vanilla, central, angular, horizontal and vertical differences."""
    central = reshape(net, learned(net, outputs, inputs, 3, 3), outputs, inputs, -1)
    centre = net.op("Gather", central, numbers(net, 4), axis=2)
    total = net.op("ReduceSum", central, numbers(net, 2), keepdims=1)
    terms = [learned(net, outputs, inputs, 3, 3)]
    central = scattered(net, central, [4], net.op("Sub", centre, total))
    terms.append(reshape(net, central, outputs, inputs, 3, 3))
    terms.append(angular(net, outputs, inputs))
    for plus, minus in (([0, 3, 6], [2, 5, 8]), ([0, 1, 2], [6, 7, 8])):
        row = learned(net, outputs, inputs, 3)
        y = net.op("ConstantOfShape", numbers(net, outputs, inputs, 9))
        y = scattered(net, scattered(net, y, plus, row), minus, net.op("Neg", row))
        terms.append(reshape(net, y, outputs, inputs, 3, 3))
    return net.add(*terms)


# -- adapters -----------------------------------------------------------------------------------------------------


def lora(net: Net, outputs: int, inputs: int) -> str:
    """Add ConvLoRA's weight: W + (B A) * s, the product reshaped."""
    product = net.op("MatMul", learned(net, outputs * 3, 4), learned(net, 4, inputs * 3))
    scaled = net.scale(reshape(net, product, outputs, inputs, 3, 3), 0.5)
    return net.op("Add", learned(net, outputs, inputs, 3, 3), scaled)


def dora(net: Net, outputs: int, inputs: int) -> str:
    """Add DoRA's weight: a learned length times the direction of LoRA's."""
    weight = lora(net, outputs, inputs)
    length = net.op("ReduceL2", weight, axes=[1, 2, 3], keepdims=1)
    return net.op("Mul", weight, net.op("Div", learned(net, outputs, 1, 1, 1), length))


def loha(net: Net, outputs: int, inputs: int) -> str:
    """Add LoHa's weight: W plus a product of two low-rank products."""
    pair = [net.op("MatMul", learned(net, outputs, 2), learned(net, 2, inputs * 9)) for _ in range(2)]
    scaled = net.scale(reshape(net, net.op("Mul", *pair), outputs, inputs, 3, 3), 0.25)
    return net.op("Add", learned(net, outputs, inputs, 3, 3), scaled)


# -- blocks -------------------------------------------------------------------------------------------------------


def single(weight: Weight, *, norm: bool = False, pads: int = 1, bias: bool = False, group: int = 1) -> Build:
    """Return one Conv with a computed weight, its BN apart: an exporter cannot fold it; Relu."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        shift = net.constant(net.draw(channels)) if bias else ""
        y = conv_of(net, x, weight(net, channels, channels), channels, bias=shift, pads=pads, group=group)
        return net.relu(net.bn(y) if norm else y)

    return build


def rep_orepa(activation: Callable[[Net, str], str]) -> Build:
    """Return RepVGG with OREPA's weight in its 3x3: BN(C3) + BN(C1) + BN(x)."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        large = net.bn(conv_of(net, x, orepa()(net, channels, channels), channels, pads=1))
        return activation(net, net.add(large, net.conv_bn(x, channels, 1), net.bn(x)))

    return build


def peripheral(shared: bool) -> Build:
    """Return PeLK's kernel: a depthwise 5x5 spread to 9x9, a position embedding h as the bias sum w*h, BN, residual."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        y = learned(net, 1 if shared else channels, 1, 5, 5)
        for axis in (2, 3):
            y = net.op("Gather", y, numbers(net, 0, 0, 1, 1, 2, 3, 3, 4, 4), axis=axis)
        if shared:
            y = net.op("Tile", y, numbers(net, channels, 1, 1, 1))
        weighted = net.op("Mul", y, learned(net, 1, 1, 9, 9))
        bias = net.op("ReduceSum", weighted, numbers(net, 1, 2, 3), keepdims=0)
        return net.relu(net.add(net.bn(conv_of(net, x, y, channels, bias=bias, pads=4, group=channels)), x))

    return build


def mixer(net: Net, x: str) -> str:
    """Add EfficientViM's x + sigmoid(alpha) * (BN(dw x) - x)."""
    channels = net.channels[x]
    gate = net.op("Sigmoid", learned(net, channels, 1, 1))
    change = net.op("Sub", net.conv_bn(x, channels, 3, group=channels), x)
    return net.relu(net.op("Add", x, net.op("Mul", gate, change)))


def edge_collapsed(net: Net, x: str) -> str:
    """Add ECB in evaluation: 3x3 + product of 1x1 and 3x3 + products with an edge filter + identity, in the weight."""
    channels = net.channels[x]
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    scales = net.op("Mul", learned(net, channels, 1, 1, 1), net.constant(np.tile(sobel, (channels, 1, 1, 1))))
    eye = np.eye(channels)[:, :, None, None]
    seconds = [learned(net, channels, channels, 3, 3), net.op("Mul", scales, net.constant(eye))]
    terms, shifts = [learned(net, channels, channels, 3, 3)], [learned(net, channels)]
    for second in seconds:
        first, inner = learned(net, channels, channels, 1, 1), learned(net, 1, channels, 1, 1)
        terms.append(net.op("Conv", second, net.op("Transpose", first, perm=[1, 0, 2, 3])))
        spread = net.op("Expand", inner, numbers(net, 1, channels, 3, 3))
        shifts.append(reshape(net, net.op("Conv", spread, second), -1))
    terms.append(net.op("Pad", net.constant(eye), numbers(net, 0, 0, 1, 1, 0, 0, 1, 1)))
    return net.relu(conv_of(net, x, net.add(*terms), channels, bias=net.add(*shifts), pads=1))


def block_collapsed(net: Net, x: str) -> str:
    """Add SESR's LinearBlock with its weight multiplied out in the graph, the residual in the weight."""
    channels = net.channels[x]
    second = learned(net, channels, 32, 1, 1)
    columns = net.op("Transpose", learned(net, 32, channels, 3, 3), perm=[1, 0, 2, 3])
    product = net.op("Transpose", net.op("Conv", columns, second), perm=[1, 0, 2, 3])
    centre = net.op("Pad", net.constant(np.eye(channels)[:, :, None, None]), numbers(net, 0, 0, 1, 1, 0, 0, 1, 1))
    bias = net.op("Squeeze", net.op("Conv", learned(net, 1, 32, 1, 1), second))
    return net.relu(conv_of(net, x, net.op("Add", product, centre), channels, bias=bias, pads=1))


def zero_bias(net: Net, x: str, kernel: int) -> str:
    """Add a Conv without bias as unoptimised dynamo writes it: with a bias of zeros, computed from the weight."""
    channels = net.channels[x]
    weight = learned(net, channels, channels, kernel, kernel)
    rows = net.op("Shape", weight, start=0, end=1)
    shape = net.op("Expand", rows, numbers(net, 1))
    zero = net.op("CastLike", net.constant(0.0, as_node=True), x)
    del net.axes[zero], net.channels[zero]
    return conv_of(net, x, weight, channels, bias=net.op("Expand", zero, shape), pads=kernel // 2)


def unoptimised(net: Net, x: str) -> str:
    """Add a RepVGG block as unoptimised dynamo writes it, its sum beginning with a Cast of an integer 0."""
    zero = net.op("Cast", net.constant(0, as_node=True, dtype=np.int64), to=TensorProto.FLOAT)
    total = net.op("Add", net.bn(x), zero)
    return net.relu(net.add(total, *(net.bn(zero_bias(net, x, k)) for k in (1, 3))))


_ONE = {"Conv": 1, "Relu": 1}
_SILU = {"Conv": 1, "Sigmoid": 1, "Mul": 1}


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    make = partial(Block, "OREPA, RepVGG_OREPA, RepConv_OREPA", "OREPA, YOLOv7", "W = sum of scaled terms; C3; BN")
    yield make("OREPA", single(orepa(), norm=True), image(), _ONE)
    yield make("OREPA, 2 groups", single(orepa(2), norm=True, group=2), image(), _ONE)
    yield make("OREPA, no identity in the 1x1", single(orepa(identity=False), norm=True), image(), _ONE)
    yield make("RepVGG_OREPA", rep_orepa(Net.relu), image(), _ONE)
    yield make("RepConv_OREPA", rep_orepa(Net.silu), image(), _SILU, exact=False)
    make = partial(Block, "RefConv, CDC/PDC, DEConv", "RefConv, PiDiNet, DEA-Net", "W' linear in W")
    yield make("RefConv", single(refocused), image(), _ONE)
    for theta, bias in ((0.5, "no bias"), (0.5, "bias once"), (0.5, "bias twice"), (1.0, "no bias")):
        yield make(f"central difference, theta {theta}, {bias}", central_difference(theta, bias), image(), _ONE)
    yield make("angular difference", single(angular), image(), _ONE)
    yield make("radial difference", single(radial, pads=2), image(), _ONE)
    yield make("DEConv", single(detail_enhanced, bias=True), image(), _ONE)
    form = "dwK, W expanded from shared parameters, b = sum w*h; BN; + x"
    make = partial(Block, "PeLK peripheral kernel", "paper only", form)
    yield make("a kernel per channel", peripheral(False), image(), _ONE)
    yield make("one kernel, tiled", peripheral(True), image(), _ONE)
    make = partial(Block, "ConvLoRA, DoRA, LoHa in weights", "loralib, PEFT", "W + s*(B A) reshaped")
    yield make("ConvLoRA alone", single(lora, bias=True), image(), _ONE)
    for words, weight in (("ConvLoRA", lora), ("DoRA", dora), ("LoHa", loha)):
        exact = words != "DoRA"
        yield make(f"{words}, BN", single(weight, norm=True), image(), _ONE, exact=exact)
    form = "C3, W = C3 + 1x1;3x3 + 1x1;edge + identity"
    yield Block("ECBSR ECB in evaluation", "super-resolution", form, "", edge_collapsed, image(), _ONE)
    form = "C3, W = 3x3;1x1 + identity"
    yield Block("SESR LinearBlock, collapsed", "over-parameterisation", form, "", block_collapsed, image(), _ONE)
    form = "x + sigmoid(alpha)*(BN(dw3 x) - x)"
    yield Block("EfficientViM", "EfficientViM", form, "sigmoid of a parameter", mixer, image(), _ONE, exact=False)
    form = "BN(C3) + BN(C1) + BN(x), bias 0 computed"
    yield Block("RepVGG as unoptimised dynamo writes it", "dynamo exports", form, "", unoptimised, image(), _ONE)
