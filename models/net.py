"""A small language for building graphs in plain onnx, as an exporter would write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Size = int | Sequence[int]


class Net:
    """A graph under construction; every method adds nodes and returns the name of the value that they make.

    With ``exact=True`` all parameters are small integers or powers of two, so that float32 arithmetic makes no rounding
    and two ways of computing the same function must agree bit for bit.
    """

    def __init__(
        self, seed: int = 0, *, opset: int = 17, dtype: Any = np.float32, exact: bool = False, folded: bool = False
    ) -> None:
        """``folded``: write Conv with bias where the training form has Conv and BatchNormalization."""
        self.rng = np.random.default_rng(seed)
        self.opset, self.dtype, self.exact, self.folded = opset, np.dtype(dtype), exact, folded
        self.channels: dict[str, int] = {}
        self.axes: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    # -- values -----------------------------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        """Return a fresh name."""
        self._count += 1
        return f"{kind}_{self._count}"

    def input(self, shape: Sequence[int | str], name: str = "x") -> str:
        """Add a graph input of shape ``[N, C, ...]``; names stand for dynamic sizes."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        if len(shape) > 1 and isinstance(shape[1], int):
            self.channels[name] = shape[1]
        self.axes[name] = len(shape) - 2
        return name

    def constant(self, values: Any, *, as_node: bool = False, dtype: Any = None) -> str:
        """Add an initializer, or a Constant node."""
        array = np.asarray(values, self.dtype if dtype is None else dtype)
        name = self.name("constant" if as_node else "parameter")
        if as_node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, channels: int | None = None, name: str = "", **attributes: Any) -> str:
        """Add any node with one output; it keeps the first input's channels unless told otherwise."""
        output = name or self.name(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"node_{output}", **attributes))
        first = next((i for i in inputs if i in self.axes), "")
        if channels is not None or first in self.channels:
            self.channels[output] = self.channels[first] if channels is None else channels
        if first:
            self.axes[output] = self.axes[first]
        return output

    def model(self, *outputs: str, ir_version: int = 10) -> onnx.ModelProto:
        """Return the checked model."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        results = []
        for output in outputs:
            shape = [None] * (self.axes[output] + 2) if output in self.axes else None
            results.append(helper.make_tensor_value_info(output, kind, shape))
        graph = helper.make_graph(self.nodes, "net", self.inputs, results, self.initializers)
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=ir_version, producer_name="models.net")
        onnx.checker.check_model(model, full_check=self.dtype in (np.float32, np.float16))
        return model

    # -- parameters -------------------------------------------------------------------------------------------------

    def draw(self, *shape: int, scale: float | None = None) -> NDArray[Any]:
        """Return random numbers: small integers if the net is exact, else normal ones."""
        if self.exact:
            return self.rng.integers(-3, 4, shape).astype(self.dtype)
        return np.asarray(self.rng.standard_normal(shape) * (1.0 if scale is None else scale), self.dtype)

    # -- layers -----------------------------------------------------------------------------------------------------

    def conv(
        self,
        x: str,
        outputs: int,
        kernel: Size,
        *,
        stride: Size = 1,
        pads: Sequence[int] | int | None = None,
        dilation: Size = 1,
        group: int = 1,
        bias: bool = False,
        weight: NDArray[Any] | None = None,
        **attributes: Any,
    ) -> str:
        """Add a Conv; ``pads=None`` centres an odd kernel."""
        axes = self.axes[x]
        shape, steps, strides = _sizes(kernel, axes), _sizes(dilation, axes), _sizes(stride, axes)
        inputs_ = self.channels[x] // group
        if pads is None:
            pads = [d * (k - 1) // 2 for k, d in zip(shape, steps, strict=True)] * 2
        elif isinstance(pads, int):
            pads = [pads] * (2 * axes)
        if weight is None:
            weight = self.draw(outputs, inputs_, *shape, scale=(inputs_ * np.prod(shape)) ** -0.5)
        names = [x, self.constant(weight)]
        if bias:
            names.append(self.constant(self.draw(outputs)))
        if "auto_pad" not in attributes:
            attributes["pads"] = list(pads)
        fixed: dict[str, Any] = {
            "kernel_shape": list(shape),
            "strides": list(strides),
            "dilations": list(steps),
            "group": group,
        }
        return self.op("Conv", *names, channels=outputs, **fixed, **attributes)

    def conv_bn(self, x: str, outputs: int, kernel: Size, **attributes: Any) -> str:
        """Add Conv and BatchNormalization, or the one Conv with bias that an exporter makes of them."""
        if self.folded:
            return self.conv(x, outputs, kernel, bias=True, **attributes)
        return self.bn(self.conv(x, outputs, kernel, **attributes))

    def bn(self, x: str, epsilon: float | None = None) -> str:
        """Add a BatchNormalization in inference."""
        channels = self.channels[x]
        if self.exact:
            epsilon = 2.0**-10
            gamma, beta, mean = (self.rng.integers(-3, 4, channels) for _ in range(3))
            variance = 4.0 ** self.rng.integers(0, 2, channels) - epsilon
        else:
            epsilon = 1e-5 if epsilon is None else epsilon
            gamma = self.rng.uniform(0.5, 1.5, channels) * self.rng.choice([-1, 1, 1], channels)
            beta, mean = self.rng.standard_normal((2, channels)) * 0.3
            variance = self.rng.uniform(0.3, 2.0, channels)
        parameters = [self.constant(p) for p in (gamma, beta, mean, variance)]
        return self.op("BatchNormalization", x, *parameters, epsilon=epsilon)

    def add(self, *values: str) -> str:
        """Add a left-deep chain of Adds."""
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value)
        return total

    def balanced(self, *values: str) -> str:
        """Add a balanced tree of Adds."""
        if len(values) == 1:
            return values[0]
        half = len(values) // 2
        return self.op("Add", self.balanced(*values[:half]), self.balanced(*values[half:]))

    def scale(self, x: str, factor: Any, *, first: bool = False, as_node: bool = False) -> str:
        """Multiply by a constant, which may be the first operand."""
        constant = self.constant(factor, as_node=as_node)
        return self.op("Mul", constant, x) if first else self.op("Mul", x, constant)

    def per_channel(self, x: str) -> NDArray[Any]:
        """Return random factors of shape ``[C, 1, ...]`` for a value."""
        return self.draw(self.channels[x], *(1,) * self.axes[x])

    def relu(self, x: str) -> str:
        """Add a Relu."""
        return self.op("Relu", x)

    def silu(self, x: str) -> str:
        """Add ``x * sigmoid(x)``."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def gelu(self, x: str) -> str:
        """Add a GELU in the five nodes of the exporters."""
        inner = self.op("Erf", self.op("Div", x, self.constant(np.sqrt(2.0))))
        product = self.op("Mul", x, self.op("Add", inner, self.constant(1.0)))
        return self.op("Mul", product, self.constant(0.5))

    def squeeze_excite(self, x: str) -> str:
        """Add a squeeze-and-excitation gate: a product of two data tensors."""
        channels = self.channels[x]
        pooled = self.op("GlobalAveragePool", x)
        hidden = self.relu(self.conv(pooled, max(channels // 4, 1), 1, bias=True))
        gate = self.op("Sigmoid", self.conv(hidden, channels, 1, bias=True))
        return self.op("Mul", x, gate)


def _sizes(size: Size, axes: int) -> tuple[int, ...]:
    """Return one size per axis."""
    return (size,) * axes if isinstance(size, int) else tuple(size)
