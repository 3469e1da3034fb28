"""Sibling convolutions: convolutions that read one value, apart, and as one wider convolution whose result is cut.

    python -m benchmarks.siblings [--provider cpu]

Each is followed by the same activation in both forms. A figure is the time apart as a multiple of that joined: above 1,
joining gains. With ``Concat``, the pieces are put side by side afterwards, so that nothing has to be cut.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from itertools import product

import numpy as np
import onnx

from benchmarks.calibrate import times
from models.net import Net
from onnxrep.proof.sessions import PROVIDERS, Runtime
from onnxrep.timing.statistics import ratio

_COUNT = 2
"""Siblings."""
_ROWS = 3
"""Layers in a row, so that the start of a run weighs little."""
Build = Callable[[int, int], tuple[onnx.ModelProto, onnx.ModelProto]]
"""Makes both forms, apart and joined, for a number of channels and of positions a side."""


def convolutions(kernel: int, activation: str, *, cut: bool) -> Build:
    """Return the two forms of convolutions."""

    def build(channels: int, side: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        return _convolutions(channels, side, kernel, activation, cut, joined=False), _convolutions(
            channels, side, kernel, activation, cut, joined=True
        )

    return build


def _convolutions(
    channels: int, side: int, kernel: int, activation: str, cut: bool, *, joined: bool
) -> onnx.ModelProto:
    net = Net(0)
    act = net.relu if activation == "Relu" else net.silu
    x = net.relu(net.input((1, channels, side, side)))
    for _ in range(_ROWS):
        if joined:
            wide = act(net.conv(x, _COUNT * channels, kernel, bias=True))
            pieces = _cut(net, wide, 1, channels) if cut else [wide]
        else:
            pieces = [act(net.conv(x, channels, kernel, bias=True)) for _ in range(_COUNT)]
        if cut:  # each goes its own way for a while, as in a cross-stage block
            pieces = [net.relu(net.conv(piece, channels, 3, bias=True)) for piece in pieces]
        whole = pieces[0] if len(pieces) == 1 else net.op("Concat", *pieces, channels=_COUNT * channels, axis=1)
        x = net.relu(net.conv(whole, channels, 1, bias=True))
    return net.model(net.op("Sigmoid", x))


def products(channels: int, side: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the two forms of the products that make query, key and value of a single head."""
    forms = []
    for joined in (False, True):
        net = Net(0)
        x = net.input((1, side * side, channels))
        for _ in range(_ROWS):
            if joined:
                wide = net.op("MatMul", x, net.constant(_matrix(net, channels, 3 * channels)))
                wide = net.op("Add", wide, net.constant(net.draw(3 * channels)))
                query, key, value = _cut(net, wide, 2, channels, 3)
            else:
                query, key, value = (
                    net.op(
                        "Add",
                        net.op("MatMul", x, net.constant(_matrix(net, channels))),
                        net.constant(net.draw(channels)),
                    )
                    for _ in range(3)
                )
            scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]))
            x = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
        forms.append(net.model(net.op("Sigmoid", x)))
    return forms[0], forms[1]


def _matrix(net: Net, rows: int, columns: int | None = None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a random matrix that keeps magnitudes."""
    return net.draw(rows, columns or rows, scale=rows**-0.5).astype(np.float32)


def _cut(net: Net, x: str, axis: int, size: int, count: int = _COUNT) -> list[str]:
    """Add a Split into equal pieces."""
    names = [net.name("piece") for _ in range(count)]
    sizes = net.constant([size] * count, dtype=np.int64)
    net.nodes.append(onnx.helper.make_node("Split", [x, sizes], names, name=net.name("split"), axis=axis))
    for name in names:
        net.axes[name], net.channels[name] = net.axes[x], size
    return names


CASES: dict[str, tuple[Build, tuple[int, ...], tuple[int, ...]]] = {
    "1x1, Relu, cut": (convolutions(1, "Relu", cut=True), (16, 32, 64, 128, 256), (56, 28, 14, 7)),
    "1x1, SiLU, cut": (convolutions(1, "SiLU", cut=True), (16, 64, 256), (56, 28, 14)),
    "3x3, Relu, cut": (convolutions(3, "Relu", cut=True), (16, 64, 256), (28, 14)),
    "1x1, Relu, Concat": (convolutions(1, "Relu", cut=False), (16, 64, 256), (56, 28, 14)),
    "query, key, value": (products, (64, 192, 384), (14, 7)),
}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Sibling convolutions and products, apart and joined")
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu")
    runtime = Runtime(parser.parse_args().provider, threads=1)
    runtime.check()
    sys.stdout.write("| siblings | channels | side | apart / joined |\n|---|---|---|---|\n")
    for name, (build, widths, sides) in CASES.items():
        found = []
        for channels, side in product(widths, sides):
            apart, joined = times(runtime, build(channels, side), 1.0)
            found.append(ratio(apart, joined).median)
            sys.stdout.write(f"| {name} | {channels} | {side} | {found[-1]:.2f} |\n")
            sys.stdout.flush()
        sys.stdout.write(f"| {name} | all | all | {statistics.geometric_mean(found):.2f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
