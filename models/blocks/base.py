"""What a block of the catalogue is: how it is built, and what must come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from models.net import Net

Build = Callable[[Net, str], str]
"""Adds a block to a net, given its input value, and returns its output value."""

TINY_ODD_EVEN = (1, 2, 5, 8)
"""Sizes at which a block with dynamic sizes is compared: both borders at once, odd, and even."""


@dataclass(frozen=True)
class Block:
    """One variation of a published block.

    Attributes:
        system: the block's name.
        used: where it is used.
        form: its training form, in the notation of ``docs/blocks.md``.
        variation: what is particular to this one.
        build: adds the block to a net.
        shape: of the input, ``(N, C, ...)``; a name stands for a dynamic size.
        left: op type -> number of nodes that must remain after folding (Constant nodes not counted).
        refused: codes of :data:`onnxrep.reasons.REASONS` that must be among the reasons given; empty if none need be.
        sizes: what dynamic sizes other than the batch become when the block is compared.
        missing: what could fold exactly as well and is left for now; empty if nothing.
        exact: whether exact parameters make it free of rounding (no sigmoid, root or division on the way).
    """

    system: str
    used: str
    form: str
    variation: str
    build: Build
    shape: tuple[int | str, ...]
    left: Mapping[str, int]
    refused: frozenset[str] = field(default_factory=frozenset)
    sizes: tuple[int, ...] = TINY_ODD_EVEN
    exact: bool = True
    missing: str = ""

    @property
    def name(self) -> str:
        """System and variation."""
        return f"{self.system}: {self.variation}" if self.variation else self.system

    def model(self, *, seed: int = 0, folded: bool = False, exact: bool = False, opset: int = 17) -> onnx.ModelProto:
        """Return a model that holds this block alone.

        Args:
            seed: for the parameters.
            folded: write Conv with bias where the training form has Conv and BatchNormalization, as exporters do.
            exact: draw small integers and powers of two, so that float32 makes no rounding.
            opset: of the model.
        """
        net = Net(seed, exact=exact, folded=folded, opset=opset)
        return net.model(self.build(net, net.input(self.shape)))

    def input_shapes(self) -> list[tuple[int, ...]]:
        """Return concrete input shapes at which to compare: one per size, the batch 1 and 2 in turn."""
        if all(isinstance(d, int) for d in self.shape):
            return [tuple(d for d in self.shape if isinstance(d, int))]
        shapes = []
        for index, size in enumerate(self.sizes):
            dims = [1 + index % 2 if i == 0 else size + (i == 3) for i in range(len(self.shape))]
            shapes.append(tuple(d if isinstance(d, int) else dims[i] for i, d in enumerate(self.shape)))
        return shapes


def same(_: Net, x: str) -> str:
    """Return the value itself: a raw identity."""
    return x


def chain(*steps: Build) -> Build:
    """Return one step after the other."""

    def build(net: Net, x: str) -> str:
        for step in steps:
            x = step(net, x)
        return x

    return build


def total(*branches: Build, join: Callable[..., str] = Net.add) -> Build:
    """Return the sum of branches that read the same value."""
    return lambda net, x: join(net, *[branch(net, x) for branch in branches])


def concat(*branches: Build, axis: int = 1) -> Build:
    """Return the Concat of branches that read the same value."""
    return lambda net, x: joined(net, [branch(net, x) for branch in branches], axis)


def joined(net: Net, values: Sequence[str], axis: int = 1) -> str:
    """Add a Concat of channels."""
    return net.op("Concat", *values, axis=axis, channels=sum(net.channels[v] for v in values))


def image(channels: int = 8, axes: int = 2) -> tuple[int | str, ...]:
    """Return an input shape with dynamic batch and sizes."""
    return ("batch", channels, *("height", "width", "depth")[:axes])


def count(model: onnx.ModelProto) -> dict[str, int]:
    """Return op type -> number of nodes of the main graph, constants not counted."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type != "Constant":
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
