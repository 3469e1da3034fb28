"""Exchanges of neighbours: whole networks as exported, folded without exchanges, and with them, side by side.

    python -m benchmarks.exchanges [--provider cpu] [--seconds 20]

The networks are made here, with random weights, after the published architectures: a DenseNet-121 whose transitions
pool behind their 1x1 convolution, and necks that enlarge images in front of one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import onnx

from benchmarks.calibrate import times
from models.blocks.base import joined
from models.blocks.beyond import enlarged
from models.net import Net
from onnxrep import Options, optimize
from onnxrep.proof.sessions import PROVIDERS, Runtime
from onnxrep.timing.statistics import ratio

_LAYERS = (6, 12, 24, 16)
_GROWTH = 32
_OPTIONS = Options(verify=False)
_WITHOUT = ("merge", "fuse")


def densenet() -> onnx.ModelProto:
    """Return a DenseNet-121 for images ``[1, 3, 224, 224]``."""
    net = Net(0)
    x = net.relu(net.conv_bn(net.input((1, 3, 224, 224)), 64, 7, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for index, layers in enumerate(_LAYERS):
        for _ in range(layers):
            narrow = net.conv(net.relu(net.bn(x)), 4 * _GROWTH, 1)
            new = net.conv(net.relu(net.bn(narrow)), _GROWTH, 3)
            x = joined(net, [x, new])
        if index < len(_LAYERS) - 1:
            x = net.conv(net.relu(net.bn(x)), net.channels[x] // 2, 1)
            x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.op("GlobalAveragePool", net.relu(net.bn(x))))


def _backbone(net: Net, widths: tuple[int, ...]) -> list[str]:
    """Add strided 3x3 convolutions; return an image per width, each half as large as the one before it."""
    x = net.relu(net.conv_bn(net.input((1, 3, 320, 320)), widths[0] // 2, 3, stride=4))
    images = []
    for width in widths:
        x = net.relu(net.conv_bn(x, width, 3, stride=2))
        images.append(x)
    return images


def pyramid() -> onnx.ModelProto:
    """Return a backbone and a neck of top-down steps ``side + Relu(BN(C1(Resize(x))))``, each with a 3x3 behind it."""
    net = Net(0)
    *sides, x = _backbone(net, (64, 128, 256))
    outputs = [x]
    for side in reversed(sides):
        width = net.channels[side]
        x = net.add(side, net.relu(net.conv_bn(enlarged(net, x), width, 1)))
        x = net.relu(net.conv_bn(x, width, 3))
        outputs.append(x)
    return net.model(*outputs)


def with_skips() -> onnx.ModelProto:
    """Return a backbone and a neck of top-down steps ``SiLU(BN(C1(Concat(Resize(x), side))))``, each with a 3x3."""
    net = Net(0)
    *sides, x = _backbone(net, (64, 128, 256))
    outputs = [x]
    for side in reversed(sides):
        width = net.channels[side]
        both = joined(net, [enlarged(net, x), side])
        x = net.silu(net.conv_bn(net.silu(net.conv_bn(both, width, 1)), width, 3))
        outputs.append(x)
    return net.model(*outputs)


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "DenseNet-121": densenet,
    "1x1 behind Resize": pyramid,
    "1x1 behind Concat of Resize and skip": with_skips,
}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Networks before and after exchanges of neighbours")
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    arguments = parser.parse_args()
    runtime = Runtime(arguments.provider, threads=1)
    runtime.check()
    options = replace(_OPTIONS, provider=arguments.provider)
    sys.stdout.write("| network | exchanges | export, ms | folded | **with exchanges** | with / without |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for name, build in NETWORKS.items():
        model = build()
        plain = optimize(model, options=replace(options, kinds=_WITHOUT)).model
        result = optimize(model, options=options)
        moves = sum(fold.kind == "move" for fold in result.report.folds)
        before, without, after = times(runtime, [model, plain, result.model], arguments.seconds)
        ratios = (ratio(*pair).median for pair in ((before, without), (before, after), (without, after)))
        sys.stdout.write(f"| {name} | {moves} | {1e3 * statistics.median(before):.1f} ")
        sys.stdout.write("| {:.2f} | **{:.2f}** | {:.2f} |\n".format(*ratios))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
