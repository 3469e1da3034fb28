"""Small graphs that other tools get wrong: folded or left as they must be, with the right reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import models
from onnxrep import optimize
from tests.tools import attributes, codes, folded, node, ops, run

TRAPS = Path(models.__file__).parent / "traps"

LEFT = {
    "t01_mul_const_over_W": "not-per-channel",
    "t02_add_const_over_W": "not-per-channel",
    "t02b_add_const_1_1_1_16": "not-per-channel",
    "t03_conv_is_output": "graph-output",
    "t04_w_graph_input": "overridable",
    "t05_bn_training": "training-mode",
    "t09_local_function": "local-function",
    "t10_qdq_weight": "quantized",
    "t11_rank5_scalar_mul": "broadcast",
    "t12_bn_two_consumers_of_conv": "other-reader",
    "t14_negative_var_nan": "negative-variance",
    "t15_dyn_mul_const_over_W": "not-per-channel",
    "t16_bias_is_runtime": "not-constant",
}
FOLDED = {
    "t06_autopad": ["Conv"],
    "t07_shared_w_other_use": ["Conv"],
    "t08_if_subgraph": ["ReduceSum", "Greater", "If"],
    "t13_tiny_var": ["Conv"],
    "t17_convtranspose_group_bn": ["ConvTranspose"],
    "t18_pad_then_conv_two_consumers": ["Conv"],
    "t19_mul_const_first_input": ["Conv"],
}


def load(name):
    return onnx.load(TRAPS / f"{name}.onnx")


def test_every_trap_is_here():
    assert {p.stem for p in TRAPS.glob("*.onnx")} == LEFT.keys() | FOLDED.keys()


@pytest.mark.parametrize("name", LEFT)
def test_left_alone_with_the_reason(name):
    model = load(name)
    result, folds, refusals = folded(model)
    assert not folds
    assert result == model
    assert codes(refusals) == {LEFT[name]}


@pytest.mark.parametrize("name", LEFT)
def test_output_of_what_is_left_alone_is_the_input(name, tmp_path):
    target = tmp_path / "out.onnx"
    result = optimize(TRAPS / f"{name}.onnx", target)
    assert result.status == "unchanged"
    assert target.read_bytes() == (TRAPS / f"{name}.onnx").read_bytes()


@pytest.mark.parametrize("name", FOLDED)
def test_folded_and_verified(name):
    model = load(name)
    result = optimize(model)
    assert result.status == "folded"
    assert ops(result.model) == FOLDED[name]
    assert [o.name for o in result.model.graph.output] == [o.name for o in model.graph.output]


def test_t06_pads_are_resolved_at_the_right_end():
    result, _, _ = folded(load("t06_autopad"))
    assert attributes(node(result, "Conv"))["pads"] == [0, 0, 1, 1]


def test_t07_the_shared_weight_is_not_edited():
    model = load("t07_shared_w_other_use")
    names = {t.name for t in model.graph.initializer}
    result, _, _ = folded(model)
    assert not names & {t.name for t in result.graph.initializer}


def test_t08_folds_inside_the_branch_and_keeps_the_other():
    model = load("t08_if_subgraph")
    result, _, _ = folded(model)
    bodies = {a.name: a.g for a in node(result, "If").attribute}
    assert [n.op_type for n in bodies["then_branch"].node] == ["Conv"]
    assert [n.op_type for n in bodies["else_branch"].node] == ["Relu"]
    rng = np.random.default_rng(0)
    for sign in (1, -1):
        feeds = {"x": (sign * np.abs(rng.standard_normal((1, 16, 16, 16)))).astype(np.float32)}
        assert np.allclose(run(model, feeds)[0], run(result, feeds)[0], atol=1e-5)


def test_t17_scales_the_right_axes():
    model = load("t17_convtranspose_group_bn")
    result, _, _ = folded(model)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    old, new = run(model, feeds)[0], run(result, feeds)[0]
    assert np.max(np.abs(old - new)) < 1e-5 * np.max(np.abs(old))


def test_t18_pads_add_up():
    result, _, _ = folded(load("t18_pad_then_conv_two_consumers"))
    assert attributes(node(result, "Conv"))["pads"] == [2, 2, 2, 2]
    assert attributes(node(result, "Conv"))["kernel_shape"] == [5, 5]
    assert node(result, "Conv").input[0] == "x"
