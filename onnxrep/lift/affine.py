"""Ops that treat each channel and position by itself: BatchNormalization, scales, shifts, sums, and idle ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxrep.lattice import Form, Geometry, Map
from onnxrep.lift.base import Branch, Decline, Facts, Lifted, allow, copies, finite, inputs, suffix

_DEFAULT_EPSILON = float(np.float32(1e-5))


def lift_batch_normalization(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a BatchNormalization in inference: ``a = gamma / sqrt(var + eps)``, ``y = a * x + (beta - a * mean)``.

    Raises:
        Decline: it normalises with the batch's own statistics, or per element (``spatial=0``, before opset 9).

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    allow(node, ("epsilon", "momentum", "training_mode", "spatial"))
    if node.attrs.get("training_mode", 0) or any(v.name for v in node.outputs[1:]):
        raise Decline("training-mode", "BatchNormalization uses the statistics of its own batch")
    if not node.attrs.get("spatial", 1):
        raise Decline("unknown-attribute", "BatchNormalization with spatial=0 has statistics per position")
    source, *names = inputs(node, 5, 5)
    if facts.is_constant(source):
        raise Decline("constant")
    channels, axes = facts.image(source)
    shape = facts.shape(source)
    normalized = shape[1]
    if facts.layout.kind == "last" and len(shape) != 2:
        raise Decline("not-linear")
    words = ("the scale", "the bias", "the mean", "the variance")
    parameters = [facts.constant(n, w) for n, w in zip(names, words, strict=True)]
    if any(p.dims != (normalized,) for p in parameters):
        raise Decline("unknown-shape", f"BatchNormalization parameters do not fit {normalized} channels")
    if facts.layout.kind == "flat" and suffix(shape, channels) != len(shape) - 1:
        raise Decline("not-linear")
    repeats = channels // parameters[0].dims[0]
    epsilon = float(node.attrs.get("epsilon", _DEFAULT_EPSILON))

    def numbers() -> Form:
        gamma, beta, mean, variance = (finite(p.floats(), w) for p, w in zip(parameters, words, strict=True))
        if np.any(variance + epsilon <= 0):
            raise Decline("negative-variance", f"variance + epsilon is {np.min(variance + epsilon):.3g} in a channel")
        factors = gamma / np.sqrt(variance + epsilon)
        vectors = (factors, beta - factors * mean, np.abs(beta) + np.abs(factors * mean))
        factors, bias, sizes = (np.repeat(v, repeats) for v in vectors)
        return Form((Map.diagonal(factors, axes),), bias, sizes=sizes)

    return Lifted((Branch(source, Geometry.identity(channels, axes)),), numbers, biased=True)


def lift_mul(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift the product with a constant per channel, in either order of operands."""
    allow(node, ())
    first, second = inputs(node, 2, 2)
    source, other = (second, first) if facts.is_constant(first) else (first, second)
    return _scale(facts, source, other, inverse=False)


def lift_div(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift the quotient by a constant per channel; a constant divided by data is not linear."""
    allow(node, ())
    source, other = inputs(node, 2, 2)
    return _scale(facts, source, other, inverse=True)


def _scale(facts: Facts, source: str, other: str, inverse: bool) -> Lifted:
    """Return ``source * other`` or ``source / other``."""
    if facts.is_constant(source) or not facts.is_constant(other):
        raise Decline("not-linear")
    channels, axes = facts.image(source)
    factor = facts.constant(other, "the factor")
    shape = facts.shape(source)
    facts.check_per_channel(factor.dims, shape)

    def numbers() -> Form:
        values = finite(facts.per_channel(factor, shape), "the factor")
        if inverse and not np.all(values):
            raise Decline("not-finite", "a division by zero")
        return Form((Map.diagonal(1.0 / values if inverse else values, axes),), None)

    return Lifted((Branch(source, Geometry.identity(channels, axes)),), numbers)


def lift_add(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift the sum of two values of equal shape, or of a value and a constant per channel."""
    return _combination(node, facts, inputs(node, 2, 2), (1.0, 1.0))


def lift_sub(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a difference; either operand may be a constant per channel."""
    return _combination(node, facts, inputs(node, 2, 2), (1.0, -1.0))


def lift_sum(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Sum of any number of values of equal shape and constants per channel."""
    names = [v.name for v in node.inputs]
    return _combination(node, facts, names, (1.0,) * len(names))


def lift_mean(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Mean of values: their sum divided by their number."""
    names = [v.name for v in node.inputs]
    return _combination(node, facts, names, (1.0 / max(len(names), 1),) * len(names))


def _combination(node: gs.Node, facts: Facts, names: Sequence[str], factors: Sequence[float]) -> Lifted:
    """Return ``sum of factor_j * value_j``, where constants go to the bias."""
    allow(node, ())
    data = [(n, f) for n, f in zip(names, factors, strict=True) if not facts.is_constant(n)]
    shifts = [(n, f) for n, f in zip(names, factors, strict=True) if facts.is_constant(n)]
    if not data:
        raise Decline("constant")
    first = data[0][0]
    channels, axes = facts.image(first)
    shape = facts.shape(first)
    for name, _ in data[1:]:
        if not facts.shapes.equal(first, name):
            raise Decline("broadcast", f"{first} and {name} are not known to have the same shape")
    constants = [(facts.constant(n, "the summand"), f) for n, f in shifts]
    for constant, _ in constants:
        facts.check_per_channel(constant.dims, shape)

    def numbers() -> Form:
        maps = tuple(Map.identity(channels, axes, factor) for _, factor in data)
        bias = None
        for constant, factor in constants:
            values = factor * finite(facts.per_channel(constant, shape), "the summand")
            bias = values if bias is None else bias + values
        return Form(maps, bias)

    geometry = Geometry.identity(channels, axes)
    return Lifted(tuple(copies(n, geometry, f) for n, f in data), numbers, biased=bool(shifts))


def lift_neg(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a change of sign."""
    allow(node, ())
    return _multiple(facts, inputs(node, 1, 1)[0], -1.0, idle=False)


def lift_identity(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift an Identity."""
    allow(node, ())
    return _multiple(facts, inputs(node, 1, 1)[0], 1.0, idle=True)


def lift_dropout(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Dropout in inference, whose mask nobody takes."""
    allow(node, ("ratio", "seed"))
    source, _, training = inputs(node, 1, 3)
    if any(v.name for v in node.outputs[1:]):
        raise Decline("unknown-attribute", "the mask of a Dropout is an output")
    if training:
        constant = facts.constants.get(training)
        if constant is None or np.any(constant.values()):
            raise Decline("training-mode", "Dropout may be in training mode")
    return _multiple(facts, source, 1.0, idle=True)


def lift_cast(node: gs.Node, facts: Facts, output: str) -> Lifted:
    """Lift a Cast to the type that the value already has; any other Cast rounds, and is a boundary."""
    allow(node, ("to", "saturate", "round_mode"))
    source = inputs(node, 1, 1)[0]
    if node.attrs.get("to") != facts.shapes.type_of(source):
        raise Decline("not-linear")
    return _multiple(facts, source, 1.0, idle=True)


def _multiple(facts: Facts, source: str, factor: float, idle: bool) -> Lifted:
    """Return ``factor * source``."""
    if facts.is_constant(source):
        raise Decline("constant")
    channels, axes = facts.image(source)
    geometry = Geometry.identity(channels, axes)
    form = Form((Map.identity(channels, axes, factor),), None)
    cost = 0 if idle else 1
    return Lifted((copies(source, geometry, factor),), lambda: form, kernels=cost, nodes=cost)
