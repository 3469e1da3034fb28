"""What folding gains and what it may cost: whole-model totals, ranges of merged kernels, and int8 weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxrep
from models import skeletons
from models.net import Net
from onnxrep import ranges
from onnxrep.errors import UsageError


def block(*, gains=None, centre=None, shape=(1, 8, 6, 6), seed=0):
    """3x3 + 1x1 with normal weights, each channel times its gain; ``centre`` adds the input times that."""
    n = Net(seed)
    x = n.input(shape)
    channels = n.channels[x]
    gains = np.ones(channels) if gains is None else np.asarray(gains, float)
    branches = [
        n.conv(x, channels, k, weight=n.draw(channels, channels, k, k, scale=0.1) * gains[:, None, None, None])
        for k in (3, 1)
    ]
    if centre is not None:
        branches.append(n.scale(x, centre))
    return n.model(n.relu(n.add(*branches)))


def folded(model):
    return onnxrep.optimize(model, options=onnxrep.Options(verify=False)).model


def the_ranges(model):
    (fold,) = onnxrep.inspect(model).folds
    (found,) = fold.ranges
    return found


def quantized(weight):
    """Weights after int8 with one scale for the tensor."""
    step = np.abs(weight).max() / 127
    return np.round(weight / step) * step


def measured(model):
    """Decibels of the median channel's weights, merged and branch by branch, from what the files hold."""

    def kernels(proto):
        tensors = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
        return [tensors[node.input[1]] for node in proto.graph.node if node.op_type == "Conv"]

    (merged,) = kernels(folded(model))
    errors = [np.sum((w - quantized(w)) ** 2, axis=(1, 2, 3)) for w in kernels(model)]
    signal = np.sum(merged**2, axis=(1, 2, 3))
    noise = np.sum((merged - quantized(merged)) ** 2, axis=(1, 2, 3))
    return [10 * np.log10(np.median(signal / n)) for n in (noise, sum(errors))]


CASES = {
    "well conditioned": ({}, False),
    "gains of one order": ({"gains": np.linspace(0.6, 1.4, 32)}, False),
    "one dominant channel": ({"gains": [20.0] + [1.0] * 31}, True),
    "dominant centre tap": ({"centre": 3.0}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_flag_says_what_int8_weights_lose(case):
    how, risky = CASES[case]
    model = block(**how, shape=(1, 32, 6, 6))
    found = the_ranges(model)
    merged, apart = measured(model)
    assert found.at_risk is risky
    assert abs(found.sqnr - merged) < 1.0
    assert abs(found.sqnr_apart - apart) < 1.0
    assert bool(merged < ranges.RISK) is risky
    assert found.sqnr_per_channel > found.sqnr


def test_ranges_are_those_of_the_kernel():
    model = block(gains=[8, 4, 2, 2, 2, 1, 1, 0.5], centre=0.25)
    found = the_ranges(model)
    (weight,) = (numpy_helper.to_array(t) for t in folded(model).graph.initializer if len(t.dims) == 4)
    tops = np.abs(weight).reshape(8, -1).max(axis=1)
    assert found.largest == pytest.approx(tops.max(), rel=1e-6)
    assert found.smallest == pytest.approx(tops.min(), rel=1e-6)
    assert found.median == pytest.approx(np.median(tops), rel=1e-6)
    assert found.spread == pytest.approx(tops.max() / np.median(tops), rel=1e-6)
    assert len(found.branches) == 3
    assert sorted(found.branches)[0] == (0.25, 0.25)


def test_a_kernel_of_zeros_has_no_range():
    assert ranges.ranges(np.zeros((4, 2, 3, 3)), 0, []) is None
    assert ranges.part(np.zeros((4, 2, 3, 3)), 0, quantized=True) is None
    one = np.zeros((4, 2, 3, 3))
    one[1] = 1.0
    found = ranges.ranges(one, 0, [ranges.part(one, 0, quantized=True)])
    assert (found.largest, found.smallest, found.median) == (1.0, 1.0, 1.0)


def test_totals_of_a_block():
    report = onnxrep.inspect(block())
    before, after = report.totals_before, report.totals_after
    assert (before.parameters, after.parameters) == (8 * 8 * 10, 8 * 8 * 9 + 8)
    assert (before.macs, after.macs) == (36 * 640, 36 * 576)
    assert before.shapes == {"x": (1, 8, 6, 6)}
    assert not before.assumed


def test_totals_at_dynamic_sizes():
    model = block(shape=("n", 8, 6, 6))
    found = onnxrep.inspect(model).totals_before
    assert (found.macs, found.shapes, found.assumed) == (36 * 640, {"x": (1, 8, 6, 6)}, True)
    model = block(shape=("n", 8, "h", "w"))
    found = onnxrep.inspect(model).totals_before
    assert (found.macs, found.unknown, found.shapes) == (None, 2, {})
    found = onnxrep.inspect(model, onnxrep.Options(input_shapes={"x": (2, 8, 4, 5)})).totals_before
    assert (found.macs, found.assumed) == (2 * 20 * 640, False)
    for shapes in ({"y": (1, 8, 4, 4)}, {"x": (1, 9, 4, 4)}, {"x": (1, 8)}):
        with pytest.raises(UsageError, match="--input-shape"):
            onnxrep.inspect(model, onnxrep.Options(input_shapes=shapes))


def test_totals_of_products_and_transposed_convolutions():
    n = Net(0)
    x = n.input((2, 4, 5))
    product = n.op("MatMul", x, n.constant(n.draw(5, 7)))
    y = n.input((1, 3, 4, 4), "y")
    up = n.op("ConvTranspose", y, n.constant(n.draw(3, 2, 2, 2)), strides=[2, 2], kernel_shape=[2, 2])
    found = onnxrep.inspect(n.model(product, up)).totals_before
    assert found.macs == 2 * 4 * 7 * 5 + 3 * 16 * 2 * 4
    assert found.parameters == 35 + 24


def test_what_is_in_a_body_counts_as_unknown():
    path = skeletons.ZOO.parent / "traps" / "t08_if_subgraph.onnx"
    found = onnxrep.inspect(path).totals_before
    assert found.macs is None
    assert found.unknown > 0
    assert found.parameters > 0


@pytest.mark.parametrize("name", ["yolov9t/train_legacy_bn", "mobileone_s0/train_dynamic"])
def test_totals_of_real_exports(name):
    model = skeletons.fill(name)
    (value,) = model.graph.input
    report = onnxrep.inspect(model, onnxrep.Options(input_shapes={value.name: (1, 3, 320, 320)}))
    before, after = report.totals_before, report.totals_after
    assert 0 < after.macs < before.macs
    assert 0 < after.parameters < before.parameters
    assert onnx.checker.check_model(model) is None
