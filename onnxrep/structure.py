"""What a fold looks like, for its record: the nodes that went in and came out, and the taps of a merged kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.escape import printable
from onnxrep.graph import Edit, Scope
from onnxrep.lattice import Array
from onnxrep.lift import Facts
from onnxrep.report import records

_ATTRIBUTES = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "group", "axis", "perm", "transA", "transB")
"""Attributes that tell nodes of one op type apart for a person; those that say nothing special are left out."""

_UNSAID = {"strides": 1, "dilations": 1, "pads": 0}
_MOST_TAPS = 4096
"""Taps of a kernel beyond which they are not recorded: nobody could see them."""

_DIGITS = 4


def went_in(facts: Facts, positions: Iterable[int]) -> Iterator[records.RegionNode]:
    """Yield the records of nodes of a scope, with the values that join them."""
    scope = facts.scope
    for position in positions:
        node = scope.nodes[position]
        names = [str(v.name) for v in node.inputs if v.name]
        read = [name for name in names if not facts.is_constant(name)]
        dims = [_dims(facts, name) for name in names if facts.is_constant(name)]
        yield records.RegionNode(
            scope.node_label(position),
            node.op,
            dict(_attributes(node.attrs)),
            tuple(map(printable, read)),
            tuple(dims),
            tuple(map(printable, scope.outputs_of(position))),
        )


def came_out(scope: Scope, edit: Edit) -> Iterator[records.Emitted]:
    """Yield the records of the nodes that an edit writes."""
    dims: dict[str, tuple[int, ...]] = {}
    exact: dict[str, Array] = {}
    for part in edit.whole:
        dims |= {name: tuple(values.shape) for name, values in part.tensors}
        exact |= part.exact
    for node in edit.written:
        names = [str(v.name) for v in node.inputs if v.name]
        weight = next((name for name in names if len(dims.get(name, ())) > 1), "")
        shape = dims.get(weight, ())
        yield records.Emitted(
            printable(node.name or f"{node.op} -> {node.outputs[0].name}"),
            node.op,
            **_kernel(node, shape),
            inputs=tuple(printable(name) for name in names if name not in dims),
            constants=tuple(dims[name] for name in names if name in dims),
            outputs=tuple(printable(str(v.name)) for v in node.outputs),
            taps=_taps(exact[weight]) if node.op in ("Conv", "ConvTranspose") and weight in exact else (),
        )


def _dims(facts: Facts, name: str) -> tuple[int, ...]:
    """Return the dims of a constant."""
    constant = facts.constants.get(name)
    return tuple(constant.dims) if constant is not None else ()


def _attributes(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that a person wants to see; those that have the value that they have unsaid are left out."""
    for name in _ATTRIBUTES:
        value = given.get(name)
        if isinstance(value, str) and value != "NOTSET":
            yield name, printable(value)[:40]
        elif isinstance(value, int):
            if value != int(name == "group"):
                yield name, value
        elif isinstance(value, list) and any(v != _UNSAID.get(name) for v in value):
            yield name, value


def _kernel(node: gs.Node, weight: tuple[int, ...]) -> dict[str, Any]:
    """Return what is recorded of a convolution or product."""
    if node.op in ("MatMul", "Gemm") and weight:
        return {"channels": (weight[0], weight[1])}
    if node.op not in ("Conv", "ConvTranspose") or not weight:
        return {}
    attributes, group, ones = node.attrs, int(node.attrs.get("group", 1)), (1,) * (len(weight) - 2)
    return {
        "kernel_shape": tuple(attributes.get("kernel_shape", weight[2:])),
        "strides": tuple(attributes.get("strides", ones)),
        "dilations": tuple(attributes.get("dilations", ones)),
        "pads": tuple(attributes.get("pads", ())),
        "group": group,
        "channels": (weight[1] * group, weight[0]) if node.op == "Conv" else (weight[0], weight[1] * group),
    }


def _taps(weight: Array) -> tuple[float, ...]:
    """Return the root mean square of a weight ``(out, in/group, *taps)`` at each tap, in row-major order, rounded."""
    taps = weight.reshape(math.prod(weight.shape[:2]), -1)
    if taps.shape[1] > _MOST_TAPS:
        return ()
    squares = np.einsum("ij,ij->j", taps, taps) / max(len(taps), 1)
    return tuple(float(f"{v:.{_DIGITS}g}") for v in np.sqrt(squares))
