"""Growth: the time per node of folding as models get longer, without the end-to-end check.

``make bench-growth`` prints the table; where the machine has other work, compare the CPU time.
One chain is of blocks that fold, another of ops that do not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import onnx

from models.net import Net
from onnxrep import optimize
from onnxrep.options import Options

SIZES = (1_000, 6_000, 60_000, 100_000)
WIDTH = 4


def foldable(count: int) -> onnx.ModelProto:
    """Return a chain of blocks ``Relu(BN(C3) + BN(C1) + BN(x))`` of about ``count`` nodes."""
    net = Net(0)
    x = net.input((1, WIDTH, 8, 8))
    while len(net.nodes) < count:
        x = net.relu(net.add(net.conv_bn(x, WIDTH, 3), net.conv_bn(x, WIDTH, 1), net.bn(x)))
    return net.model(x)


def plain(count: int) -> onnx.ModelProto:
    """Return a chain of activations of about ``count`` nodes."""
    net = Net(0)
    x = net.input((1, WIDTH, 8, 8))
    while len(net.nodes) < count:
        x = net.op("Sigmoid", net.relu(x))
    return net.model(x)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, help="numbers of nodes")
    sizes = parser.parse_args(arguments).sizes
    kinds: dict[str, Callable[[int], onnx.ModelProto]] = {"folds": foldable, "does not fold": plain}
    sys.stdout.write("chain that            nodes   seconds  CPU seconds   CPU us per node   stages\n")
    for title, build in kinds.items():
        for size in sizes:
            model = build(size)
            start, busy = time.perf_counter(), time.process_time()
            result = optimize(model, options=Options(verify=False))
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            nodes = len(model.graph.node)
            stages = ", ".join(f"{name} {spent:.1f}" for name, spent in result.report.seconds.items())
            sys.stdout.write(f"{title:18}{nodes:9}{seconds:10.2f}{busy:13.2f}{1e6 * busy / nodes:18.0f}   {stages}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
