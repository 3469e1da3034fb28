"""The float64 twin: the original graph, same weights, with every float tensor in double precision.

ONNX Runtime has no double kernel for convolutions, pools and some activations; those are lowered to ops that it can run
in double. What can neither run nor be lowered becomes a float32 *island* between casts, and is named in the report.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxrep import files
from onnxrep.escape import printable
from onnxrep.graph import DEFAULT_DOMAINS, Model, overridable
from onnxrep.proof.errors import NoTwin
from onnxrep.proof.judge import ROUNDOFF
from onnxrep.proof.lowering import LOWERINGS
from onnxrep.proof.scopes import distinct, graphs
from onnxrep.shapes import infer

FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())
"""Ops whose result is not a function of their inputs."""

WEIGHTED = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm", "BatchNormalization"))
"""Ops whose inputs but the first are weights, where they are initializers."""

_ISLANDS = frozenset(
    "Resize Upsample GridSample NonZero OneHot QuantizeLinear DequantizeLinear DynamicQuantizeLinear LSTM GRU RNN"
    " Attention RotaryEmbedding DFT STFT BlackmanWindow HammingWindow HannWindow MelWeightMatrix TfIdfVectorizer"
    " MeanVarianceNormalization BitCast".split()
)
"""Ops without a double kernel that can be trusted, and without a lowering."""

_FAR = int(np.iinfo(np.int64).max)
_LARGE = 1 << 16
"""Bytes from which on a weight may be kept apart."""

Keep = Callable[[onnx.TensorProto, NDArray[Any]], None]
"""Keeps the values of a tensor, and makes the tensor refer to them."""

MARK = "|kept"
"""Ends the op type in the names of nodes that were taken over: ONNX Runtime's complaints then name the op."""

_OWN_TYPE = frozenset(("NonMaxSuppression",))  # takes float32 only


class Twin:
    """A float64 model made from another.

    Attributes:
        model: the message, inputs and outputs in double where they were float.
        islands: op types that stay in float32, sorted.
        defaults: values of inputs for which a caller need not feed any.

    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: files.Folder | None,
        islands: frozenset[str] = frozenset(),
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        apart: Keep | None = None,
        *,
        moved: bool = False,
    ) -> None:
        """Build the twin.

        Args:
            model: the original.
            folder: where its external data lies.
            islands: op types to leave in float32 besides those known to have no double kernel.
            shapes: fixed input shapes, where a lowering needs to know sizes.
            apart: takes the large weights of the main graph, and makes the message refer to them.
            moved: move each weight at random by at most one rounding of its own type.

        Raises:
            NoTwin: a type or op in it cannot be expressed.

        """
        source = distinct(_inlined(model, shapes))
        self._overridable = overridable(source)
        self.defaults: dict[str, NDArray[Any]] = {}
        self._folder, self._apart = folder, apart
        self.forced = islands
        self.found: set[str] = set()
        self._moved = moved
        self._weights = {n for node in _nodes(source) if node.op_type in WEIGHTED for n in node.input[1:]}
        self.opset = max((o.version for o in source.opset_import if o.domain in DEFAULT_DOMAINS), default=0)
        view = Model(source, folder, ())
        self._names = view.names
        inferred = infer(view)
        self.model = onnx.ModelProto()
        self.model.ir_version = max(source.ir_version, 8)
        self.model.opset_import.extend(source.opset_import)
        self.model.graph.name = "twin"
        self._main = self.model.graph
        self.types: dict[str, int] = {}
        self.dims: dict[str, tuple[int | None, ...]] = {}
        self._arrays: dict[str, NDArray[np.float64]] = {}
        self._sources: dict[str, onnx.TensorProto] = {}
        self._pending: list[tuple[dict[str, onnx.TensorProto], onnx.GraphProto]] = []
        self._counts: dict[str, int] = {}
        for scope in view.scopes:
            self._learn(scope.proto, inferred.get(id(scope)))
        self.graph(source.graph, self._main)
        self._add_used_initializers()
        self.islands = sorted(self.found)

    # -- what is known ----------------------------------------------------------------------------------------------

    def _learn(self, graph: onnx.GraphProto, inferred: onnx.GraphProto | None) -> None:
        """Note the element types and dims of a graph's values."""
        for tensor in graph.initializer:
            self.types[tensor.name] = tensor.data_type
            self.dims[tensor.name] = tuple(tensor.dims)
        for source in (graph, inferred) if inferred is not None else (graph,):
            for value in (*source.input, *source.value_info, *source.output):
                if value.type.HasField("tensor_type"):
                    kind = value.type.tensor_type
                    self.types[value.name] = kind.elem_type or self.types.get(value.name, 0)
                    if kind.HasField("shape"):
                        self.dims[value.name] = tuple(
                            d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
                        )

    def is_float(self, name: str) -> bool:
        """Whether a value holds floats."""
        return self.types.get(name, 0) in FLOATS

    def rank(self, name: str) -> int:
        """Return the rank of a value."""
        if name not in self.dims:
            raise NoTwin(f"the rank of {printable(name)} is not known")
        return len(self.dims[name])

    # -- building ---------------------------------------------------------------------------------------------------

    def graph(self, source: onnx.GraphProto, target: onnx.GraphProto) -> None:
        """Translate one graph."""
        if source.sparse_initializer:
            raise NoTwin("sparse initializers")
        every = {t.name: t for t in source.initializer}
        own = {name: t for name, t in every.items() if name not in self._overridable}
        self._sources.update(own)
        read = [v for v in source.input if v.name not in own]
        self.defaults |= {name: self._values(t) for name, t in every.items() if name not in own}
        for values, copies in ((read, target.input), (source.output, target.output)):
            for value in values:
                copy = copies.add(name=value.name)
                copy.type.CopyFrom(value.type)
                if value.type.HasField("tensor_type"):
                    if self.is_float(value.name):
                        copy.type.tensor_type.elem_type = TensorProto.DOUBLE
                elif value.type.WhichOneof("value") is not None:
                    raise NoTwin(f"{printable(value.name)} is not a tensor")
        integers: dict[tuple[int, ...], str] = {}
        for node in source.node:
            Writer(self, target, node, integers).translate()
        self._pending.append((own, target))

    def _add_used_initializers(self) -> None:
        """Add the original initializers that are still read; lowerings have arranged others anew."""
        used = {name for node in _nodes(self.model) for name in node.input}
        used |= {v.name for graph in graphs(self.model.graph) for v in graph.output}
        for own, target in self._pending:
            for name in own.keys() & used:
                if own[name].data_type in FLOATS:
                    self.add(target, name, self._values(own[name]))
                else:
                    target.initializer.add().CopyFrom(self.tensor(own[name]))

    def add(self, graph: onnx.GraphProto, name: str, values: NDArray[Any]) -> None:
        """Add an initializer."""
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = graph.initializer.add(name=name, data_type=kind, dims=values.shape)
        if self._apart is None or values.nbytes < _LARGE or graph is not self._main:
            tensor.raw_data = values.tobytes()
        else:
            self._apart(tensor, np.ascontiguousarray(values))

    def array(self, name: str) -> NDArray[np.float64] | None:
        """Return an initializer that holds floats, in double; None for any other value."""
        tensor = self._sources.get(name)
        if name in self._arrays or tensor is None or tensor.data_type not in FLOATS:
            return self._arrays.get(name)
        values = self._values(tensor)
        if self._apart is None:  # what is kept apart must not lie in memory twice
            self._arrays[name] = values
        return values

    def _values(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return the values of an initializer; floats in double, and moved where that is wanted."""
        if tensor.data_type not in FLOATS:
            return files.array(tensor, self._folder)
        values = np.asarray(files.array(tensor, self._folder), np.float64)
        if self._moved and tensor.name in self._weights:
            rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
            values = values * (1.0 + ROUNDOFF[tensor.data_type] * rng.uniform(-1.0, 1.0, values.shape))
        return values

    def tensor(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return a tensor in double if it holds floats, with its data inside the message."""
        if tensor.data_type not in FLOATS and not files.is_external(tensor):
            return tensor
        values = files.array(tensor, self._folder)
        if tensor.data_type in FLOATS:
            values = np.asarray(values, np.float64)
        return numpy_helper.from_array(values, tensor.name)

    def fresh(self, base: str) -> str:
        """Return an unused name."""
        name, count = base, self._counts.get(base, 0)
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._counts[base] = count
        self._names.add(name)
        return name


def _inlined(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None) -> onnx.ModelProto:
    """Return the model without local functions, with its inputs' shapes fixed if asked for."""
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    if shapes:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        model = copy
        for value in model.graph.input:
            if value.name in shapes:
                del value.type.tensor_type.shape.dim[:]
                for size in shapes[value.name]:
                    value.type.tensor_type.shape.dim.add(dim_value=size)
    return model


class Writer:
    """Translates one node; also the small language in which lowerings are written."""

    def __init__(
        self, twin: Twin, target: onnx.GraphProto, node: onnx.NodeProto, integers: dict[tuple[int, ...], str]
    ) -> None:
        """``integers``: the vectors of integers that the target graph has already, with their names."""
        self.twin, self._target, self.node, self._integers = twin, target, node, integers
        self.opset = twin.opset
        self.attributes = {
            a.name: helper.get_attribute_value(a) for a in node.attribute if a.type != AttributeProto.GRAPH
        }
        for name, value in self.attributes.items():
            if isinstance(value, bytes):
                self.attributes[name] = value.decode()

    def translate(self) -> None:
        """Add the node, lowered, as an island, or as it is, to the target."""
        node = self.node
        if node.op_type in RANDOM and node.domain in DEFAULT_DOMAINS:
            raise NoTwin(f"{node.op_type} is not deterministic")
        floats = any(self.twin.is_float(n) for n in (*node.input, *node.output) if n)
        standard = node.domain in DEFAULT_DOMAINS
        if standard and floats and node.op_type in LOWERINGS and node.op_type not in self.twin.forced:
            LOWERINGS[node.op_type](self)
        elif floats and (not standard or node.op_type in _ISLANDS | _OWN_TYPE or node.op_type in self.twin.forced):
            self.island()
        else:
            self.plain()

    # -- the small language -----------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output, ``output`` or a new name, and return that."""
        output = output or self.twin.fresh(f"{self.node.output[0]}/{kind}")
        self._target.node.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.float64) -> str:
        """Add an initializer and return its name."""
        name = self.twin.fresh(f"{self.node.output[0]}/constant")
        array = np.asarray(values, dtype)
        self.twin.add(self._target, name, array)
        return name

    def array(self, name: str) -> NDArray[np.float64] | None:
        """Return the value of a double initializer, or None."""
        return self.twin.array(name)

    def rearranged(self, name: str, shape: Sequence[int], order: Sequence[int], final: Sequence[int]) -> str:
        """Return a tensor reshaped, transposed and reshaped again; at once if it is an initializer."""
        known = self.array(name)
        if known is not None:
            return self.constant(known.reshape(shape).transpose(order).reshape(final))
        first = self.op("Reshape", name, self.integers(shape))
        return self.op("Reshape", self.op("Transpose", first, perm=list(order)), self.integers(final))

    def flipped(self, name: str, axes: Sequence[int]) -> str:
        """Return a tensor reversed along axes; at once for an initializer."""
        known = self.array(name)
        if known is not None:
            return self.constant(np.flip(known, tuple(axes)))
        count = len(axes)
        return self.slice(name, [-1] * count, [-_FAR] * count, axes, [-1] * count)

    def per_tap(self, name: str, blocks: Sequence[int]) -> list[str]:
        """Return a weight's matrix ``(group, Co / group, Ci / group)`` for each tap; at once for an initializer."""
        known = self.array(name)
        count = blocks[3]
        if known is not None:
            cut = np.ascontiguousarray(np.moveaxis(known.reshape(blocks), 3, 0))
            return [self.constant(matrix) for matrix in cut]
        moved = self.rearranged(name, blocks, [3, 0, 1, 2], [count, *blocks[:3]])
        shape = self.integers(blocks[:3])
        return [self.op("Reshape", self.slice(moved, [k], [k + 1], [0], [1]), shape) for k in range(count)]

    def integers(self, values: Sequence[int]) -> str:
        """Return an int64 initializer; equal ones of a graph are one."""
        key = tuple(values)
        if key not in self._integers:
            self._integers[key] = self.constant(list(values), np.int64)
        return self._integers[key]

    def slice(
        self, x: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
    ) -> str:
        """Add a Slice in the form of the model's opset."""
        if self.opset >= 10:
            return self.op("Slice", x, *map(self.integers, (starts, ends, axes, steps)))
        if any(s != 1 for s in steps):
            raise NoTwin("a strided convolution before opset 10")
        return self.op("Slice", x, starts=list(starts), ends=list(ends), axes=list(axes))

    def pad(self, x: str, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> str:
        """Add a constant Pad of the spatial axes."""
        if not any((*begins, *ends)):
            return x
        pads = [0, 0, *begins, 0, 0, *ends]
        return self.raw_pad(x, pads, value)

    def raw_pad(self, x: str, pads: Sequence[int], value: float = 0.0) -> str:
        """Add a constant Pad of any axes in the form of the model's opset."""
        if self.opset >= 11:
            return self.op("Pad", x, self.integers(pads), self.constant(value))
        return self.op("Pad", x, pads=list(pads), value=value)

    def reduce(self, kind: str, x: str, axes: Sequence[int], output: str = "") -> str:
        """Add a reduction that keeps its axes."""
        as_input = self.opset >= (13 if kind == "ReduceSum" else 18)
        if as_input:
            return self.op(kind, x, self.integers(axes), output=output, keepdims=1)
        return self.op(kind, x, output=output, axes=list(axes), keepdims=1)

    def clip(self, x: str, low: float, high: float) -> str:
        """Clamp without Clip, whose form changed."""
        return self.op("Min", self.op("Max", x, self.constant(low)), self.constant(high))

    def window_slice(self, x: str, tap: Sequence[int], reach: Sequence[int], steps: Sequence[int]) -> str:
        """Return what one tap of a window of extent ``reach`` sees: ``x[tap : tap - (reach - 1) : step]`` per axis."""
        if all(size == 1 for size in (*reach, *steps)):
            return x
        ends = [t - (r - 1) or np.iinfo(np.int64).max for t, r in zip(tap, reach, strict=True)]
        return self.slice(x, tap, ends, range(2, 2 + len(tap)), steps)

    # -- nodes that stay --------------------------------------------------------------------------------------------

    def plain(self) -> None:
        """Add the node itself, its types and tensors in double."""
        name = self.twin.fresh(f"{self.node.op_type}{MARK}")
        copy = self._target.node.add(op_type=self.node.op_type, domain=self.node.domain, name=name)
        copy.input.extend(self.node.input)
        copy.output.extend(self.node.output)
        for attribute in self.node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                inner = copy.attribute.add(name=attribute.name, type=AttributeProto.GRAPH)
                inner.g.name = name
                self.twin.graph(attribute.g, inner.g)
            elif attribute.type == AttributeProto.TENSOR:
                inner = copy.attribute.add(name=attribute.name, type=AttributeProto.TENSOR)
                inner.t.CopyFrom(self.twin.tensor(attribute.t))
            elif attribute.name in ("value_float", "value_floats") and self.node.op_type == "Constant":
                values = np.asarray(helper.get_attribute_value(attribute), np.float64)
                copy.attribute.append(helper.make_attribute("value", numpy_helper.from_array(values)))
            elif attribute.name in ("to", "dtype") and attribute.i in FLOATS:
                copy.attribute.append(helper.make_attribute(attribute.name, TensorProto.DOUBLE))
            else:
                copy.attribute.add().CopyFrom(attribute)

    def island(self) -> None:
        """Add the node in its own types, between casts."""
        self.twin.found.add(self.node.op_type)
        copy = onnx.NodeProto()
        copy.CopyFrom(self.node)
        if any(a.type == AttributeProto.GRAPH for a in copy.attribute):
            raise NoTwin(f"{self.node.op_type} holds a graph and has no double kernel")
        for index, name in enumerate(copy.input):
            kind = self.twin.types.get(name, 0)
            if name and kind in FLOATS:
                copy.input[index] = self.op("Cast", name, to=_island_type(kind))
        outputs = list(copy.output)
        for index, name in enumerate(outputs):
            if name and self.twin.types.get(name, 0) not in FLOATS | {0}:
                continue
            if name and not self.twin.types.get(name, 0) and self.node.domain not in DEFAULT_DOMAINS:
                raise NoTwin(f"the type of {printable(name)} is not known ({self.node.op_type})")
            if name:
                copy.output[index] = self.twin.fresh(f"{name}/island")
        self._target.node.append(copy)
        for inner, name in zip(copy.output, outputs, strict=True):
            if inner != name:
                self.op("Cast", inner, output=name, to=TensorProto.DOUBLE)


def _island_type(kind: int) -> int:
    """Return the type in which an island runs: the original's, except that double and bfloat16 become float32."""
    return TensorProto.FLOAT16 if kind == TensorProto.FLOAT16 else TensorProto.FLOAT


def operators(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Yield ``(domain, op type)`` of every node, in subgraphs and local functions too."""
    for node in _nodes(model):
        yield node.domain, node.op_type


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a model."""
    stack = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            stack.extend(attribute.g.node)
            for graph in attribute.graphs:
                stack.extend(graph.node)
