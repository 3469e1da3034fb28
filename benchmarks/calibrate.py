"""Calibration: how fast an execution provider is, in the form in which ``onnxrep/rates.py`` states it.

    python -m benchmarks.calibrate [--provider cpu]      measure, print the rates, and check estimates against times

One thread. A rate is a slope: rows of equal nodes of two lengths are timed in the same rounds, so that what a run costs
in itself drops out. What the runtime fuses is read from the graph that it optimizes. The check then times blocks before
and after folding and prints the ratio beside the estimated one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from models.net import Net
from onnxrep import Options, machine, optimize
from onnxrep.proof.sessions import PROVIDERS, Runtime
from onnxrep.rates import RATES, Rates
from onnxrep.timing.rounds import Budget, repeats_for, timed_rounds, warm_up

_SHORT, _LONG = 2, 10
_WIDTHS, _SIDES = (32, 64, 128, 256), (56, 28, 14)
_SECONDS = 0.6
Layer = Callable[[Net, str], str]
"""Adds a node that reads a value, and returns what it makes."""


def times(runtime: Runtime, models: Sequence[onnx.ModelProto], seconds: float = _SECONDS) -> list[list[float]]:
    """Return seconds per run of some models with inputs of the same shape, timed in the same rounds."""
    runs = []
    for model in models:
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        session = runtime.session(model, "all", flush=True)
        runs.append(session.repeatable({"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}))
    repeats = repeats_for(warm_up(runs))
    return timed_rounds(runs, Budget(100, seconds), np.random.default_rng(0), repeats=repeats)


def row(layer: Layer, channels: int, side: int, count: int) -> onnx.ModelProto:
    """Return a model of ``count`` equal layers in a row on an image ``[1, channels, side, side]``."""
    net = Net(0)
    x = net.relu(net.input((1, channels, side, side)))
    for _ in range(count):
        x = layer(net, x)
    return net.model(net.op("Sigmoid", x))


def slope(runtime: Runtime, layer: Layer, channels: int, side: int) -> float:
    """Return the seconds that one layer takes."""
    short, long = times(runtime, [row(layer, channels, side, count) for count in (_SHORT, _LONG)])
    return max(statistics.median(b - a for a, b in zip(short, long, strict=True)) / (_LONG - _SHORT), 1e-9)


def convolution(kernel: int, group: str, dilation: int = 1) -> Layer:
    """Return a layer of one convolution and an activation, which the runtime fuses; ``group``: one, four or all."""

    def layer(net: Net, x: str) -> str:
        channels = net.channels[x]
        groups = {"one": 1, "four": 4, "all": channels}[group]
        return net.relu(net.conv(x, channels, kernel, group=groups, dilation=dilation))

    return layer


def speed(runtime: Runtime, kernel: int, group: str, dilation: int = 1) -> float:
    """Return the multiply-accumulates per second of a kind of convolution: the median over widths and sizes."""
    found = []
    for channels in _WIDTHS:
        for side in _SIDES:
            inner = {"one": channels, "four": channels // 4, "all": 1}[group]
            macs = channels * inner * kernel**2 * side**2
            found.append(macs / slope(runtime, convolution(kernel, group, dilation), channels, side))
    return statistics.median(found)


def products(runtime: Runtime) -> float:
    """Return the multiply-accumulates per second of matrix products, the left one of 196 rows."""
    found = []
    for width in _WIDTHS:
        models = []
        for count in (_SHORT, _LONG):
            net = Net(0)
            x = net.input((1, 196, width))
            for _ in range(count):
                factor = net.constant(net.rng.standard_normal((width, width)) / math.sqrt(width))
                x = net.op("MatMul", x, factor)
            models.append(net.model(x))
        short, long = times(runtime, models)
        step = statistics.median(b - a for a, b in zip(short, long, strict=True)) / (_LONG - _SHORT)
        found.append(196 * width**2 / max(step, 1e-9))
    return statistics.median(found)


def elements(runtime: Runtime, launch: float) -> float:
    """Return the elements per second that the sum of an image with itself reads and writes."""
    found = []
    for channels in _WIDTHS:
        for side in _SIDES:
            step = slope(runtime, lambda net, x: net.op("Add", x, x), channels, side)
            found.append(3 * channels * side**2 / max(step - launch, 1e-9))
    return statistics.median(found)


def kept(runtime: Runtime, model: onnx.ModelProto) -> list[str]:
    """Return the op types that are left of a model after the runtime's own optimization."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(target), 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS[runtime.provider]])
        return [node.op_type for node in onnx.load(target).graph.node]


def fuses_scales(runtime: Runtime) -> bool:
    """Whether BatchNormalization and Mul by a constant behind a convolution are gone in the runtime."""
    net = Net(0)
    x = net.bn(net.conv(net.input((1, 32, 28, 28)), 32, 3))
    y = net.op("Mul", net.conv(net.relu(x), 32, 3), net.constant(np.full((1, 32, 1, 1), 2.0)))
    return not {"BatchNormalization", "Mul"} & set(kept(runtime, net.model(y)))


def fuses_sums(runtime: Runtime) -> bool:
    """Whether the sum of two convolutions' images is gone in the runtime."""
    net = Net(0)
    x = net.relu(net.input((1, 32, 28, 28)))
    return "Add" not in kept(runtime, net.model(net.add(net.conv(x, 32, 3), net.conv(x, 32, 1))))


def splits(runtime: Runtime) -> bool:
    """Whether ``Conv(Concat(Resize(x), y))`` is faster with the part of x in front of the Resize."""
    models = []
    for apart in (False, True):
        net = Net(0)
        x = net.relu(net.input((1, 128, 28, 28)))
        skip = net.relu(net.op("Resize", x, "", net.constant([1, 1, 2, 2]), mode="nearest"))
        if apart:
            low = net.op("Resize", net.conv(x, 128, 1), "", net.constant([1, 1, 2, 2]), mode="nearest")
            y = net.add(net.conv(skip, 128, 1), low)
        else:
            large = net.op("Resize", x, "", net.constant([1, 1, 2, 2]), mode="nearest")
            y = net.conv(net.op("Concat", large, skip, channels=256, axis=1), 128, 1)
        models.append(net.model(net.relu(y)))
    together, taken = times(runtime, models, 4 * _SECONDS)
    return statistics.median(b / a for a, b in zip(together, taken, strict=True)) < 0.97


def calibrate(runtime: Runtime) -> Rates:
    """Measure the rates of a provider."""
    launch = slope(runtime, lambda net, x: net.op("Sigmoid", x), 1, 1)
    depthwise, dense = speed(runtime, 3, "all"), speed(runtime, 3, "one")
    return Rates(
        speed(runtime, 1, "one"),
        dense,
        speed(runtime, 3, "four"),
        depthwise,
        products(runtime),
        (speed(runtime, 3, "all", 2) / depthwise, speed(runtime, 3, "one", 2) / dense),
        elements(runtime, launch),
        launch,
        fuses_scales=fuses_scales(runtime),
        fuses_sums=fuses_sums(runtime),
        splits=splits(runtime),
        measured=True,
    )


def rep_block(*kernels: int, depthwise: bool = False, skip: bool = True) -> Layer:
    """Return a layer of parallel convolutions with BatchNormalization, and one of the identity, in training form."""

    def layer(net: Net, x: str) -> str:
        group = net.channels[x] if depthwise else 1
        branches = [net.conv_bn(x, net.channels[x], kernel, group=group) for kernel in kernels]
        return net.relu(net.add(*branches, *([net.bn(x)] if skip else [])))

    return layer


def bottleneck(net: Net, x: str) -> str:
    """Add a 1x1, a 3x3 and a 1x1 convolution in a row."""
    channels = net.channels[x]
    wide = net.conv(x, 2 * channels, 1)
    return net.relu(net.conv(net.conv(wide, 2 * channels, 3), channels, 1))


BLOCKS: dict[str, Layer] = {
    "RepVGG": rep_block(3, 1),
    "MobileOne": rep_block(3, 3, 3, 3, 1),
    "MobileOne, depthwise": rep_block(3, 3, 3, 3, 1, depthwise=True),
    "RepLKNet": rep_block(13, 5, depthwise=True, skip=False),
    "1x1, 3x3 and 1x1 in a row": bottleneck,
    "Conv and BatchNormalization": rep_block(3, skip=False),
}


def check(runtime: Runtime) -> None:
    """Print the time of blocks after folding, as a share of that before: measured and estimated."""
    sys.stdout.write("| block | channels | image | measured | estimated |\n|---|---|---|---|---|\n")
    for channels, side in ((16, 14), (64, 28), (128, 56)):
        for name, layer in BLOCKS.items():
            model = row(layer, channels, side, 4)
            result = optimize(model, options=Options(verify=False, provider=runtime.provider))
            if not result.report.folds:
                sys.stdout.write(f"| {name} | {channels} | {side} | left alone | |\n")
                continue
            before, after = times(runtime, [model, result.model], 2 * _SECONDS)
            measured = statistics.median(b / a for a, b in zip(before, after, strict=True))
            old, new = map(sum, zip(*(fold.seconds for fold in result.report.folds), strict=True))
            sys.stdout.write(f"| {name} | {channels} | {side} | {measured:.2f} | {new / old:.2f} |\n")
            sys.stdout.flush()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="How fast an execution provider is, for onnxrep/rates.py")
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument(
        "--check-only", action="store_true", help="only compare estimates of the rates in use with times"
    )
    arguments = parser.parse_args()
    runtime = Runtime(arguments.provider, threads=1)
    runtime.check()
    sys.stdout.write(
        f"{machine.processor()}, ONNX Runtime {onnxruntime.__version__}, {arguments.provider}, one thread\n"
    )
    if not arguments.check_only:
        found, known = calibrate(runtime), RATES[arguments.provider]
        sys.stdout.write(f"{'rate':14}{'measured':>14}{'in use':>14}\n")
        for name, value in vars(found).items():
            old = getattr(known, name)
            cells = [f"{v:.2g}" if isinstance(v, float) else _plain(v) for v in (value, old)]
            sys.stdout.write(f"{name:14}{cells[0]:>14}{cells[1]:>14}\n")
    check(runtime)
    return 0


def _plain(value: object) -> str:
    """Return a pair of shares, or a flag."""
    return ", ".join(f"{v:.2f}" for v in value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
