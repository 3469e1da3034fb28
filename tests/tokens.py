"""Random products on rows and tokens: MatMul and Gemm chains of low rank, residuals, scales and shifts."""

from __future__ import annotations

import numpy as np

from models.net import Net
from tests.images import OPSETS


class Tokens:
    """Grows a random graph on ``[N, K]`` or ``[N, T, K]``; channels are those of the last axis."""

    def __init__(self, rng) -> None:
        self.rng = rng
        self.net = Net(int(rng.integers(1 << 30)), exact=True, opset=int(rng.choice(OPSETS)))
        self.rank = int(rng.integers(2, 4))
        self.static = bool(rng.integers(0, 2))
        self.width = int(rng.choice([2, 4, 6]))
        self.length = int(rng.integers(1, 6))
        front = [2, self.length][: self.rank - 1] if self.static else ["batch", "length"][: self.rank - 1]
        self.x = self.net.input([*front, self.width])
        self.net.channels[self.x] = self.width
        self.size = {self.x: self.rank}

    def pick(self, *options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def rows(self, batch: int, length: int) -> dict[str, np.ndarray]:
        shape = [batch, length][: self.rank - 1]
        return {"x": self.rng.integers(-3, 4, (*shape, self.width)).astype(np.float32)}

    def feeds(self) -> list[dict[str, np.ndarray]]:
        return [self.rows(2, self.length)] if self.static else [self.rows(2, self.length), self.rows(1, 1)]

    def large(self) -> dict[str, np.ndarray]:
        return self.rows(2, self.length)

    def grow(self) -> str:
        """Grow some blocks, and activations between them."""
        value = self.x
        for _ in range(int(self.rng.integers(1, 4))):
            value = self.pick(self.branches, self.branches, self.chain)(value)
            if self.chance(0.3):
                value = self.same("Relu", value)
        return value

    def readers(self) -> list[str]:
        """Grow maps, and products with an activation each that read the last."""
        value = self.chain(self.x) if self.chance(0.3) else self.x
        for _ in range(self.pick(1, 1, 2)):
            value = self.pick(self.adapter, self.adapter, self.product, self.branches)(value)
        outputs = []
        for _ in range(self.pick(2, 2, 3, 4)):
            read = self.product(self.dressed(value) if self.chance(0.3) else value)
            outputs.append(self.same("Relu", self.dressed(read) if self.chance(0.3) else read))
        return outputs

    def adapter(self, x: str) -> str:
        """Add products of low rank to a value, and perhaps a scale or shift."""
        result = self.same("Add", x, self.low_rank(x, self.net.channels[x]))
        return self.dressed(result) if self.chance(0.3) else result

    def same(self, kind: str, *inputs: str, channels: int | None = None, **attributes) -> str:
        first = next(i for i in inputs if i in self.size)
        channels = self.net.channels[first] if channels is None else channels
        result = self.net.op(kind, *inputs, channels=channels, **attributes)
        self.size[result] = self.rank
        return result

    def weights(self, *shape: int) -> str:
        return self.net.constant(self.rng.choice([-2, -1, 0, 1, 1, 2], shape))

    def chain(self, x: str) -> str:
        for _ in range(int(self.rng.integers(1, 4))):
            x = self.pick(self.product, self.product, self.low_rank, self.dressed, self.picked)(x)
        return x

    def product(self, x: str, outputs: int = 0) -> str:
        """Multiply by a constant, by MatMul or Gemm."""
        net, inputs = self.net, self.net.channels[x]
        outputs = outputs or self.pick(inputs, 2, 4, 6)
        if self.rank == 2 and self.chance(0.5):
            turned = self.chance(0.5)
            weight = self.weights(outputs, inputs) if turned else self.weights(inputs, outputs)
            shape = self.pick([outputs], [1, outputs], [1], [])
            biased = net.opset < 11 or self.chance(0.6)
            names = [x, weight, net.constant(net.draw(*shape))] if biased else [x, weight]
            factors = {"alpha": self.pick(1.0, 2.0, 0.5), "beta": self.pick(1.0, -1.0, 0.5)} if self.chance(0.4) else {}
            return self.same("Gemm", *names, channels=outputs, transB=int(turned), **factors)
        result = self.same("MatMul", x, self.weights(inputs, outputs), channels=outputs)
        if self.chance(0.5):
            bias = net.constant(net.draw(outputs))
            result = self.same("Add", *self.pick((result, bias), (bias, result)), channels=outputs)
        return result

    def low_rank(self, x: str, outputs: int = 0) -> str:
        """Multiply by two matrices of low rank, and perhaps a factor: an adapter."""
        result = self.product(self.product(x, self.pick(1, 2)), outputs or self.pick(self.net.channels[x], 4))
        return self.same("Mul", result, self.net.constant(self.pick(0.5, [2.0]))) if self.chance(0.5) else result

    def dressed(self, x: str) -> str:
        """Add a scale, a shift or a BatchNormalization."""
        net = self.net
        vector = self.pick([2.0], -0.5, net.draw(net.channels[x]), net.draw(1, net.channels[x]))
        match int(self.rng.integers(0, 6)):
            case 0 if self.rank == 2:
                return self.same_as(net.bn(x))
            case 1:
                return self.same("Mul", net.constant(vector), x)
            case 2:
                return self.same("Sub", net.constant(vector), x)
            case 3:
                return self.same(self.pick("Neg", "Identity"), x)
            case 4:
                return self.same("Div", x, net.constant(self.pick(2.0, [-4.0])))
            case _:
                return self.same(self.pick("Add", "Sub"), x, net.constant(vector))

    def same_as(self, result: str) -> str:
        self.size[result] = self.rank
        return result

    def picked(self, x: str) -> str:
        """Take some channels, or exchange two axes there and back."""
        net, channels = self.net, self.net.channels[x]
        if self.rank == 3 and self.chance(0.5):
            turned = self.same("Transpose", x, perm=[0, 2, 1])
            weight = self.weights(self.pick(channels, 3), channels)
            outputs = int(net.initializers[-1].dims[0])
            inner = self.same("MatMul", weight, turned, channels=outputs) if self.chance(0.7) else turned
            return self.same("Transpose", inner, perm=[0, 2, 1])
        order = self.rng.integers(0, channels, channels) if self.chance(0.5) else self.rng.permutation(channels)
        return self.same("Gather", x, net.constant(order, dtype=np.int64), axis=self.rank - 1)

    def branches(self, x: str) -> str:
        """Sum or concat branches of one value, perhaps the value itself."""
        first = self.chain(x)
        outputs = self.net.channels[first]
        found = [first]
        for _ in range(int(self.rng.integers(1, 4))):
            way = self.pick(self.product, self.low_rank)
            found.append(x if outputs == self.net.channels[x] and self.chance(0.4) else way(x, outputs))
        found = [self.dressed(v) if self.chance(0.3) else v for v in found]
        if self.chance(0.2):
            return self.same("Concat", *found, axis=self.rank - 1, channels=outputs * len(found))
        if self.chance(0.3):
            return self.same("Sum", *found)
        total = found[0]
        for value in found[1:]:
            total = self.same(self.pick("Add", "Add", "Sub"), total, value)
        return total
