"""Regions that are exact and cheap by construction: each must end as a single Conv."""

from __future__ import annotations

import numpy as np
import onnx

from models.net import Net
from tests.images import FAR
from tests.tools import folded, ops

SUM, CHAIN = "SUM", "COMPOSE"


def share_left(kind: str, seeds) -> list[int]:
    """Return the seeds whose model does not end as one Conv and a Relu."""
    return [seed for seed in seeds if sorted(ops(folded(cheap(kind, seed))[0])) != ["Conv", "Relu"]]


def cheap(kind: str, seed: int) -> onnx.ModelProto:
    """Return a random model that is one Conv and a Relu."""
    rng = np.random.default_rng([seed, kind == SUM])
    maker = _Maker(rng)
    return maker.net.model(maker.net.relu(maker.tree(maker.x, 2) if kind == SUM else maker.chain(maker.x)))


class _Maker:
    """Makes such models."""

    def __init__(self, rng) -> None:
        self.rng = rng
        self.axes = int(rng.choice([1, 2, 2, 3]))
        self.net = Net(int(rng.integers(1 << 30)), exact=True, opset=int(rng.choice([11, 13, 17, 21])))
        self.width = int(rng.choice([2, 4]))
        sizes = [9] * self.axes if rng.integers(0, 2) else [f"size{i}" for i in range(self.axes)]
        self.x = self.net.input(["batch", self.width, *sizes])

    def pick(self, *options):
        return options[int(self.rng.integers(len(options)))]

    def conv(
        self, x: str, outputs: int, k: int, *, bias, pads=None, stride: int = 1, group: int = 1, d: int = 1
    ) -> str:
        shape = (outputs, self.net.channels[x] // group, *(k,) * self.axes)
        weight = self.rng.choice([-2, -1, 1, 2], shape).astype(np.float32)
        return self.net.conv(
            x, outputs, k, pads=pads, stride=stride, group=group, dilation=d, bias=bool(bias), weight=weight
        )

    # -- sums -------------------------------------------------------------------------------------------------------

    def tree(self, x: str, depth: int) -> str:
        """Sum a dense 3x3 Conv, whose box holds the others, and smaller branches in random order and nesting."""
        stride = self.pick(1, 1, 2)
        branches = [self.dressed(self.conv(x, self.width, 3, bias=self.pick(0, 1), stride=stride))]
        branches += [self.small(x, stride) for _ in range(int(self.rng.integers(1, 5)))]
        values = [branches[i] for i in self.rng.permutation(len(branches))]
        while len(values) > 1:
            at = int(self.rng.integers(0, len(values) - 1))
            values[at : at + 2] = [self.dressed(self.net.op(self.pick("Add", "Add", "Sub"), *values[at : at + 2]))]
        return values[0]

    def small(self, x: str, stride: int) -> str:
        """Add a branch whose taps lie in a 3x3 box."""
        width = self.width
        ways = ["pointwise", "depthwise", "dense", "even", "pool"]
        ways += ["identity", "identity"] if stride == 1 else ["cut"]
        bias = self.pick(0, 1)
        match self.pick(*ways):
            case "identity":
                return self.dressed(x)
            case "pointwise":
                return self.dressed(self.conv(x, width, 1, bias=bias, stride=stride))
            case "depthwise":
                return self.dressed(self.conv(x, width, 3, bias=bias, stride=stride, group=width))
            case "dense":
                return self.dressed(self.conv(x, width, 3, bias=bias, stride=stride, group=self.pick(1, 2)))
            case "even":
                begin = int(self.rng.integers(0, 2))
                pads = [begin] * self.axes + [1 - begin] * self.axes
                return self.dressed(self.conv(x, width, 2, bias=bias, stride=stride, pads=pads))
            case "cut":
                lists = [0] * self.axes, [FAR] * self.axes, range(2, 2 + self.axes), [stride] * self.axes
                inputs = [self.net.constant(v, dtype=np.int64) for v in lists]
                return self.dressed(self.net.op("Slice", x, *inputs))
            case _:
                kernel, strides = [2] * self.axes, [stride] * self.axes
                begin = int(self.rng.integers(0, 2))
                pads = [begin] * self.axes + [1 - begin] * self.axes
                pool = {"kernel_shape": kernel, "strides": strides, "pads": pads, "count_include_pad": 1}
                return self.dressed(self.net.op("AveragePool", x, **pool))

    def dressed(self, x: str) -> str:
        """Add scales and shifts that are not zero."""
        net = self.net
        for _ in range(int(self.rng.integers(0, 3))):
            vector = self.rng.choice([-2.0, -1.0, 1.0, 2.0], (net.channels[x], *(1,) * self.axes))
            match int(self.rng.integers(0, 4)):
                case 0:
                    x = net.op("Mul", x, net.constant(vector))
                case 1:
                    x = net.op("Add", net.constant(vector), x)
                case 2:
                    x = net.op("Div", x, net.constant([2.0]))
                case _:
                    ones = np.ones(net.channels[x])
                    numbers = [vector.reshape(-1), 2 * ones, -ones, ones - 2.0**-10]
                    x = net.op("BatchNormalization", x, *map(net.constant, numbers), epsilon=2.0**-10)
        return x

    # -- chains -----------------------------------------------------------------------------------------------------

    def chain(self, x: str) -> str:
        """Add two or three convolutions in a row that are one, and no dearer as one."""
        net, width, wide = self.net, self.width, 8 * self.width
        k = self.pick(1, 2, 3)
        outputs = self.pick(1, width)
        match int(self.rng.integers(0, 7)):
            case 0:  # bias-free pointwise in front
                x = self.conv(self.scaled(x), wide, 1, bias=0)
                x = self.conv(self.scaled(x), outputs, k, bias=1, stride=self.pick(1, 2))
            case 1:  # pointwise with bias, nothing padded behind it
                x = self.conv(self.dressed(x), wide, 1, bias=1)
                x = self.conv(self.dressed(x), outputs, k, bias=1, pads=0, d=self.pick(1, 2))
            case 2:  # pointwise behind
                x = self.conv(x, wide, k, bias=1, stride=self.pick(1, 2), group=self.pick(1, 2))
                x = self.conv(self.dressed(x), outputs, 1, bias=self.pick(0, 1))
            case 3:  # a frame of the bias
                vector = np.full(wide, 2.0)
                weight = net.constant(self.rng.choice([-2, -1, 1, 2], (wide, width, *(1,) * self.axes)))
                x = net.op("Conv", x, weight, net.constant(vector), channels=wide)
                pads = [0, 0, *(1,) * self.axes] * 2
                x = net.op("Pad", x, net.constant(pads, dtype=np.int64), net.constant(2.0))
                x = self.conv(x, outputs, k, bias=1, pads=0)
            case 4:  # padded first
                x = self.conv(x, wide, 1, bias=1, pads=1)
                x = self.conv(self.dressed(x), wide, k, bias=1, pads=0)
                x = self.conv(x, outputs, 1, bias=1)
            case 5:  # patches
                x = self.conv(x, wide, 2, bias=1, stride=2, pads=0)
                x = self.conv(self.dressed(x), width, 1, bias=1)
            case _:  # a Pad with zeros in front
                pads = [0, 0, *(1,) * self.axes] * 2
                x = net.op("Pad", self.scaled(x), net.constant(pads, dtype=np.int64))
                x = self.conv(x, width, 3, bias=1, pads=self.pick(0, 1))
        return self.dressed(x)

    def scaled(self, x: str) -> str:
        """Perhaps scale, without a shift."""
        return self.net.op("Mul", x, self.net.constant(self.pick([2.0], 0.5))) if self.pick(0, 1) else x
