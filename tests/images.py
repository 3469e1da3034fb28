"""Random ops on images: every one that is lifted, with all its attributes, exact by construction."""

from __future__ import annotations

import numpy as np
from onnx import helper

from models.net import Net

OPSETS = (7, 9, 10, 11, 13, 15, 17, 18, 19, 21)
FAR = 2**31 - 1


class TooSmall(Exception):
    """A window does not fit into the image."""


class Images:
    """Grows a random graph on images.

    ``size`` holds each value's sizes where the input has ``sizes``, and ``grid`` its stride and size constant relative
    to where its branch began: size ``n`` becomes ``(n + c) // s + 1``.
    """

    def __init__(self, rng) -> None:
        self.rng = rng
        self.axes = int(rng.choice([1, 2, 2, 2, 3]))
        self.net = Net(int(rng.integers(1 << 30)), exact=True, opset=int(rng.choice(OPSETS)))
        self.static = bool(rng.integers(0, 2))
        self.channels = int(rng.choice([1, 2, 4, 4, 6]))
        self.batch = int(rng.integers(1, 3))
        self.sizes = tuple(int(n) for n in rng.integers(2, (24, 11, 7)[self.axes - 1], self.axes))
        if rng.integers(0, 2):
            self.sizes = tuple(n + n % 2 for n in self.sizes)
        named = ["batch", self.channels, *(f"size{i}" for i in range(self.axes))]
        self.x = self.net.input([self.batch, self.channels, *self.sizes] if self.static else named)
        self.size = {self.x: self.sizes}
        self.grid = {self.x: self.still}

    @property
    def still(self):
        """The grid of a value that is where its branch began."""
        return (1,) * self.axes, (-1,) * self.axes

    def pick(self, *options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    # -- inputs -----------------------------------------------------------------------------------------------------

    def image(self, batch: int, sizes) -> dict[str, np.ndarray]:
        return {"x": self.rng.integers(-3, 4, (batch, self.channels, *sizes)).astype(np.float32)}

    def feeds(self) -> list[dict[str, np.ndarray]]:
        if self.static:
            return [self.image(self.batch, self.sizes)]
        others = [tuple(n + 1 for n in self.sizes), tuple(2 * n - 1 for n in self.sizes)]
        others += [tuple(int(n) for n in self.rng.integers(1, 6, self.axes)) for _ in range(2)]
        return [self.image(1 + i % 2, sizes) for i, sizes in enumerate([self.sizes, *others])]

    def large(self) -> dict[str, np.ndarray]:
        """Return an image at which the arithmetic of two models can be compared: borders count little."""
        if self.static:
            return self.image(self.batch, self.sizes)
        return self.image(1, tuple(n * (8, 4, 3)[self.axes - 1] for n in self.sizes))

    # -- nodes ------------------------------------------------------------------------------------------------------

    def same(self, kind: str, *inputs: str, channels: int | None = None, **attributes) -> str:
        """Add a node that keeps the image where it is."""
        first = next(i for i in inputs if i in self.size)
        channels = self.net.channels[first] if channels is None else channels
        result = self.net.op(kind, *inputs, channels=channels, **attributes)
        self.size[result], self.grid[result] = self.size[first], self.grid[first]
        return result

    def moved(self, result: str, source: str, strides, constants, exact: bool = True) -> str:
        """Note that a node reads a source at a stride; ``exact=False``: not by the formula."""
        pairs = zip(self.size[source], strides, constants, strict=True)
        self.size[result] = tuple((n + c) // s + 1 for n, s, c in pairs)
        if min(self.size[result]) < 1 or any(n + c < 0 for n, c in zip(self.size[source], constants, strict=True)):
            raise TooSmall
        self.grid[result] = self.composed(self.grid[source], (strides, constants)) if exact else None
        return result

    @staticmethod
    def composed(first, second):
        """Return the grid of a grid's grid."""
        if first is None or second is None:
            return None
        (s1, c1), (s2, c2) = first, second
        strides = tuple(a * b for a, b in zip(s1, s2, strict=True))
        return strides, tuple(c + s * (1 + d) for c, s, d in zip(c1, s1, c2, strict=True))

    def weights(self, *shape: int) -> np.ndarray:
        return self.rng.choice([-2, -1, -1, 0, 1, 1, 1, 2], shape).astype(np.float32)

    def conv(self, x: str, outputs: int, kernel, strides, dilation, begins, ends, group=1, bias=None) -> str:
        """Add a Conv; ``bias``: None for any or none, False for none, a number for the same in all channels."""
        net = self.net
        names = [x, net.constant(self.weights(outputs, net.channels[x] // group, *kernel))]
        if bias is None and self.chance(0.5):
            names.append(net.constant(net.draw(outputs)))
        elif bias is not None and bias is not False:
            names.append(net.constant(np.full(outputs, bias)))
        result = net.op(
            "Conv",
            *names,
            channels=outputs,
            strides=list(strides),
            dilations=list(dilation),
            pads=[*begins, *ends],
            group=group,
        )
        constants = [b + e - d * (k - 1) - 1 for k, d, b, e in zip(kernel, dilation, begins, ends, strict=True)]
        return self.moved(result, x, strides, constants)

    def groups_for(self, x: str, outputs: int) -> int:
        inputs = self.net.channels[x]
        common = [g for g in (1, 1, 2, 3, inputs) if inputs % g == 0 and outputs % g == 0]
        return self.pick(*common)

    def pad(self, x: str, begins, ends, value: float = 0.0) -> str:
        pads = [0, 0, *begins, 0, 0, *ends]
        net = self.net
        if net.opset < 11:
            result = net.op("Pad", x, pads=pads, value=value)
        elif net.opset >= 18 and self.chance(0.3):
            axes = net.constant(range(2, 2 + self.axes), dtype=np.int64)
            result = net.op("Pad", x, net.constant([*begins, *ends], dtype=np.int64), net.constant(value), axes)
        elif value == 0 and self.chance(0.5):
            result = net.op("Pad", x, net.constant(pads, dtype=np.int64))
        else:
            result = net.op("Pad", x, net.constant(pads, dtype=np.int64), net.constant(value))
        return self.moved(result, x, (1,) * self.axes, [b + e - 1 for b, e in zip(begins, ends, strict=True)])

    def cut(self, x: str, first, last, steps) -> str:
        """Add a Slice that drops pixels at both ends of each axis and takes every so-manieth of the others."""
        starts, ends = list(first), [-m if m else FAR for m in last]
        if self.static and self.chance(0.3):
            starts = [a - n if a else 0 for a, n in zip(first, self.size[x], strict=True)]
            ends = [n - m for m, n in zip(last, self.size[x], strict=True)]
        axes = list(range(2, 2 + self.axes))
        result = self.slice_(x, starts, ends, axes, list(steps))
        return self.moved(result, x, steps, [-a - m - 1 for a, m in zip(first, last, strict=True)])

    def slice_(self, x: str, starts, ends, axes, steps, channels: int | None = None) -> str:
        net = self.net
        if net.opset < 10:
            return net.op("Slice", x, channels=channels, starts=starts, ends=ends, axes=axes)
        lists = [starts, ends, axes] if set(steps) == {1} and self.chance(0.5) else [starts, ends, axes, steps]
        return net.op("Slice", x, *(net.constant(v, dtype=np.int64) for v in lists), channels=channels)

    def split(self, x: str, parts: list[int]) -> list[str]:
        net = self.net
        names = [net.name("part") for _ in parts]
        if net.opset < 13:
            node = helper.make_node("Split", [x], names, axis=1, split=parts)
        elif net.opset >= 18 and len(set(parts)) == 1 and self.chance(0.5):
            node = helper.make_node("Split", [x], names, axis=1, num_outputs=len(parts))
        else:
            node = helper.make_node("Split", [x, net.constant(parts, dtype=np.int64)], names, axis=1)
        net.nodes.append(node)
        for name, channels in zip(names, parts, strict=True):
            net.channels[name], net.axes[name] = channels, self.axes
            self.size[name], self.grid[name] = self.size[x], self.grid[x]
        return names

    def concat(self, values: list[str]) -> str:
        return self.same("Concat", *values, channels=sum(self.net.channels[v] for v in values), axis=1)

    # -- steps: one op, or a few that belong together ----------------------------------------------------------------

    def window(self, x: str, stride: bool = True):
        """Return ``(kernel, strides, dilation, begins, ends)`` of a random window."""
        kernel, strides, dilation, begins, ends = [], [], [], [], []
        most = int(self.rng.integers(1, 3))
        for n in self.size[x]:
            k = int(self.rng.integers(1, 4 if self.axes < 3 else 3))
            d = self.pick(1, 1, 2, 3) if k > 1 else 1
            reach = d * (k - 1) + 1
            kind = self.pick("none", "same", "same", "any")
            b, e = {"none": (0, 0), "same": ((reach - 1) // 2, reach // 2)}.get(
                kind, (int(self.rng.integers(0, reach + 1)), int(self.rng.integers(0, reach + 1)))
            )
            if n + b + e < reach:
                k, d, b, e = 1, 1, 0, 0
            kernel.append(k)
            dilation.append(d)
            begins.append(b)
            ends.append(e)
            strides.append(int(self.rng.integers(1, most + 1)) if stride else 1)
        return kernel, strides, dilation, begins, ends

    def any_conv(self, x: str) -> str:
        kernel, strides, dilation, begins, ends = self.window(x)
        outputs = self.pick(self.net.channels[x], 2, 4)
        return self.conv(x, outputs, kernel, strides, dilation, begins, ends, self.groups_for(x, outputs))

    def pointwise(self, x: str, outputs: int = 0, bias=None) -> str:
        outputs = outputs or self.pick(self.net.channels[x], 2, 3, 4, 6)
        none, one = [0] * self.axes, [1] * self.axes
        return self.conv(x, outputs, one, one, one, none, none, self.groups_for(x, outputs), bias)

    def separable(self, x: str) -> str:
        """Add two depthwise Convs, one along each of two axes."""
        channels = self.net.channels[x]
        for axis in self.rng.permutation(self.axes)[:2]:
            kernel = [3 if a == axis else 1 for a in range(self.axes)]
            pads = [int(k == 3) for k in kernel]
            one = [1] * self.axes
            x = self.conv(x, channels, kernel, one, one, pads, pads, channels, self.pick(None, False, False))
        return x

    def low_rank(self, x: str) -> str:
        """Add 1x1 to few channels, a Conv, 1x1 to more."""
        return self.pointwise(self.any_conv(self.pointwise(x, self.pick(1, 2), self.pick(None, False))), bias=None)

    def dressed(self, x: str) -> str:
        """Add a scale, a shift, a BatchNormalization or an op that does nothing."""
        net = self.net
        match int(self.rng.integers(0, 10)):
            case 0 | 1 | 2:
                return self.same_as(x, net.bn(x))
            case 3:
                return self.same_as(x, net.scale(x, self.pick([-1.0], 0.5, [2.0], net.per_channel(x))))
            case 4:
                return self.same(self.pick("Add", "Sub"), x, net.constant(self.pick([1.0], net.per_channel(x))))
            case 5:
                return self.same(self.pick("Neg", "Identity"), x)
            case 6:
                return self.same("Div", x, net.constant(self.pick(2.0, [-4.0], 0.5)))
            case 7:
                return self.same("Sub", net.constant(self.pick([3.0], net.per_channel(x))), x)
            case 8:
                return self.same(self.pick("Add", "Sub"), x, x) if self.chance(0.3) else x
            case _:
                return self.same("Add", net.constant(net.per_channel(x), as_node=True), x)

    def same_as(self, x: str, result: str) -> str:
        self.size[result], self.grid[result] = self.size[x], self.grid[x]
        return result

    def pool(self, x: str, shape=None) -> str:
        """Add an AveragePool that divides by powers of two everywhere, also at the border."""
        net, counted = self.net, self.chance(0.6)
        if shape is None:
            kernel = [self.pick(1, 2, 2, 4) if self.chance(0.5) and counted else 2 for _ in range(self.axes)]
            strides = [self.pick(1, 2, k) for k in kernel]
            begins, ends = ([int(self.rng.integers(0, k)) * self.pick(0, 1) for k in kernel] for _ in range(2))
        else:
            kernel, strides, begins, ends = shape
            counted = any([*begins, *ends]) or counted
        dilation = [self.pick(1, 1, 2) if net.opset >= 19 and shape is None and counted else 1 for _ in kernel]
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": [*begins, *ends]}
        if counted:
            attributes["count_include_pad"] = 1
        if net.opset >= 19 and self.chance(0.5):
            attributes["dilations"] = dilation
        else:
            dilation = [1] * self.axes
        constants = [b + e - d * (k - 1) - 1 for k, d, b, e in zip(kernel, dilation, begins, ends, strict=True)]
        rounded_up = net.opset >= 10 and shape is None and max(kernel) == 2 and self.chance(0.25) and not any(ends)
        if rounded_up:
            attributes["ceil_mode"] = 1
        result = net.op("AveragePool", x, **attributes)
        if not rounded_up or all(s == 1 for s in strides):
            return self.moved(result, x, strides, constants)
        whole = all((n + c) % s == 0 for n, c, s in zip(self.size[x], constants, strides, strict=True))
        ceiled = [c + s - 1 for c, s in zip(constants, strides, strict=True)]
        return self.moved(result, x, strides, constants if whole and self.static else ceiled, whole and self.static)

    def any_pad(self, x: str) -> str:
        low = -1 if min(self.size[x]) > 3 and self.chance(0.5) else 0
        begins, ends = ([int(p) for p in self.rng.integers(low, 3, self.axes)] for _ in range(2))
        return self.pad(x, begins, ends, self.pick(0.0, 0.0, 1.0, -2.0))

    def any_cut(self, x: str) -> str:
        first, last = ([int(p) for p in self.rng.integers(0, 2 + (min(self.size[x]) > 4), self.axes)] for _ in range(2))
        steps = [self.pick(1, 1, 2, 3) if self.net.opset >= 10 else 1 for _ in range(self.axes)]
        return self.cut(x, first, last, steps)

    def channels_picked(self, x: str) -> str:
        """Take some channels, or put them in another order."""
        net, channels = self.net, self.net.channels[x]
        first = int(self.rng.integers(0, channels))
        last = int(self.rng.integers(first + 1, channels + 1))
        match int(self.rng.integers(0, 4)):
            case 0:
                ends = self.pick(last, FAR if last == channels else last, last - channels or FAR)
                return self.same_as(
                    x, self.slice_(x, [self.pick(first, first - channels)], [ends], [1], [1], last - first)
                )
            case 1 if channels % 2 == 0:
                return self.pick(*self.split(x, [channels // 2] * 2))
            case 1 | 2:
                order = self.rng.permutation(channels)
                indices = net.constant(order, dtype=np.int64)
                return self.same("Gather", x, indices, axis=1, channels=channels)
            case _:
                order = self.rng.integers(-channels, channels, int(self.rng.integers(1, channels + 2)))
                return self.same("Gather", x, net.constant(order, dtype=np.int64), axis=1, channels=len(order))

    def framed(self, x: str) -> str:
        """Add a Conv, a border of one value, often its bias, and a Conv that reads it."""
        value = self.pick(0.0, 1.0, -2.0)
        kernel, strides, dilation, begins, ends = self.window(x, stride=False)
        none = [0] * self.axes
        outputs = self.pick(self.net.channels[x], 2, 3)
        if self.chance(0.5):
            kernel, dilation = [1] * self.axes, [1] * self.axes
        begins, ends = (none, none) if self.chance(0.7) or max(kernel) == 1 else (begins, ends)
        x = self.conv(x, outputs, kernel, strides, dilation, begins, ends, bias=value)
        amounts = [int(p) for p in self.rng.integers(0, 3, self.axes)]
        x = self.pad(x, amounts, amounts[:: self.pick(1, -1)], value if self.chance(0.7) else 1.0)
        kernel, strides, dilation, _, _ = self.window(x)
        pads = none if self.chance(0.8) else [1] * self.axes
        return self.conv(x, self.pick(outputs, 2), kernel, strides, dilation, pads, pads)

    def shuffled(self, x: str) -> str:
        """Exchange groups of channels by Reshape, Transpose, Reshape."""
        net, channels = self.net, self.net.channels[x]
        groups = self.pick(*(g for g in (2, 3, channels) if channels % g == 0), channels)
        if self.static:
            front, back = [self.batch], list(self.size[x])
            first = net.constant([*front, groups, channels // groups, *back], dtype=np.int64)
            last = net.constant([*front, channels, *(back if self.chance(0.5) else [*back[:-1], -1])], dtype=np.int64)
        elif self.axes == 1:
            first = net.constant([0, groups, channels // groups, -1], dtype=np.int64)
            last = net.constant([0, channels, -1], dtype=np.int64)
        else:
            shape = net.op("Shape", x)
            batch = net.op("Gather", shape, net.constant([0], dtype=np.int64))
            space = net.op("Gather", shape, net.constant(range(2, 2 + self.axes), dtype=np.int64))
            middle = net.constant([groups, channels // groups], dtype=np.int64)
            first = net.op("Concat", batch, middle, space, axis=0)
            last = net.op("Concat", batch, net.constant([channels], dtype=np.int64), space, axis=0)
        parts = self.same("Reshape", x, first)
        turned = self.same("Transpose", parts, perm=[0, 2, 1, *range(3, 3 + self.axes)])
        net.axes[parts] = net.axes[turned] = self.axes + 1
        result = self.same("Reshape", turned, last)
        net.axes[result] = self.axes
        return result

    def unshuffled(self, x: str) -> str:
        """Add a SpaceToDepth."""
        if self.axes != 2 or any(n % 2 for n in self.size[x]):
            return self.focus(x)
        result = self.net.op("SpaceToDepth", x, channels=4 * self.net.channels[x], blocksize=2)
        return self.moved(result, x, (2, 2), (-2, -2))

    def focus(self, x: str) -> str:
        """Concat the four (2, 8) pixels of each block as channels."""
        if any(n % 2 for n in self.size[x]) or self.net.opset < 10 or self.net.channels[x] > 4:
            return self.pointwise(x)
        places = [tuple(int(p) for p in np.unravel_index(i, (2,) * self.axes)) for i in range(2**self.axes)]
        none, two = [0] * self.axes, [2] * self.axes
        parts = [self.cut(x, places[i], none, two) for i in self.rng.permutation(len(places))]
        result = self.concat(parts)
        self.grid[result] = self.composed(self.grid[x], (two, [-2] * self.axes))
        return result
