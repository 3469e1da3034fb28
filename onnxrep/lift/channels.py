"""Ops that pick, place or reorder channels, or cut an image: Concat, Split, Slice, Gather, SpaceToDepth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.grouping import spans
from onnxrep.lattice import Form, Geometry, Map
from onnxrep.lift.base import FIRST, Branch, Decline, Facts, Lifted, allow, copies, inputs
from onnxrep.shapes import counted

_INFINITE = (1 << 31) - 1
_LARGEST_BLOCK, _LARGEST_WEIGHT = 64, 1 << 22


def lift_concat(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Concat of channels: each input is placed in rows of its own.

    The sizes of the inputs agree in every run that the graph survives, whether or not they are known to.
    """
    allow(node, ("axis",))
    names = [v.name for v in node.inputs]
    if not names or any(facts.is_constant(n) for n in names):
        raise Decline("not-linear")
    _check_axis(node, facts, names[0], 1)
    images = [facts.image(n) for n in names]
    rows = spans([channels for channels, _ in images])
    geometries = [
        Geometry.channels(rows[-1][1], channels, span, (0, channels), axes)
        for (channels, axes), span in zip(images, rows, strict=True)
    ]

    def numbers() -> Form:
        return Form(tuple(map(Map.channels, geometries)), None)

    return Lifted(tuple(copies(n, g) for n, g in zip(names, geometries, strict=True)), numbers)


def _check_axis(node: gs.Node, facts: Facts, source: str, default: int) -> None:
    """Decline a node that does not work along the channels of its input."""
    rank = len(facts.shape(source))
    if counted([int(node.attrs.get("axis", default))], rank) != [_channel_axis(facts, rank)]:
        raise Decline("not-linear")


def _channel_axis(facts: Facts, rank: int) -> int:
    """Return the axis of the channels in the present layout."""
    if facts.layout.kind == "flat":
        raise Decline("not-linear")
    return 1 if facts.layout == FIRST else rank - 1


def lift_split(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift one output of a Split of channels.

    Sizes are an attribute before opset 13 and an input since; without them the parts are equal, from opset 18 on the
    last one may be smaller.
    """
    allow(node, ("axis", "split", "num_outputs"))
    source, sizes_name = inputs(node, 1, 2)
    if facts.is_constant(source):
        raise Decline("constant")
    _check_axis(node, facts, source, 0)
    channels, axes = facts.image(source)
    count = len(node.outputs)
    sizes = node.attrs.get("split")
    if sizes_name:
        sizes = facts.integers(sizes_name, "the sizes")
    if sizes is None:
        each = -(-channels // count)
        sizes = [min(each, channels - k * each) for k in range(count)]
    if len(sizes) != count or sum(sizes) != channels or min(sizes) < 1:
        raise Decline("unknown-attribute", f"a Split of {channels} channels into {list(sizes)}")
    index = [v.name for v in node.outputs].index(output)
    geometry = Geometry.channels(sizes[index], channels, (0, sizes[index]), spans(sizes)[index], axes)
    share = 1.0 / count
    return Lifted((copies(source, geometry),), lambda: Form((Map.channels(geometry),), None), kernels=share)


def lift_gather(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Gather of channels by a constant list of indices."""
    allow(node, ("axis",))
    source, name = inputs(node, 2, 2)
    if facts.is_constant(source):
        raise Decline("constant")
    _check_axis(node, facts, source, 0)
    indices = facts.constant(name, "the indices")
    if len(indices.dims) != 1:
        raise Decline("not-linear")
    channels, axes = facts.image(source)
    chosen = [int(i) for i in indices.values()]
    if not chosen or any(not -channels <= i < channels for i in chosen):
        raise Decline("unknown-attribute", "an index outside the channels")
    return picked(source, [i % channels for i in chosen], channels, axes)


def picked(source: str, chosen: Sequence[int], channels: int, axes: int, kernels: float = 1.0) -> Lifted:
    """Return the lifted op whose output channel ``k`` is channel ``chosen[k]`` of its source."""
    first, count = chosen[0], len(chosen)
    if list(chosen) == list(range(first, first + count)):
        geometry = Geometry.channels(count, channels, (0, count), (first, first + count), axes)
        return Lifted((copies(source, geometry),), lambda: Form((Map.channels(geometry),), None), kernels=kernels)
    geometry = Geometry.pointwise(count, channels, 1, axes)

    def numbers() -> Form:
        weight = np.zeros(geometry.weight_shape)
        weight[np.arange(count), list(chosen)] = 1.0
        return Form((Map(geometry, weight),), None)

    return Lifted((Branch(source, geometry),), numbers, kernels=kernels)


def lift_slice(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Slice of channels and spatial axes: ``start >= 0``, positive step, end counted from the end or behind it.

    Positive ends and negative starts depend on the size: they need a static one.

    https://onnx.ai/onnx/operators/onnx__Slice.html
    """
    allow(node, ("axes", "ends", "starts"))
    source, *names = inputs(node, 1, 5)
    if facts.is_constant(source):
        raise Decline("constant")
    shape = facts.shape(source)
    starts, ends, where, steps = (
        node.attrs.get(key) if not name else facts.integers(name, f"the {key}")
        for key, name in zip(("starts", "ends", "axes", "steps"), names, strict=True)
    )
    if starts is None or ends is None:
        raise Decline("unknown-attribute", "a Slice without starts or ends")
    where = counted(range(len(starts)) if where is None else where, len(shape))
    if where is None:
        raise Decline("unknown-attribute", f"a Slice of a value of rank {len(shape)} along axes that it lacks")
    steps = steps or [1] * len(starts)
    channels, axes = facts.image(source)
    channel_axis = _channel_axis(facts, len(shape))
    chosen = range(channels)
    taps, stride, size = [(0,)] * axes, [1] * axes, [-1] * axes
    for axis, start, end, step in zip(where, starts, ends, steps, strict=True):
        if axis == channel_axis:
            chosen = range(channels)[slice(int(start), int(end), int(step))]
        elif facts.layout == FIRST and axis >= 2:
            tap, stride[axis - 2], size[axis - 2] = _cut(shape[axis], int(start), int(end), int(step))
            taps[axis - 2] = (tap,)
        elif (int(start), int(step)) != (0, 1) or int(end) < _INFINITE:
            raise Decline("not-linear")
    if not chosen:
        raise Decline("unknown-attribute", "a Slice that leaves nothing")
    plain = picked(source, list(chosen), channels, axes)
    inner = plain.branches[0].geometry
    cut = Geometry(channels, channels, channels, tuple(taps), tuple(stride), tuple(size))
    if cut.is_pointwise:
        return plain
    geometry = inner.after(cut)

    def numbers() -> Form:
        return Form((plain.numbers().maps[0].after(Map(cut, np.ones(cut.weight_shape))),), None)

    return Lifted((Branch(source, geometry),), numbers)


def _cut(length: object, start: int, end: int, step: int) -> tuple[int, int, int]:
    """Return ``(tap, stride, size constant)`` of a Slice along one axis."""
    if step < 1:
        raise Decline("not-linear", "a Slice with a negative step")
    if isinstance(length, int):
        span = range(length)[slice(start, end, step)]
        if not span:
            raise Decline("unknown-attribute", "a Slice that leaves nothing")
        stop = range(length)[slice(start, end)].stop
        return span.start, step, stop - length - span.start - 1
    if start < 0 or 0 <= end < _INFINITE:
        raise Decline("unknown-shape", "a Slice whose place depends on a size that is not known")
    return start, step, -start + min(end, 0) - 1


def lift_space_to_depth(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a SpaceToDepth: output channel ``(i * q + j) * C + c`` reads channel ``c`` at ``(q * h + i, q * w + j)``.

    https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html
    """
    allow(node, ("blocksize",))
    source = inputs(node, 1, 1)[0]
    if facts.is_constant(source):
        raise Decline("constant")
    channels, axes = facts.image(source)
    q = int(node.attrs.get("blocksize", 0))
    if axes != 2 or not 1 <= q <= _LARGEST_BLOCK or q * q * channels * channels > _LARGEST_WEIGHT:
        raise Decline("unknown-attribute", f"blocksize {q}")
    taps = (tuple(range(q)),) * 2
    geometry = Geometry(q * q * channels, channels, 1, taps, (q, q), (-q, -q), tiles=True)

    def numbers() -> Form:
        weight = np.zeros((q, q, channels, channels, q, q))
        for i in range(q):
            for j in range(q):
                weight[i, j, :, :, i, j] = np.eye(channels)
        return Form((Map(geometry, weight.reshape(geometry.weight_shape)),), None)

    return Lifted((Branch(source, geometry),), numbers)
