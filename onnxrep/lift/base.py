"""What a lift is given and what it returns.

A lift reads one node and states it as a form over the node's data inputs: first without numbers (:class:`Lifted`),
then, only for regions that are worth it, with them. It understands a set of attributes and declines on any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.constants import Constant, Constants
from onnxrep.graph import Scope
from onnxrep.lattice import Array, Form, Geometry
from onnxrep.shapes import Shape, Shapes


class Decline(Exception):
    """A documented refusal to lift a node.

    ``code`` is stable and listed in :data:`onnxrep.reasons.REASONS`; ``detail`` says what was met here.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Branch:
    """How a node depends on one of its data inputs.

    Attributes:
        source: the value read.
        geometry: of the map.
        unit: the factor if the map is a multiple of the identity by construction (an Add's operand is 1, the second
            operand of Sub is -1), else None.

    """

    source: str
    geometry: Geometry
    unit: float | None = None


@dataclass(frozen=True)
class Lifted:
    """One node as a form over its data inputs.

    Attributes:
        branches: one per data input, in order.
        numbers: reads the weights and returns the maps, in the order of ``branches``, and the bias; may decline.
        anchor: whether the node is a convolution or the like, as opposed to an element-wise op.
        macs: multiply-accumulates per position of the result.
        kernels: how many kernels a runtime starts for the node.

    """

    branches: tuple[Branch, ...]
    numbers: Callable[[], Form]
    anchor: bool = False
    macs: float = 0.0
    kernels: int = 1


@dataclass(frozen=True)
class Facts:
    """What a lift may know about the values of a scope."""

    scope: Scope
    constants: Constants
    shapes: Shapes

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.scope.model.opset

    def is_constant(self, name: str) -> bool:
        """Whether a value depends on no data."""
        return self.constants.has(name)

    def constant(self, name: str, what: str) -> Constant:
        """Return a constant parameter; ``what`` names it in the refusal.

        Raises:
            Decline: it is not constant, or not a float tensor.

        """
        constant = self.constants.get(name)
        if constant is not None:
            return constant
        home = self.scope.home(name)
        if home is not None and name in home.initializers:
            raise Decline("overridable", f"{what} {name} is a graph input that a caller may override")
        if home is not None and name in home.producer and home.nodes[home.producer[name]].op == "DequantizeLinear":
            raise Decline("quantized", f"{what} {name} is dequantized from integers")
        raise Decline("not-constant", f"{what} {name} is computed from data")

    def shape(self, name: str) -> Shape:
        """Return a value's shape.

        Raises:
            Decline: not even the rank is known.

        """
        shape = self.shapes.of(name)
        if shape is None:
            raise Decline("unknown-shape", f"the rank of {name} is not known")
        return shape

    def image(self, name: str) -> tuple[int, int]:
        """Return ``(channels, spatial axes)`` of a value read as ``[N, C, ...]``.

        Raises:
            Decline: rank or channel count is not known.

        """
        shape = self.shape(name)
        if len(shape) < 2:
            raise Decline("unknown-shape", f"{name} has no channel axis")
        if not isinstance(shape[1], int):
            raise Decline("unknown-shape", f"the number of channels of {name} is not known")
        return shape[1], len(shape) - 2


def allow(node: gs.Node, known: Iterable[str]) -> None:
    """Decline a node that carries an attribute beyond the known ones."""
    extra = set(node.attrs) - set(known)
    if extra:
        raise Decline("unknown-attribute", f"{node.op} has the attribute {sorted(extra)[0]}")


def inputs(node: gs.Node, least: int, most: int) -> list[str]:
    """Return the input names, padded with empty ones to ``most``; decline on another count."""
    names = [v.name for v in node.inputs]
    while names and not names[-1]:
        names.pop()
    if not least <= len(names) <= most or not all(names[:least]):
        raise Decline("unknown-attribute", f"{node.op} has {len(names)} inputs")
    return names + [""] * (most - len(names))


def finite(values: Array, what: str) -> Array:
    """Return the values if all are finite, else decline."""
    if not np.all(np.isfinite(values)):
        raise Decline("not-finite", f"{what} holds NaN or infinity")
    return values
