"""Random compositions of every op that is lifted, exact by construction, at several sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from tests.images import Images, TooSmall
from tests.measures import is_exact
from tests.tokens import Tokens


@dataclass
class Case:
    """A model, and inputs for it at several sizes."""

    model: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]]

    @property
    def is_static(self) -> bool:
        """Whether the model takes inputs of one size only."""
        shape = self.model.graph.input[0].type.tensor_type.shape
        return all(d.dim_value for d in shape.dim)


def random_case(seed: int) -> Case:
    """Return a random model; what would round, or leaves no pixel, is drawn again."""
    for attempt in range(1000):
        rng = np.random.default_rng([seed, attempt])
        grower = Tokens(rng) if rng.integers(0, 6) == 0 else Grower(rng)
        try:
            value = grower.grow()
        except TooSmall:
            continue
        outputs = [value]
        inner = [v for v in grower.size if v not in (grower.x, value)]
        if inner and rng.integers(0, 8) == 0:
            outputs.append(grower.pick(*inner))
        if rng.integers(0, 20):
            grower.net.nodes = living(grower.net.nodes, outputs)
        model = grower.net.model(*outputs)
        if is_exact(model):
            return Case(model, [*grower.feeds(), grower.large()])
    raise AssertionError(f"seed {seed} leads to no exact model")


def random_readers(seed: int) -> Case:
    """Return a random map that several convolutions or products read, drawn again like :func:`random_case`."""
    for attempt in range(1000):
        rng = np.random.default_rng([seed, attempt, 1])
        grower = Tokens(rng) if rng.integers(0, 3) == 0 else Grower(rng)
        try:
            model = grower.net.model(*grower.readers())
        except TooSmall:
            continue
        if is_exact(model):
            return Case(model, [*grower.feeds(), grower.large()])
    raise AssertionError(f"seed {seed} leads to no exact model")


def living(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs need."""
    needed, found = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            found.append(node)
    return found[::-1]


class Grower(Images):
    """Grows blocks of branches."""

    def grow(self) -> str:
        """Grow some blocks, and activations between them."""
        value = self.x
        for _ in range(int(self.rng.integers(1, 4))):
            value = self.block(value)
            if self.chance(0.3):
                value = self.same("Relu", value)
        return value

    def readers(self) -> list[str]:
        """Grow maps that mostly read no neighbours, and convolutions with an activation each that read the last."""
        value = self.chain(self.x, 1, 0) if self.chance(0.3) else self.x
        for _ in range(self.pick(1, 1, 2)):
            grow = self.pick(self.adapter, self.pointwise, self.low_rank, lambda v: self.summed_branches(v, 0))
            value = grow(value)
        outputs = []
        for _ in range(self.pick(2, 2, 3, 4)):
            read = self.dressed(value) if self.chance(0.3) else value
            read = self.pick(self.pointwise, self.pointwise, self.any_conv, self.any_conv, self.separable)(read)
            outputs.append(self.same("Relu", self.dressed(read) if self.chance(0.3) else read))
        return [*outputs, value] if self.chance(0.1) else outputs

    def adapter(self, x: str) -> str:
        """Add two convolutions of low rank to a value."""
        inner = self.pointwise(self.pointwise(x, self.pick(1, 2)), self.net.channels[x])
        return self.added([x, self.dressed(inner) if self.chance(0.5) else inner])

    def block(self, x: str) -> str:
        """Add one of the larger structures."""
        blocks = [
            (5, lambda v: self.summed_branches(v, 1)),
            (2, lambda v: self.joined_branches(v, 1)),
            (2, lambda v: self.split_and_joined(v, 1)),
            (4, lambda v: self.chain(v, int(self.rng.integers(2, 5)), 1)),
            (2, self.transposed),
            (1, self.two_sources),
            (1, self.sandwich),
        ]
        weights = np.array([w for w, _ in blocks], float)
        return blocks[int(self.rng.choice(len(blocks), p=weights / weights.sum()))][1](x)

    def chain(self, x: str, length: int, depth: int) -> str:
        for _ in range(length):
            x = self.step(x, depth)
        return x

    def step(self, x: str, depth: int) -> str:
        """Add something random."""
        steps = [
            (4, self.any_conv),
            (3, self.pointwise),
            (1, self.separable),
            (4, self.dressed),
            (2, self.pool),
            (2, self.any_pad),
            (2, self.any_cut),
            (2, self.channels_picked),
            (1, self.shuffled),
            (1, self.unshuffled),
            (1, self.focus),
            (2, self.framed),
            (1, self.low_rank),
        ]
        if depth:
            deep = (self.summed_branches, self.summed_branches, self.joined_branches, self.split_and_joined)
            steps += [(2, lambda v, f=f: f(v, depth - 1)) for f in deep]
        weights = np.array([w for w, _ in steps], float)
        return steps[int(self.rng.choice(len(steps), p=weights / weights.sum()))][1](x)

    # -- branches ---------------------------------------------------------------------------------------------------

    def summed_branches(self, x: str, depth: int) -> str:
        """Sum branches of one value that end at the same size."""
        begun, self.grid[x] = self.grid[x], self.still
        branches = [self.first_branch(x, depth)]
        channels = self.net.channels[branches[0]]
        branches += [self.branch(x, branches[0], channels, depth) for _ in range(int(self.rng.integers(1, 4)))]
        order = [branches[i] for i in self.rng.permutation(len(branches))]
        return self.resumed(x, begun, self.summed(order))

    def joined_branches(self, x: str, depth: int) -> str:
        """Concat branches of one value that end at the same size."""
        begun, self.grid[x] = self.grid[x], self.still
        branches = [self.first_branch(x, depth)]
        for _ in range(int(self.rng.integers(1, 3))):
            channels = self.pick(1, 2, self.net.channels[x])
            branches.append(self.branch(x, branches[0], channels, depth))
        joined = self.concat([branches[i] for i in self.rng.permutation(len(branches))])
        return self.resumed(x, begun, self.dressed(joined) if self.chance(0.5) else joined)

    def split_and_joined(self, x: str, depth: int) -> str:
        """Split the channels, do something to each part, and put them together."""
        channels = self.net.channels[x]
        if channels < 2:
            return self.pointwise(x)
        count = self.pick(*(n for n in (2, 2, 3, 4) if n <= channels))
        edges = sorted(int(e) for e in self.rng.choice(np.arange(1, channels), count - 1, replace=False))
        widths = [b - a for a, b in zip([0, *edges], [*edges, channels], strict=True)]
        if channels % count == 0 and self.chance(0.7):
            widths = [channels // count] * count
        begun, self.grid[x] = self.grid[x], self.still
        parts = self.split(x, widths)
        done = [self.first_branch(parts[0], depth)]
        for part in parts[1:]:
            done.append(self.branch(part, done[0], self.pick(self.net.channels[part], 2), depth))
        if self.chance(0.3):
            done = [done[i] for i in self.rng.permutation(len(done))]
        return self.resumed(x, begun, self.concat(done))

    def resumed(self, x: str, begun, result: str) -> str:
        """Note where a value is that was grown from ``x`` as if that were the beginning."""
        self.grid[result] = self.composed(begun, self.grid[result])
        self.grid[x] = begun
        return result

    def first_branch(self, x: str, depth: int) -> str:
        """Add the branch that the others follow; often it keeps the size."""
        if self.chance(0.4):
            k = self.pick(1, 3, 3)
            ones, pads = [1] * self.axes, [k // 2] * self.axes
            channels = self.pick(self.net.channels[x], self.net.channels[x], 2, 4)
            group = self.groups_for(x, channels)
            return self.conv(x, channels, [k] * self.axes, [self.pick(1, 1, 2)] * self.axes, ones, pads, pads, group)
        return self.chain(x, int(self.rng.integers(1, 4)), depth)

    def branch(self, x: str, like: str, channels: int, depth: int) -> str:
        """Add a branch of ``x`` that ends where ``like`` does."""
        value = x
        for _ in range(int(self.rng.integers(0, 3))):
            value = self.pick(self.pointwise, self.dressed, self.dressed, self.any_pad, self.any_cut)(value)
        if depth and self.chance(0.2):
            value = self.summed_branches(value, depth - 1)
        wanted = self.wanted(value, like)
        if wanted is None:
            value, wanted = x, self.wanted(x, like)
        if wanted is None:
            return self.fitted(self.dressed(like), channels)
        return self.fitted(self.reaching(value, channels, *wanted), channels)

    def wanted(self, x: str, like: str):
        """Return the stride and size constant of an op that leads from ``x`` to where ``like`` is."""
        if self.grid[x] is None or self.grid[like] is None:
            return None
        strides, constants = [], []
        for s1, c1, s, c in zip(*self.grid[x], *self.grid[like], strict=True):
            if s % s1 or (c - c1) % s1:
                return None
            strides.append(s // s1)
            constants.append((c - c1) // s1 - 1)
        if self.static and self.chance(0.3):  # other constants lead to the same size
            least = [s * (p - 1) - n for s, p, n in zip(strides, self.size[like], self.size[x], strict=True)]
            constants = [a + int(self.rng.integers(0, s)) for a, s in zip(least, strides, strict=True)]
        return strides, constants

    def reaching(self, x: str, channels: int, strides, constants) -> str:
        """Add an op with a given stride and size constant."""
        ways = [self.reaching_conv]
        if all(s == 1 and c == -1 for s, c in zip(strides, constants, strict=True)):
            ways += [lambda *_: x, lambda *_: self.dressed(x), lambda *_: self.pointwise(x, channels)]
        if all(c < 0 for c in constants) and (self.net.opset >= 10 or set(strides) == {1}):
            ways.append(self.reaching_cut)
        if set(strides) == {1}:
            ways.append(self.reaching_pad)
        ways.append(self.reaching_pool)
        return self.pick(*ways)(x, channels, strides, constants)

    def reaching_conv(self, x: str, channels: int, strides, constants) -> str:
        kernel, dilation, begins, ends = [], [], [], []
        for c in constants:
            d = self.pick(1, 1, 2)
            k = max(int(self.rng.integers(1, 4)), 1 + -((c + 1) // d))
            total = c + d * (k - 1) + 1
            begin = total // 2 if self.chance(0.6) else int(self.rng.integers(0, total + 1))
            kernel.append(k)
            dilation.append(d)
            begins.append(begin)
            ends.append(total - begin)
        return self.conv(x, channels, kernel, strides, dilation, begins, ends, self.groups_for(x, channels))

    def reaching_cut(self, x: str, channels: int, strides, constants) -> str:
        first = [int(self.rng.integers(0, -c)) for c in constants]
        return self.cut(x, first, [-c - 1 - a for c, a in zip(constants, first, strict=True)], strides)

    def reaching_pad(self, x: str, channels: int, strides, constants) -> str:
        begins = [self.pick(0, c + 1, (c + 1) // 2) for c in constants]
        value = self.pick(0.0, 0.0, 1.0)
        return self.pad(x, begins, [c + 1 - b for c, b in zip(constants, begins, strict=True)], value)

    def reaching_pool(self, x: str, channels: int, strides, constants) -> str:
        kernel = [self.pick(2, 2, 4) for _ in constants]
        totals = [c + k for c, k in zip(constants, kernel, strict=True)]
        if any(t < 0 or t > 2 * k - 2 for t, k in zip(totals, kernel, strict=True)):
            return self.reaching_conv(x, channels, strides, constants)
        begins = [t // 2 for t in totals]
        return self.pool(x, (kernel, strides, begins, [t - b for t, b in zip(totals, begins, strict=True)]))

    def fitted(self, x: str, channels: int) -> str:
        return x if self.net.channels[x] == channels else self.pointwise(x, channels)

    def summed(self, values: list[str]) -> str:
        """Sum values in one of the ways in which exporters do."""
        match int(self.rng.integers(0, 6)):
            case 0:
                return self.same("Sum", *values)
            case 1 if len(values) in (2, 4):
                return self.same("Mean", *values)
            case 2:
                return self.same("Sub", values[0], self.added(values[1:]))
            case _:
                return self.added(values)

    def added(self, values: list[str]) -> str:
        total = values[0]
        for value in values[1:]:
            total = self.same("Add", *((total, value) if self.chance(0.5) else (value, total)))
        return total

    # -- larger structures ------------------------------------------------------------------------------------------

    def two_sources(self, x: str) -> str:
        """Sum convolutions of two values, one of them behind an activation."""
        begun, self.grid[x] = self.grid[x], self.still
        first = self.chain(x, 1, 0)
        second = self.same("Relu", self.branch(x, first, self.net.channels[first], 0))
        ones, none = [1] * self.axes, [-1] * self.axes
        parts = [self.reaching(first, 2, ones, none), self.reaching(second, 2, ones, none)]
        total = self.dressed(self.summed([self.fitted(p, 2) for p in parts]))
        return self.resumed(x, begun, total)

    def transposed(self, x: str) -> str:
        """Sum transposed convolutions that end at the same size, perhaps with something in front or behind."""
        channels = self.pick(2, 4, self.net.channels[x])
        stride = [int(self.rng.integers(1, 4)) for _ in range(self.axes)]
        extent = [int(self.rng.integers(1, 4)) for _ in range(self.axes)]
        if self.chance(0.3):
            x = self.pick(self.pointwise, self.dressed)(x)
        branches = [self.conv_transpose(x, channels, stride, extent) for _ in range(self.pick(1, 1, 2, 3))]
        branches = [self.dressed(b) if self.chance(0.4) else b for b in branches]
        result = self.summed(branches) if len(branches) > 1 else branches[0]
        if self.chance(0.5):
            result = self.pick(self.dressed, self.pointwise, self.any_conv)(result)
        return self.dressed(result) if self.chance(0.5) else result

    def conv_transpose(self, x: str, channels: int, strides, extents) -> str:
        """Add a ConvTranspose whose output has size ``s * (n - 1) + e``."""
        net = self.net
        kernel, dilation, begins, ends, more = [], [], [], [], []
        for s, e in zip(strides, extents, strict=True):
            k, d = int(self.rng.integers(1, 4)), self.pick(1, 1, 2)
            extra = int(self.rng.integers(0, max(s, d)))
            total = d * (k - 1) + 1 + extra - e
            if total < 0:
                k, d, extra, total = e, 1, 0, 0
            begin = int(self.rng.integers(0, total + 1))
            kernel.append(k)
            dilation.append(d)
            more.append(extra)
            begins.append(begin)
            ends.append(total - begin)
        inputs = net.channels[x]
        group = self.pick(*(g for g in (1, 1, 2, inputs) if inputs % g == 0 and channels % g == 0))
        names = [x, net.constant(self.weights(inputs, channels // group, *kernel))]
        if self.chance(0.5):
            names.append(net.constant(net.draw(channels)))
        attributes = {"output_padding": more} if any(more) else {}
        result = net.op(
            "ConvTranspose",
            *names,
            channels=channels,
            strides=list(strides),
            dilations=dilation,
            pads=[*begins, *ends],
            group=group,
            **attributes,
        )
        self.size[result] = tuple(s * (n - 1) + e for n, s, e in zip(self.size[x], strides, extents, strict=True))
        self.grid[result] = None
        if min(self.size[result]) < 1:
            raise TooSmall
        return result

    def sandwich(self, x: str) -> str:
        """Add products on the last axis between two Transposes, perhaps around a residual."""
        net, last = self.net, self.axes + 1
        there, back = [0, *range(2, last + 1), 1], [0, last, *range(1, last)]
        inner = self.same("Transpose", x, perm=there)
        for _ in range(int(self.rng.integers(1, 4))):
            inputs = net.channels[inner]
            outputs = self.pick(inputs, 2, 4)
            match int(self.rng.integers(0, 4)):
                case 0:
                    inner = self.same("Add", inner, net.constant(net.draw(inputs)))
                case 1:
                    inner = self.same("Mul", net.constant(net.draw(inputs)), inner)
                case _:
                    weight = net.constant(self.weights(inputs, outputs))
                    inner = self.same("MatMul", inner, weight, channels=outputs)
        result = self.same("Transpose", inner, perm=back)
        if net.channels[result] == net.channels[x] and self.chance(0.6):
            result = self.same("Add", x, result)
        return self.pick(self.dressed, self.pointwise)(result) if self.chance(0.5) else result
