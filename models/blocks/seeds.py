"""The blocks of the five systems that onnxrep must replace completely, with their variations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from models.blocks.base import Block, Build, image
from models.net import Net


def mmpose_rep(branch_norm: bool, dilation: int, group: int) -> Build:
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


def plain_rep(kernel: int, stride: int, identity: bool, group: int = 1) -> Build:
    """Return a plain RepVGG block with any odd kernel: BN(Ck) + BN(C1) + [BN(x)]; SiLU."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        outputs = channels if identity or group > 1 else 2 * channels
        branches = [net.conv_bn(x, outputs, k, stride=stride, group=group) for k in (kernel, 1)]
        if identity:
            branches.insert(0, net.bn(x))
        return net.silu(net.add(*branches))

    return build


def super_gradients_rep(alpha: float | None, identity: bool, excite: bool) -> Build:
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


def conv_bn(kernel: int, group: int) -> Build:
    """Return Conv, BatchNormalization, activation."""

    def build(net: Net, x: str) -> str:
        return net.relu(net.bn(net.conv(x, net.channels[x], kernel, group=group)))

    return build


def paddle_rep(alpha: float | None) -> Build:
    """Return Paddle's RepVggBlock of PP-YOLOE: BN(C3) + alpha * BN(C1), no identity; None: no alpha."""

    def build(net: Net, x: str) -> str:
        small = net.conv_bn(x, net.channels[x], 1)
        if alpha is not None:
            small = net.scale(small, [alpha], first=True)
        return net.silu(net.add(net.conv_bn(x, net.channels[x], 3), small))

    return build


def rep_cpe(kernel: int) -> Build:
    """Return FastViT's RepCPE: x + depthwise conv with bias; no BatchNormalization at all."""

    def build(net: Net, x: str) -> str:
        channels = net.channels[x]
        return net.add(x, net.conv(x, channels, kernel, group=channels, bias=True))

    return build


_SE = {"GlobalAveragePool": 1, "Relu": 2, "Sigmoid": 1, "Mul": 1}
_SILU = {"Sigmoid": 1, "Mul": 1}


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    yield from _mmpose()
    yield from _plain()
    yield from _super_gradients()
    yield from _conv_bn()
    yield from _rep_cpe()


def _mmpose() -> Iterator[Block]:
    """Yield system (a)."""
    used, form = "mmpose (hybrid encoder neck of RTMO)", "BN(C3 p d g) + BN(C1 g) + [BN(x)]; Relu"
    for norm, dilation, group, axes in product((True, False), (1, 2, 3), (1, 2, 8), (1, 2, 3)):
        if axes != 2 and (dilation == 3 or group == 2):
            continue
        words = f"{axes}-D, dilation {dilation}, {group} groups, {'with' if norm else 'without'} branch norm"
        build = mmpose_rep(norm, dilation, group)
        yield Block("mmpose RepVGGBlock", used, form, words, build, image(8, axes), {"Conv": 1, "Relu": 1})


def _plain() -> Iterator[Block]:
    """Yield system (b)."""
    system, used = "plain RepVGGBlock, any odd k", "user code, whole models"
    form = "BN(Ck s p=k//2 g) + BN(C1 s g) + [BN(x)]; SiLU"
    left = {"Conv": 1, **_SILU}
    for kernel, stride, identity in product((1, 3, 5, 7, 9), (1, 2), (True, False)):
        if identity and stride > 1:
            continue
        words = f"{kernel}x{kernel}, stride {stride}, {'with' if identity else 'without'} identity"
        build = plain_rep(kernel, stride, identity)
        yield Block(system, used, form, words, build, image(), left, exact=False)
    for group in (2, 4, 8):
        build = plain_rep(3, 1, True, group)
        yield Block(system, used, form, f"3x3 in {group} groups", build, image(), left, exact=False)


def _super_gradients() -> Iterator[Block]:
    """Yield system (c)."""
    system, used = "super-gradients RepVGGBlock", "super-gradients (YOLO-NAS family)"
    form = "BN(C3) + alpha*BN(C1) + [BN(x)]; [SE]; Relu"
    for alpha, identity, excite in product((None, 1.0, 0.75, 0.0, -0.5), (True, False), (True, False)):
        words = f"alpha {alpha}, {'with' if identity else 'without'} identity, {'with' if excite else 'without'} SE"
        left = {"Conv": 3, **_SE} if excite else {"Conv": 1, "Relu": 1}
        build = super_gradients_rep(alpha, identity, excite)
        yield Block(system, used, form, words, build, image(), left, exact=not excite)


def _conv_bn() -> Iterator[Block]:
    """Yield system (d)."""
    for kernel, group in product((1, 3, 5), (1, 8)):
        words, left = f"{kernel}x{kernel}, {group} groups", {"Conv": 1, "Relu": 1}
        yield Block("Conv and BatchNormalization", "every CNN", "BN(C)", words, conv_bn(kernel, group), image(), left)
    for alpha in (None, 1.0, 0.5, 0.0, -1.5):
        system, form = "Paddle RepVggBlock", "BN(C3) + alpha*BN(C1); SiLU"
        left = {"Conv": 1, **_SILU}
        yield Block(system, "PP-YOLOE(+)", form, f"alpha {alpha}", paddle_rep(alpha), image(), left, exact=False)


def _rep_cpe() -> Iterator[Block]:
    """Yield system (e)."""
    for kernel, axes in product((3, 5, 7, 9), (1, 2)):
        words, shape = f"{axes}-D, kernel {kernel}", image(8, axes)
        yield Block("RepCPE", "FastViT, iFormer", "x + dwCk(x)+b", words, rep_cpe(kernel), shape, {"Conv": 1})
