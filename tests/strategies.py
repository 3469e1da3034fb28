"""Random maps and random linear regions, exact by construction: small integers and powers of two."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from hypothesis import strategies as st

from models.net import Net
from onnxrep.lattice import Geometry, Map

seeds = st.integers(0, 2**32 - 1)


@st.composite
def windows(draw, *, aligned_to=None, axes=None, stride=None):
    """Draw ``(kernel, dilation, pads, stride)`` per axis; ``aligned_to = (stride, size)`` fixes the alignment."""
    axes = draw(st.integers(1, 3)) if axes is None else axes
    kernel, dilation, begins, ends, strides = [], [], [], [], []
    for axis in range(axes):
        k = draw(st.integers(1, 4 if axes < 3 else 2))
        d = draw(st.integers(1, 3)) if k > 1 else 1
        reach = d * (k - 1) + 1
        if aligned_to is None:
            b, e = draw(st.integers(0, reach)), draw(st.integers(0, reach))
            s = draw(st.integers(1, 3)) if stride is None else stride
        else:
            s, size = aligned_to[0][axis], aligned_to[1][axis]
            total = size + reach
            b = draw(st.integers(0, max(total, 0)))
            e = total - b
        kernel.append(k)
        dilation.append(d)
        begins.append(b)
        ends.append(e)
        strides.append(s)
    return kernel, dilation, begins, ends, strides


def map_of(window, outputs, inputs, group, rng, bound=4):
    """Return the map of a convolution with integer weights."""
    kernel, dilation, begins, ends, strides = window
    taps = tuple(tuple(d * k - b for k in range(n)) for n, d, b in zip(kernel, dilation, begins, strict=True))
    size = tuple(b + e - d * (n - 1) - 1 for n, d, b, e in zip(kernel, dilation, begins, ends, strict=True))
    geometry = Geometry(outputs, inputs, group, taps, tuple(strides), size)
    return Map(geometry, rng.integers(-bound, bound + 1, geometry.weight_shape).astype(np.float64))


def transposed_of(window, outputs, inputs, group, rng):
    """Return the map of a transposed convolution with the same attributes, and output padding where one is allowed."""
    kernel, dilation, begins, ends, strides = window
    plain = map_of(window, outputs, inputs, group, rng)
    extra = [int(rng.integers(s)) for s in strides]
    columns = zip(kernel, dilation, begins, ends, extra, strict=True)
    size = tuple(d * (k - 1) + 1 + o - b - e for k, d, b, e, o in columns)
    return Map(replace(plain.geometry, size=size, mode="transpose"), plain.weight)


@st.composite
def groups(draw):
    """Draw ``(outputs, inputs, group)``."""
    group = draw(st.sampled_from([1, 1, 2, 3]))
    return group * draw(st.integers(1, 2)), group * draw(st.integers(1, 2)), group


@dataclass
class Region:
    """A random linear region: the model, and an input for it."""

    model: onnx.ModelProto
    x: np.ndarray


def random_region(seed: int) -> Region:
    """Return a random linear region of Convs, BatchNormalizations, scales, shifts, sums and residuals.

    Small integers and powers of two throughout, so that float32 results are exact.
    """
    rng = np.random.default_rng(seed)
    axes = int(rng.choice([1, 2, 2, 2, 3]))
    channels = int(rng.choice([2, 4, 4, 6]))
    net = Net(seed, exact=True, opset=int(rng.choice([7, 11, 13, 15, 17, 21])))
    sizes = [int(rng.integers(1, 9 if axes < 3 else 5)) for _ in range(axes)]
    dynamic = bool(rng.integers(0, 2))
    x = net.input([1, channels, *([f"size{i}" for i in range(axes)] if dynamic else sizes)])
    grower = _Grower(net, rng, axes)
    value = x
    for _ in range(int(rng.integers(1, 3))):
        value = grower.sum_of_branches(value, depth=2)
        if rng.integers(0, 3) == 0:
            value = net.relu(value)
    data = rng.integers(-3, 4, (1, channels, *sizes)).astype(np.float32)
    return Region(net.model(value), data)


class _Grower:
    """Grows a random region, keeping sizes equal where values are summed."""

    def __init__(self, net: Net, rng: np.random.Generator, axes: int) -> None:
        self.net, self.rng, self.axes = net, rng, axes

    def pick(self, *options):
        return options[int(self.rng.integers(len(options)))]

    def sum_of_branches(self, x: str, depth: int) -> str:
        """Return a sum of branches of one input, some of them the input itself."""
        net, rng = self.net, self.rng
        stride = self.pick(1, 1, 1, 2)
        keeps = stride == 1 and rng.integers(0, 2) == 0
        outputs = net.channels[x] if keeps else self.pick(2, 4, 6)
        size = [self.pick(-1, -1, 0, -2) if stride > 1 else -1 for _ in range(self.axes)]
        branches = []
        for _ in range(int(rng.integers(1, 5))):
            kind = int(rng.integers(0, 6))
            if kind == 0 and keeps:
                branches.append(self.dressed(x))
            elif kind == 1 and keeps and depth:
                branches.append(self.sum_of_branches_keeping(x, depth - 1))
            else:
                branches.append(self.dressed(self.aligned_conv(x, outputs, stride, size)))
        rng.shuffle(branches)
        return self.dressed(self.summed(branches))

    def sum_of_branches_keeping(self, x: str, depth: int) -> str:
        """Return a nested residual: ``x + branches`` of the same shape."""
        inner = [
            self.dressed(self.aligned_conv(x, self.net.channels[x], 1, [-1] * self.axes)) for _ in range(depth + 1)
        ]
        return self.dressed(self.summed([x, *inner]))

    def aligned_conv(self, x: str, outputs: int, stride: int, size: list[int]) -> str:
        """Add a Conv with the given stride and size constants, otherwise random."""
        rng, net = self.rng, self.net
        kernel, dilation, begins, ends = [], [], [], []
        for axis in range(self.axes):
            k = int(rng.integers(1, 5 if self.axes < 3 else 4))
            d = int(rng.integers(1, 3)) if k > 1 else 1
            total = size[axis] + d * (k - 1) + 1
            if total < 0:
                k, d, total = 3, 1, size[axis] + 3
            begin = int(rng.integers(0, total + 1)) if rng.integers(0, 3) == 0 else total // 2
            kernel.append(k)
            dilation.append(d)
            begins.append(begin)
            ends.append(total - begin)
        common = [g for g in (1, 2, 3, 4, 6) if net.channels[x] % g == 0 and outputs % g == 0]
        return net.conv(
            x,
            outputs,
            kernel,
            stride=stride,
            pads=[*begins, *ends],
            dilation=dilation,
            group=self.pick(*common),
            bias=bool(rng.integers(0, 2)),
        )

    def dressed(self, x: str) -> str:
        """Add scales, shifts, BatchNormalizations and ops that do nothing."""
        net, rng = self.net, self.rng
        for _ in range(int(rng.integers(0, 3))):
            kind = int(rng.integers(0, 10))
            if kind <= 2:
                x = net.bn(x)
            elif kind == 3:
                x = net.scale(x, self.pick([-1.0], 0.5, [2.0], net.per_channel(x)), first=bool(rng.integers(0, 2)))
            elif kind == 4:
                x = net.op(self.pick("Add", "Sub"), x, net.constant(self.pick([1.0], 0.0, net.per_channel(x))))
            elif kind == 5:
                x = net.op("Neg", x)
            elif kind == 6:
                x = net.op("Identity", x)
            elif kind == 7:
                x = net.op("Div", x, net.constant(self.pick(2.0, [-4.0], 0.5)))
            elif kind == 8:
                x = net.op("Sub", net.constant(self.pick([3.0], net.per_channel(x))), x, channels=net.channels[x])
            elif net.opset < 12:
                x = net.op("Dropout", x)
        return x

    def summed(self, values: list[str]) -> str:
        """Sum values in one of the ways in which exporters do."""
        net = self.net
        if len(values) == 1:
            return values[0]
        kind = int(self.rng.integers(0, 5))
        if kind == 0:
            return net.op("Sum", *values)
        if kind == 1:
            return net.balanced(*values)
        if kind == 2 and len(values) in (2, 4):
            return net.op("Mean", *values)
        if kind == 3:
            return net.op("Sub", values[0], net.add(*values[1:]))
        return net.add(*values)
