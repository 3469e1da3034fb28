"""Number types: folded in float64, stored in the model's type, refused where that cannot hold the result."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from models.blocks import count
from models.net import Net
from onnxrep import optimize, verify
from onnxrep.options import Options
from tests import mutants, oracle
from tests.tools import codes, folded

TYPES = {
    "float16": (np.float16, TensorProto.FLOAT16, 2.0**-11),
    "bfloat16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16, 2.0**-8),
    "float32": (np.float32, TensorProto.FLOAT, 0.0),
    "float64": (np.float64, TensorProto.DOUBLE, 0.0),
}
"""Name -> numpy type, ONNX type, and the rounding of one stored weight (none for small integers in wide types)."""


def block(dtype, scale=None):
    """A RepVGG block with every parameter in one type; ``scale`` multiplies its output."""
    net = Net(3, exact=True, dtype=dtype, opset=22)
    x = net.input((1, 2, 5, 4))
    y = net.add(net.bn(net.conv(x, 2, 3)), net.conv(x, 2, 1, bias=True), x)
    return net.model(net.relu(y if scale is None else net.scale(y, scale)))


@pytest.mark.parametrize("name", TYPES)
def test_one_convolution_in_the_models_type(name):
    dtype, code, rounding = TYPES[name]
    model = block(dtype)
    result, _, _ = folded(model)
    assert count(result) == {"Conv": 1, "Relu": 1}
    assert {t.data_type for t in result.graph.initializer} == {code}
    x = np.random.default_rng(0).integers(-3, 4, (1, 2, 5, 4)).astype(np.float64)
    before, after = oracle.run(model, {"x": x})[0], oracle.run(result, {"x": x})[0]
    weights = sum(np.abs(numpy_helper.to_array(t).astype(np.float64)).sum() for t in result.graph.initializer)
    assert np.max(np.abs(before - after)) <= rounding * weights * 3


@pytest.mark.parametrize(
    ("name", "scale", "fits"),
    [
        ("float16", 30000.0, False),
        ("bfloat16", 30000.0, True),
        ("float32", 3e38, False),
        ("float64", 3e38, True),
    ],
)
def test_what_the_type_cannot_hold_is_refused(name, scale, fits):
    model = block(TYPES[name][0], scale)
    result, folds, refusals = folded(model)
    assert bool(folds) == fits or count(result)["Mul"] == 1
    assert ("overflow" in codes(refusals)) != fits
    for tensor in result.graph.initializer:
        assert np.all(np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)))


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_verified_end_to_end(name):
    dtype, _, _ = TYPES[name]
    model = mutants.network(4, dtype=dtype)
    result = optimize(model, options=Options(input_shapes={"x": (1, 3, 12, 12)}))
    assert result.report.verification is not None
    assert (result.report.verification.verdict, result.report.verification.reason) == ("verified", "")
    assert count(result.model)["Conv"] == 5


@pytest.mark.parametrize("name", TYPES)
def test_a_coarse_error_is_seen_end_to_end_in_every_type(name):
    model = mutants.network(4, dtype=TYPES[name][0])
    mutant = next(m for m in mutants.MUTANTS if m.name == "3x3 kernel transposed")
    wrong, _, _ = mutants.folded_wrong(model, mutant, mutants.sums(model)[1], proven=False)
    assert verify(model, wrong, Options(input_shapes={"x": (1, 3, 12, 12)})).verdict == "rejected"


def test_channels_that_never_fire_are_counted():
    model = mutants.network(3)
    mutants.hidden_channel(model, mutants.sums(model)[1])
    result = optimize(model, options=Options(input_shapes={"x": (1, 3, 12, 12)}))
    assert result.report.verification is not None
    assert result.report.verification.channels == 4 * mutants.WIDTH
    assert 1 <= result.report.verification.unobserved < mutants.WIDTH
