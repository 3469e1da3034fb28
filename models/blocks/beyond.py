"""What frameworks leave in their own deploy form: folds into readers, layer scales, neighbours that change places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.blocks.base import Block, Build, image, joined
from models.net import Net

_TOKENS = ("batch", 9, 8)


def blocks() -> Iterator[Block]:
    """Yield every variation."""
    yield from _norms()
    yield from _layer_scales()
    yield from _exchanges()


def _norms() -> Iterator[Block]:
    form, used = "C(BN(x))", "RepLKNet, InceptionNeXt"
    yield Block("BN in front of a convolution", used, form, "1x1", _pre_norm(1, 0), image(), {"Conv": 1})
    yield Block("BN in front of a convolution", used, form, "unpadded 3x3", _pre_norm(3, 0), (2, 8, 7, 6), {"Conv": 1})
    yield Block(
        "BN in front of a convolution",
        used,
        form,
        "padded 3x3",
        _pre_norm(3, 1),
        image(),
        {"BatchNormalization": 1, "Conv": 1},
        frozenset(("border",)),
    )
    form = "MatMul(Transpose(Reshape(BN(x))))"
    left = {"MatMul": 1, "Reshape": 1, "Softmax": 1, "Transpose": 1}
    yield Block(
        "FastViT attention",
        "FastViT",
        f"{form} + b",
        "biased",
        attention(True),
        (2, 8, 5, 6),
        left | {"Add": 1},
        exact=False,
    )
    yield Block(
        "FastViT attention",
        "FastViT",
        form,
        "no bias: its shift would become an Add",
        attention(False),
        (2, 8, 5, 6),
        left | {"BatchNormalization": 1},
        exact=False,
    )
    form = "Reshape(BN(Flatten(MatMul(x))))"
    yield Block("Linear_BN of LeViT", "LeViT, EfficientFormer", form, "", levit, (2, 9, 8), {"MatMul": 1, "Add": 1})


def _pre_norm(kernel: int, padding: int) -> Build:
    return lambda net, x: net.conv(net.bn(x), 8, kernel, pads=padding)


def attention(biased: bool) -> Build:
    """Add the norm of an image, its tokens and the product that makes query, key and value."""

    def build(net: Net, x: str) -> str:
        flat = net.op("Reshape", net.bn(x), net.constant([0, 8, -1], dtype=np.int64))
        net.axes[flat] = 1
        tokens = net.op("MatMul", net.op("Transpose", flat, perm=[0, 2, 1]), net.constant(net.draw(8, 24)))
        return net.op("Softmax", net.op("Add", tokens, net.constant(net.draw(24))) if biased else tokens)

    return build


def levit(net: Net, x: str) -> str:
    """Add a Linear whose BatchNormalization works on a flattened copy."""
    flat = net.op("Reshape", net.op("MatMul", x, net.constant(net.draw(8, 16))), net.constant([18, 16], dtype=np.int64))
    net.axes[flat], net.channels[flat] = 0, 16
    result = net.op("Reshape", net.bn(flat), net.constant([2, 9, 16], dtype=np.int64))
    net.axes[result] = 1
    return result


def _layer_scales() -> Iterator[Block]:
    system, used = "Layer scale and residual", "FastViT, ConvNeXt, CaiT, PoolFormer"
    yield Block(
        system, used, "x + gamma * C1(Relu(x))", "image", scaled_image, image(), {"Add": 1, "Conv": 1, "Relu": 1}
    )
    yield Block(
        system,
        used,
        "x + gamma * Linear(Relu(x))",
        "tokens",
        scaled_tokens,
        _TOKENS,
        {"Add": 2, "MatMul": 1, "Relu": 1},
    )
    yield Block(system, used, "x + gamma * Linear(x)", "nothing between", merged_tokens, _TOKENS, {"MatMul": 1})
    yield Block(
        system,
        used,
        "x + Transpose(gamma * Linear(Transpose(Relu(x))))",
        "channels last",
        channels_last,
        image(),
        {"Add": 2, "MatMul": 1, "Relu": 1, "Transpose": 2},
    )


def scaled_image(net: Net, x: str) -> str:
    """Add a residual around an activation, a 1x1 convolution and a layer scale."""
    return net.add(x, net.scale(net.conv(net.relu(x), 8, 1, bias=True), net.per_channel(x)))


def _linear(net: Net, x: str) -> str:
    return net.op("Add", net.op("MatMul", x, net.constant(net.draw(8, 8))), net.constant(net.draw(8)))


def scaled_tokens(net: Net, x: str) -> str:
    """Add a residual around an activation, a Linear and a layer scale."""
    return net.add(x, net.scale(_linear(net, net.relu(x)), net.draw(8)))


def merged_tokens(net: Net, x: str) -> str:
    """Add a residual around a product and a layer scale."""
    return net.add(x, net.scale(net.op("MatMul", x, net.constant(net.draw(8, 8))), net.draw(8)))


def channels_last(net: Net, x: str) -> str:
    """Add the end of a ConvNeXt block."""
    tokens = net.op("Transpose", net.relu(x), perm=[0, 2, 3, 1])
    return net.add(x, net.op("Transpose", net.scale(_linear(net, tokens), net.draw(8)), perm=[0, 3, 1, 2]))


def _exchanges() -> Iterator[Block]:
    left = {"AveragePool": 1, "Conv": 1, "Relu": 1}
    yield Block(
        "DenseNet transition", "DenseNet", "AP2 s2(C1(Relu(x)))", "", transition, image(), left, sizes=(2, 5, 8)
    )
    yield Block(
        "Top-down step",
        "FPN, YOLO necks",
        "Relu(C1(Resize(x)))",
        "",
        top_down,
        image(),
        {"Conv": 1, "Relu": 1, "Resize": 1},
    )
    yield Block(
        "Top-down step with a skip",
        "YOLO necks, U-Net",
        "Relu(C1(Concat(Resize(a), b)))",
        "",
        with_skip,
        (1, 32, 8, 8),
        {"Add": 1, "Conv": 2, "Relu": 3, "Resize": 1, "MaxPool": 1},
    )


def transition(net: Net, x: str) -> str:
    """Add the transition between two dense blocks."""
    return net.op("AveragePool", net.conv(net.relu(x), 8, 1), kernel_shape=[2, 2], strides=[2, 2])


def enlarged(net: Net, x: str) -> str:
    """Add a nearest Resize to twice the size."""
    return net.op("Resize", x, "", net.constant([1, 1, 2, 2], dtype=np.float32), mode="nearest")


def top_down(net: Net, x: str) -> str:
    """Add an enlarged image and a 1x1 convolution."""
    return net.relu(net.conv_bn(enlarged(net, x), 8, 1))


def with_skip(net: Net, x: str) -> str:
    """Add a 1x1 convolution over an image enlarged again and the image that it was made smaller from."""
    small = net.relu(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    return net.relu(net.conv_bn(joined(net, [enlarged(net, small), net.relu(x)]), 32, 1))
