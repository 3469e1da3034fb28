"""Published blocks in plain onnx, each with its variations and with what must come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

import onnx

from models.net import Net


@dataclass(frozen=True)
class Block:
    """One variation of a published block.

    Attributes:
        system: the block's name and where it is used.
        variation: what is particular to this one.
        build: adds the block to a net, given its input, and returns its output.
        channels: of the input.
        axes: spatial axes.
        convs: Convs that must remain.
        others: op types besides Conv that may remain, with their counts.
    """

    system: str
    variation: str
    build: Callable[[Net, str], str]
    channels: int = 8
    axes: int = 2
    convs: int = 1
    others: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """System and variation."""
        return f"{self.system}: {self.variation}"

    def model(
        self, *, seed: int = 0, folded: bool = False, exact: bool = False, dynamic: bool = False, size: int = 12
    ) -> onnx.ModelProto:
        """Return a model that holds this block alone, with its training form's BatchNormalizations or without."""
        net = Net(seed, exact=exact, folded=folded)
        sizes: list[int | str] = [f"size{i}" if dynamic else size + i for i in range(self.axes)]
        x = net.input(["batch" if dynamic else 1, self.channels, *sizes])
        return net.model(self.build(net, x))


def mmpose_rep(branch_norm: bool, dilation: int, group: int) -> Callable[[Net, str], str]:
    """Return mmpose's RepVGGBlock: BN(C3) + BN(C1) + [BN(x)], padding = dilation."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        branches = [
            net.conv_bn(x, channels, 3, dilation=dilation, group=group),
            net.conv_bn(x, channels, 1, group=group),
        ]
        if branch_norm:
            branches.append(net.bn(x))
        return net.relu(net.add(*branches))

    return build


def plain_rep(kernel: int, stride: int, identity: bool, group: int = 1) -> Callable[[Net, str], str]:
    """Return a plain RepVGG block with any odd kernel: BN(Ck) + BN(C1) + [BN(x)]; SiLU."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        outputs = channels if identity or group > 1 else 2 * channels
        branches = [net.conv_bn(x, outputs, k, stride=stride, group=group) for k in (kernel, 1)]
        if identity:
            branches.insert(0, net.bn(x))
        return net.silu(net.add(*branches))

    return build


def super_gradients_rep(alpha: float | None, identity: bool, excite: bool) -> Callable[[Net, str], str]:
    """Return super-gradients' RepVGGBlock: BN(C3) + alpha * BN(C1) + [BN(x)]; SE; activation. None: no alpha."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        small = net.conv_bn(x, channels, 1)
        if alpha is not None:
            small = net.scale(small, [alpha], first=True)
        branches = [net.conv_bn(x, channels, 3), small]
        if identity:
            branches.append(net.bn(x))
        total = net.add(*branches)
        return net.relu(net.squeeze_excite(total) if excite else total)

    return build


def conv_bn(kernel: int, group: int) -> Callable[[Net, str], str]:
    """Return Conv, BatchNormalization, activation."""

    def build(net: Net, x: str) -> str:
        return net.relu(net.bn(net.conv(x, net.channels[x], kernel, group=group)))

    return build


def paddle_rep(alpha: float | None) -> Callable[[Net, str], str]:
    """Return Paddle's RepVggBlock of PP-YOLOE: BN(C3) + alpha * BN(C1), no identity; None: no alpha."""

    def build(net: Net, x: str) -> str:
        small = net.conv_bn(x, net.channels[x], 1)
        if alpha is not None:
            small = net.scale(small, [alpha], first=True)
        return net.silu(net.add(net.conv_bn(x, net.channels[x], 3), small))

    return build


def rep_cpe(kernel: int) -> Callable[[Net, str], str]:
    """Return FastViT's RepCPE: x + depthwise conv with bias; no BatchNormalization at all."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        return net.add(x, net.conv(x, channels, kernel, group=channels, bias=True))

    return build


_SE = {"GlobalAveragePool": 1, "Relu": 2, "Sigmoid": 1, "Mul": 1}


def seed_blocks() -> Iterator[Block]:
    """Yield the blocks of the five systems that onnxrep must replace completely, with their variations."""
    for norm, dilation, group, axes in product((True, False), (1, 2, 3), (1, 2, 8), (1, 2, 3)):
        if axes != 2 and (dilation == 3 or group == 2):
            continue
        words = f"{axes}-D, dilation {dilation}, {group} groups, {'with' if norm else 'without'} branch norm"
        yield Block("a mmpose RepVGGBlock", words, mmpose_rep(norm, dilation, group), axes=axes, others={"Relu": 1})
    silu = {"Sigmoid": 1, "Mul": 1}
    for kernel, stride, identity in product((1, 3, 5, 7, 9), (1, 2), (True, False)):
        if identity and stride > 1:
            continue
        words = f"{kernel}x{kernel}, stride {stride}, {'with' if identity else 'without'} identity"
        yield Block("b plain RepVGGBlock", words, plain_rep(kernel, stride, identity), others=silu)
    for group in (2, 4, 8):
        yield Block("b plain RepVGGBlock", f"3x3 in {group} groups", plain_rep(3, 1, True, group), others=silu)
    for alpha, identity, excite in product((None, 1.0, 0.75, 0.0, -0.5), (True, False), (True, False)):
        words = f"alpha {alpha}, {'with' if identity else 'without'} identity, {'with' if excite else 'without'} SE"
        block = super_gradients_rep(alpha, identity, excite)
        yield Block(
            "c super-gradients RepVGGBlock",
            words,
            block,
            convs=3 if excite else 1,
            others=_SE if excite else {"Relu": 1},
        )
    for kernel, group in product((1, 3, 5), (1, 8)):
        yield Block(
            "d Conv and BatchNormalization",
            f"{kernel}x{kernel}, {group} groups",
            conv_bn(kernel, group),
            others={"Relu": 1},
        )
    for alpha in (None, 1.0, 0.5, 0.0, -1.5):
        yield Block("d Paddle RepVggBlock", f"alpha {alpha}", paddle_rep(alpha), others=silu)
    for kernel, axes in product((3, 5, 7, 9), (1, 2)):
        yield Block("e RepCPE", f"{axes}-D, kernel {kernel}", rep_cpe(kernel), axes=axes)


def count(model: onnx.ModelProto) -> dict[str, int]:
    """Return op type -> number of nodes of the main graph, constants not counted."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type != "Constant":
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def macs(model: onnx.ModelProto) -> int:
    """Return the sum of ``Co * Ci / group * kernel`` over all Convs."""
    dims = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return sum(math.prod(dims[n.input[1]]) for n in model.graph.node if n.op_type == "Conv")
