"""What becomes one convolution, what becomes several, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.net import Net
from onnxrep.folding import fold
from tests.tools import assert_same, attributes, codes, copy, folded, integers, node, ops, run


def net(**settings):
    return Net(11, exact=True, **settings)


def image(n, channels=4, dynamic=True):
    return n.input(("N", channels, "H", "W") if dynamic else (1, channels, 6, 6))


def becomes(model, expected, sizes=(1, 2, 5, 8)):
    result, folds, refusals = folded(model)
    assert ops(result) == expected
    assert_same(model, result, sizes)
    return result, folds, refusals


# -- sums of one source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["add", "balanced", "sum"])
@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_trees_of_any_shape_and_length(shape, count):
    n = net()
    x = image(n)
    branches = [n.conv_bn(x, 4, k) for k, _ in zip([3, 1, 3, 1, 3, 1, 3, 1, 3], range(count), strict=False)]
    total = n.op("Sum", *branches) if shape == "sum" else getattr(n, shape)(*branches)
    becomes(n.model(total), ["Conv"])


def test_order_of_branches_does_not_matter():
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        n = net()
        x = image(n)
        branches = [n.bn(x), n.conv_bn(x, 4, 1), n.conv_bn(x, 4, 3), x]
        becomes(n.model(n.add(*(branches[i] for i in order))), ["Conv"])


def test_repmixer():
    """``x + g * ((BN(x) + dw1(x) + dw3(x)) - BN'(x))``."""
    n = net()
    x = image(n)
    mixer = n.add(n.bn(x), n.conv_bn(x, 4, 1, group=4), n.conv_bn(x, 4, 3, group=4))
    difference = n.op("Sub", mixer, n.bn(x))
    model = n.model(n.add(x, n.scale(difference, n.per_channel(x))))
    result, (record,), _ = becomes(model, ["Conv"])
    assert attributes(node(result, "Conv"))["group"] == 4
    assert record.kind == "merge"
    assert sorted(r.op for r in record.removed).count("BatchNormalization") == 4


def test_batch_normalization_after_the_sum():
    n = net()
    x = image(n)
    inner = n.add(n.conv(x, 4, 3, bias=True), n.conv(x, 4, 1), x)
    becomes(n.model(n.bn(n.scale(inner, [2.0], first=True))), ["Conv"])


@pytest.mark.parametrize("alpha", [0.0, -2.0, 0.5])
@pytest.mark.parametrize("before", [True, False])
def test_alpha_before_or_after_a_branchs_normalization(alpha, before):
    n = net()
    x = image(n)
    small = n.conv(x, 4, 1)
    small = n.bn(n.scale(small, [alpha], first=True)) if before else n.scale(n.bn(small), [alpha], first=True)
    becomes(n.model(n.add(n.conv_bn(x, 4, 3), small)), ["Conv"])


def test_idle_arithmetic():
    n = net()
    x = image(n)
    branch = n.op("Add", n.constant(0.0, as_node=True), n.conv(x, 4, 3), channels=4)
    n.axes[branch] = 2
    other = n.scale(n.op("Add", n.conv(x, 4, 1), n.constant(0.0)), [1.0])
    becomes(n.model(n.add(branch, other)), ["Conv"])


def test_nested_residuals():
    n = net()
    x = image(n)
    inner = n.add(x, n.bn(n.add(x, n.conv(x, 4, 3, bias=True))))
    becomes(n.model(n.add(inner, n.conv(x, 4, 1))), ["Conv"])


def test_the_same_value_twice():
    n = net()
    x = image(n)
    c = n.conv(x, 4, 3, bias=True)
    becomes(n.model(n.add(c, c)), ["Conv"])


def test_a_group_residual_keeps_the_groups():
    n = net()
    x = image(n)
    result, _, _ = becomes(n.model(n.add(n.conv(x, 4, 3, group=2), n.bn(x))), ["Conv"])
    assert attributes(node(result, "Conv"))["group"] == 2


def test_branches_of_different_groups():
    n = net()
    x = image(n, 8)
    result, _, _ = becomes(n.model(n.add(n.conv(x, 8, 3, group=2), n.conv(x, 8, 3, group=4))), ["Conv"])
    assert attributes(node(result, "Conv"))["group"] == 2


def test_equal_casts_are_one_source():
    n = net()
    x = n.input((1, 4, 6, 6))
    branches = [n.conv(n.op("Cast", x, to=TensorProto.FLOAT), 4, k) for k in (3, 1)]
    n.inputs[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model = n.model(n.add(*branches))
    result, _, _ = folded(model)
    assert ops(result) == ["Cast", "Conv"]
    assert_same(model, result)


def test_identities_name_one_source():
    n = net()
    x = image(n)
    first, second = n.op("Identity", x), n.op("Identity", x)
    branches = [n.conv(first, 4, 3), n.conv(second, 4, 1), n.relu(first), n.relu(second)]
    total = n.add(branches[0], branches[1])
    result, _, _ = folded(n.model(n.add(total, n.relu(total), *branches[2:])))
    assert ops(result).count("Conv") == 1


# -- several sources ------------------------------------------------------------------------------------------------


def test_one_bias_for_several_sources():
    """``BN(2u + 1 + 3v + 4)`` with scale 2 and shift 10 is ``4u + 6v + 20``: the shift is added once."""
    n = net()
    u, v = (n.input((1, 1, 2), name) for name in "uv")
    parts = []
    for value, weight, bias in ((u, 2.0, 1.0), (v, 3.0, 4.0)):
        parts.append(n.conv(value, 1, 1, weight=np.full((1, 1, 1), weight, np.float32)))
        n.nodes[-1].input.append(n.constant([bias]))
    statistics = [n.constant([c]) for c in (2.0, 10.0, 0.0, 1 - 2.0**-10)]
    model = n.model(n.op("BatchNormalization", n.add(*parts), *statistics, epsilon=2.0**-10))
    result, (record,), _ = folded(model)
    assert ops(result) == ["Conv", "Conv", "Add"]
    assert record.sources == ("u", "v")
    feeds = {"u": np.array([[[1, 2]]], np.float32), "v": np.array([[[3, 4]]], np.float32)}
    assert run(result, feeds)[0].ravel().tolist() == [42, 52]


def test_merge_per_source():
    n = net()
    x, z = n.relu(image(n)), None
    z = n.relu(x)
    branches = [n.conv(x, 4, 3), n.conv(z, 4, 3), n.conv(x, 4, 1), n.conv(z, 4, 1), z]
    becomes(n.model(n.add(*branches)), ["Relu", "Relu", "Conv", "Conv", "Add"])


def test_a_difference_of_sources_stays_a_difference():
    n = net()
    x = image(n)
    z = n.relu(x)
    merged = n.add(n.conv(x, 4, 3), n.conv(x, 4, 1))
    becomes(n.model(n.op("Sub", merged, z)), ["Relu", "Conv", "Sub"])
    n = net()
    x = image(n)
    z = n.relu(x)
    merged = n.add(n.conv(x, 4, 3), n.conv(x, 4, 1))
    result, _, _ = folded(n.model(n.op("Sub", z, merged)))
    assert sorted(ops(result)) == ["Add", "Conv", "Relu"]


def test_residual_from_outside_keeps_its_add():
    n = net()
    x = image(n)
    y = n.conv_bn(n.relu(n.conv_bn(x, 4, 3)), 4, 3)
    becomes(n.model(n.relu(n.add(y, x))), ["Conv", "Relu", "Conv", "Add", "Relu"])


def test_a_scale_over_a_foreign_residual_is_not_moved():
    n = net()
    x = image(n)
    model = n.model(n.bn(n.add(n.conv(n.relu(x), 4, 3), x)))
    _, folds, _ = folded(model)
    assert not folds


def test_a_scale_over_merged_branches_and_a_foreign_residual():
    n = net()
    x = image(n)
    z = n.relu(x)
    model = n.model(n.bn(n.add(n.conv(z, 4, 3), n.conv(z, 4, 1), x)))
    result, _, _ = folded(model)
    assert ops(result).count("Conv") == 1
    assert len(ops(result)) == 4
    assert_same(model, result, (1, 6))


# -- partial merges and price ---------------------------------------------------------------------------------------


def test_branches_on_other_grids_stay():
    n = net()
    x = image(n, dynamic=False)
    aligned = [n.conv(x, 4, 3, stride=2), n.conv(x, 4, 1, stride=2)]
    pool = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    becomes(n.model(n.add(aligned[0], pool, aligned[1])), ["Conv", "MaxPool", "Add"], sizes=(6,))


@pytest.mark.parametrize(("count", "slices"), [(9, False), (24, False), (64, False), (300, True)])
def test_grouped_convolutions_that_were_taken_apart(count, slices):
    """Outputs are named as exporters do, so that s10 comes before s2 in the alphabet."""
    n = net()
    x = image(n, count, dynamic=False)
    pieces = [f"s{i}" for i in range(count)]
    if slices:
        for i, piece in enumerate(pieces):
            bounds = [n.constant([k], dtype=np.int64) for k in (i, i + 1, 1)]
            n.nodes.append(helper.make_node("Slice", [x, *bounds], [piece], name=f"slice_{i}"))
    else:
        n.nodes.append(helper.make_node("Split", [x], pieces, name="split", axis=1))
    for piece in pieces:
        n.channels[piece], n.axes[piece] = 1, 2
    parts = [n.conv(piece, 1, 3) for piece in pieces]
    model = n.model(n.op("Concat", *parts, channels=count, axis=1))
    result, _, _ = becomes(model, ["Conv"], sizes=(6,))
    assert attributes(node(result, "Conv"))["group"] == count


def test_stripes_are_not_squared():
    """51x5 + 5x51 + 5x5: the small kernel joins one stripe, the stripes stay apart."""
    n = net()
    x = image(n)
    branches = [n.conv_bn(x, 4, k, group=4) for k in ((51, 5), (5, 51), (5, 5))]
    result, _, refusals = becomes(n.model(n.add(*branches)), ["Conv", "Conv", "Add"], sizes=(7, 60))
    shapes = sorted(attributes(p)["kernel_shape"] for p in result.graph.node if p.op_type == "Conv")
    assert shapes == [[5, 51], [51, 5]]
    assert "price" in codes(refusals)


def test_dense_pointwise_and_depthwise_stay_apart():
    n = net()
    x = image(n, 16)
    _, folds, refusals = folded(n.model(n.add(n.conv(x, 16, 1), n.conv(x, 16, 3, group=16))))
    assert not folds
    assert "price" in codes(refusals)


def test_a_widely_dilated_branch_does_not_swell_the_kernel():
    n = net()
    x = image(n)
    branches = [n.conv(x, 4, 3), n.conv(x, 4, 3, dilation=36), n.conv(x, 4, 1)]
    becomes(n.model(n.add(*branches)), ["Conv", "Conv", "Add"], sizes=(5, 80))


def test_dilated_reparameterization():
    n = net()
    x = image(n)
    branches = [n.conv(x, 4, 13, group=4), n.conv(x, 4, 5, group=4), n.conv(x, 4, 7, dilation=2, group=4)]
    branches += [n.conv(x, 4, 3, dilation=d, group=4) for d in (3, 4, 5)]
    becomes(n.model(n.bn(n.add(*(n.bn(b) for b in branches)))), ["Conv"], sizes=(3, 14))


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_scales_outside_a_region_stay(activation):
    n = net()
    x = image(n)
    value = n.scale(getattr(n, activation)(n.scale(n.relu(x), n.per_channel(x))), n.per_channel(x))
    model = n.model(value)
    result, folds, _ = folded(model)
    assert not folds
    assert result == model


@pytest.mark.parametrize("conv_after", [True, False])
def test_the_parts_of_a_gelu_stay_together(conv_after):
    n = net()
    x = image(n)
    value = n.gelu(n.conv_bn(x, 4, 3))
    if conv_after:
        value = n.conv_bn(value, 4, 1)
    result, folds, _ = folded(n.model(value))
    assert len(folds) == 1 + conv_after
    expected = ["Conv", "Div", "Erf", "Add", "Mul", "Mul"] + ["Conv"] * conv_after
    assert ops(result) == expected


# -- inner values that are needed elsewhere -------------------------------------------------------------------------


def test_inner_value_is_a_graph_output():
    n = net()
    x = image(n)
    c = n.conv(x, 4, 3)
    result, folds, refusals = folded(n.model(n.bn(c), c))
    assert not folds
    assert codes(refusals) == {"graph-output"}
    assert [o.name for o in result.graph.output][1] == c


def test_inner_value_has_another_reader():
    n = net()
    x = image(n)
    c = n.conv(x, 4, 3)
    _, folds, refusals = folded(n.model(n.add(n.bn(c), n.relu(c))))
    assert not folds
    (refusal,) = refusals
    assert refusal.code == "other-reader"
    assert c in refusal.detail


def test_other_branches_merge_around_a_value_that_must_stay():
    n = net()
    x = image(n)
    kept = n.conv(x, 4, 1)
    model = n.model(n.add(n.conv(x, 4, 3), kept, n.conv(x, 4, 1), x), kept)
    result, folds, refusals = folded(model)
    assert ops(result).count("Conv") == 2
    assert len(folds) == 1
    assert "graph-output" in codes(refusals)
    assert_same(model, result, (1, 6))


def _branch(graph_nodes, output, initializers=()):
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(graph_nodes, f"{output}_body", [], [value], list(initializers))


def with_if(n, x, then_nodes, else_nodes, outputs, initializers=()):
    condition = n.op("Greater", n.op("ReduceSum", x, keepdims=0), n.constant(0.0))
    bodies = {
        "then_branch": _branch(then_nodes, then_nodes[-1].output[0], initializers),
        "else_branch": _branch(else_nodes, else_nodes[-1].output[0]),
    }
    n.nodes.append(helper.make_node("If", [condition], ["chosen"], name="choice", **bodies))
    n.axes["chosen"] = 2
    n.channels["chosen"] = 4
    return n.model("chosen", *outputs)


def test_inner_value_is_read_inside_a_body():
    n = net()
    x = image(n)
    c = n.conv(x, 4, 3)
    y = n.bn(c)
    then = [helper.make_node("Relu", [c], ["t"])]
    other = [helper.make_node("Neg", [x], ["e"])]
    result, folds, refusals = folded(with_if(n, x, then, other, [y]))
    assert not folds
    assert codes(refusals) == {"captured"}
    assert c in [o for p in result.graph.node for o in p.output]


def _two_branches(n, x):
    """Nodes that make ``t``, and the names of their weights."""
    w3, w1 = n.constant(n.draw(4, 4, 3, 3)), n.constant(n.draw(4, 4, 1, 1))
    nodes = [
        helper.make_node("Conv", [x, w3], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", [x, w1], ["b"]),
        helper.make_node("Add", ["a", "b"], ["t"]),
    ]
    return nodes, {w3, w1}


def test_a_region_inside_a_body_folds_there():
    n = net()
    x = image(n)
    then, weights = _two_branches(n, x)
    other = [helper.make_node("Relu", [x], ["e"])]
    model = with_if(n, x, then, other, [])
    result, (record,), _ = folded(model)
    assert record.scope == "choice/then_branch"
    body = next(a.g for a in node(result, "If").attribute if a.name == "then_branch")
    assert [p.op_type for p in body.node] == ["Conv"]
    assert len(body.initializer) == 2
    assert not weights & {t.name for t in result.graph.initializer}
    assert_same(model, result, (1, 6, 7))


def test_both_bodies_of_an_if_may_have_values_of_one_name():
    n = net()
    x = image(n)
    block, _ = _two_branches(n, x)
    model = with_if(n, x, block, block, [])
    result, folds, _ = folded(model)
    assert {(f.scope, f.output) for f in folds} == {("choice/then_branch", "t"), ("choice/else_branch", "t")}
    assert_same(model, result, (1, 6, 7))
    left, _ = fold(model, None, skipped=[("choice/else_branch", "t")])
    assert [f.scope for f in left] == ["choice/then_branch"]


def test_overridable_initializer():
    n = net()
    x = image(n)
    model = n.model(n.bn(n.conv(x, 4, 3)))
    weight = model.graph.node[0].input[1]
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    model.graph.input.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, tensor.dims))
    _, folds, refusals = folded(model)
    assert not folds
    assert codes(refusals) == {"overridable"}
    old = copy(model)
    old.ir_version = 3
    for other in old.graph.initializer:
        if other.name != weight:
            old.graph.input.append(helper.make_tensor_value_info(other.name, TensorProto.FLOAT, other.dims))
    result, folds, _ = folded(old)
    assert len(folds) == 1
    assert [v.name for v in result.graph.input] == ["x", *(t.name for t in result.graph.initializer)]
    feeds = {"x": integers(model)["x"]}
    assert np.array_equal(run(model, feeds)[0], run(result, feeds)[0])


def test_local_functions_survive():
    n = net()
    x = n.input((1, 4, 6, 6))
    conv = n.conv(x, 4, 3)
    weight = n.nodes[-1].input[1]
    n.nodes[-1] = helper.make_node("Block", [x, weight], [conv], domain="local")
    model = helper.make_model(
        helper.make_graph(n.nodes, "g", n.inputs, [helper.make_tensor_value_info(conv, 1, None)], n.initializers),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        functions=[
            helper.make_function(
                "local",
                "Block",
                ["x", "w"],
                ["y"],
                [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
                [helper.make_opsetid("", 17)],
            )
        ],
        ir_version=8,
    )
    before = copy(model)
    folds, refusals = fold(model, None)
    assert not folds
    assert codes(refusals) == {"local-function"}
    assert model == before


# -- convolution after convolution ----------------------------------------------------------------------------------


def test_pointwise_after_and_before_a_convolution():
    n = net()
    x = image(n)
    becomes(n.model(n.conv(n.conv(x, 16, 3, bias=True), 4, 1, bias=True)), ["Conv"])
    n = net()
    x = image(n)
    becomes(n.model(n.conv(n.conv(x, 64, 1), 4, 3, bias=True)), ["Conv"])


def test_a_bias_in_front_of_padding_stays():
    n = net()
    x = image(n)
    _, folds, refusals = folded(n.model(n.conv(n.conv(x, 64, 1, bias=True), 4, 3, bias=True)))
    assert not folds
    assert codes(refusals) == {"border"}


def test_normalization_in_front_of_an_unpadded_convolution():
    n = net()
    x = image(n)
    becomes(n.model(n.conv(n.bn(n.relu(x)), 4, 1)), ["Relu", "Conv"])
    n = net()
    x = image(n)
    _, folds, refusals = folded(n.model(n.conv(n.bn(n.relu(x)), 4, 3)))
    assert not folds
    assert codes(refusals) == {"border"}


def test_two_3x3_in_a_row_stay():
    n = net()
    x = image(n)
    _, folds, _ = folded(n.model(n.conv(n.conv(x, 4, 3, pads=0), 4, 3, pads=0)))
    assert not folds


def test_a_chain_with_its_padding_in_front():
    """SPAN: ``Pad; 1x1 + b; 3x3 p0 + b; 1x1 + b`` beside a 1x1 skip."""
    for fused in (False, True):
        n = net()
        x = image(n)
        if fused:
            value = n.conv(x, 8, 1, pads=1, bias=True)
        else:
            padded = n.op("Pad", x, n.constant([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64), n.constant(0.0))
            value = n.conv(padded, 8, 1, bias=True)
        value = n.conv(n.conv(value, 8, 3, pads=0, bias=True), 4, 1, bias=True)
        becomes(n.model(n.add(value, n.conv(x, 4, 1, bias=True))), ["Conv"])


def test_separable_stack_beside_its_host():
    n = net()
    x = image(n)
    stack = n.conv(n.conv(x, 4, (7, 1), group=4), 4, (1, 7), group=4)
    becomes(n.model(n.add(n.conv(x, 4, 7, group=4), stack)), ["Conv"], sizes=(3, 9))
    n = net()
    x = image(n)
    alone = n.conv(n.conv(x, 4, (7, 1), group=4), 4, (1, 7), group=4)
    _, folds, _ = folded(n.model(alone))
    assert not folds


# -- convolution after transposed convolution -----------------------------------------------------------------------


def transposed(n, x, outputs, kernel, bias=False, group=1, **attributes_):
    weight = n.draw(n.channels[x], outputs // group, *(kernel,) * n.axes[x])
    names = [n.constant(weight), n.constant(n.draw(outputs))][: 1 + bias]
    return n.op("ConvTranspose", x, *names, channels=outputs, group=group, **attributes_)


@pytest.mark.parametrize(
    ("transposed_", "convolution"),
    [
        ({"kernel": 2, "strides": [2, 2]}, {"kernel": 3}),
        ({"kernel": 2, "strides": [2, 2]}, {"kernel": 3, "pads": [0, 1, 2, 1]}),
        ({"kernel": 2, "strides": [2, 2], "bias": True}, {"kernel": 3, "pads": 0}),
        ({"kernel": 2, "strides": [2, 3], "output_padding": [1, 2], "bias": True}, {"kernel": 2, "pads": 0}),
        ({"kernel": 2, "strides": [2, 2], "output_padding": [1, 1]}, {"kernel": 3}),
        ({"kernel": 4, "strides": [2, 2], "pads": [1, 1, 1, 1], "bias": True}, {"kernel": 3, "pads": 0}),
        ({"kernel": 3, "strides": [2, 2], "pads": [0, 1, 0, 1], "bias": True}, {"kernel": [3, 1], "pads": 0}),
        ({"kernel": 2, "strides": [2, 2], "group": 4}, {"kernel": 3, "group": 4}),
        ({"kernel": 2, "strides": [3, 2], "group": 2}, {"kernel": [1, 3], "dilation": 2, "group": 2}),
        ({"kernel": 3, "strides": [1, 1], "bias": True}, {"kernel": 2, "pads": 0, "group": 2}),
    ],
)
def test_a_convolution_behind_a_transposed_one(transposed_, convolution):
    n = net()
    y = transposed(n, n.input(("N", 4, "H", "W")), 64, **transposed_)
    model = n.model(n.bn(n.conv(y, 4, bias=True, **convolution)))
    becomes(model, ["ConvTranspose"], (3, 4, 5, 8))


def test_a_block_behind_a_transposed_convolution():
    n = net()
    y = transposed(n, n.input(("N", 4, "L")), 4, 2, strides=[2])
    y = n.scale(y, n.per_channel(y))
    y = n.add(n.conv_bn(y, 4, 3), n.conv_bn(y, 4, 1), n.bn(y))
    becomes(n.model(n.relu(y)), ["ConvTranspose", "Relu"], (1, 2, 5, 8))


def test_a_crop_behind_a_transposed_convolution():
    n = net()
    y = transposed(n, n.input(("N", 4, "L")), 6, 3, bias=True, strides=[2])
    ends = [n.constant([i], dtype=np.int64) for i in (1, -1, 2)]
    result, _, _ = becomes(n.model(n.op("Slice", y, *ends)), ["ConvTranspose"], (2, 3, 8))
    assert attributes(node(result, "ConvTranspose"))["pads"] == [1, 1]


@pytest.mark.parametrize(("width", "folds"), [(3, False), (4, True)])
def test_work_behind_a_transposed_convolution_is_counted_per_position_of_the_output(width, folds):
    """2x2 with stride 2 (8 -> m), then 3x3 (m -> 8): 8m + 72m against 4 * 4 * 8 * 8 / 4 = 256."""
    n = net()
    model = n.model(n.conv(transposed(n, image(n, 8), width, 2, strides=[2, 2]), 8, 3))
    _, records, _ = folded(model)
    assert [r.macs for r in records] == ([(80.0 * width, 256.0)] if folds else [])


@pytest.mark.parametrize(
    ("transposed_", "convolution", "code"),
    [
        ({"kernel": 2, "strides": [2, 2], "bias": True}, {"kernel": 3}, "border"),
        ({"kernel": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}, {"kernel": 3}, "border"),
        ({"kernel": 3, "strides": [2, 2], "pads": [0, 0, 0, 1]}, {"kernel": 3}, "border"),
        ({"kernel": 2, "strides": [2, 2]}, {"kernel": 3, "stride": 2}, "not-aligned"),
    ],
)
def test_what_stays_behind_a_transposed_convolution(transposed_, convolution, code):
    n = net()
    _, folds, refusals = folded(n.model(n.conv(transposed(n, image(n), 64, **transposed_), 4, **convolution)))
    assert not folds
    assert codes(refusals) == {code}


def test_a_transposed_convolution_behind_a_convolution_stays():
    n = net()
    model = n.model(transposed(n, n.conv(image(n), 64, 3), 4, 2, strides=[2, 2]))
    _, folds, refusals = folded(model)
    assert not folds
    assert "not-aligned" in codes(refusals)


# -- scale ----------------------------------------------------------------------------------------------------------


def test_a_long_linear_chain():
    n = net()
    x = n.input((1, 4, 2, 2))
    value = n.conv(x, 4, 1)
    one = n.constant([1.0])
    for _ in range(3000):
        value = n.op("Mul", value, one)
    model = n.model(value)
    result, _, _ = folded(model)
    assert ops(result) == ["Conv"]


def test_a_long_chain_of_blocks_and_a_wide_sum():
    n = net()
    x = n.input((1, 4, 2, 2))
    total = n.conv(x, 4, 1)
    for _ in range(400):
        total = n.op("Add", total, n.conv(x, 4, 1))
    result, (record,), _ = folded(n.model(total))
    assert ops(result) == ["Conv"]
    assert len(record.removed) == 801


def test_twenty_thousand_nodes():
    """Nothing recurses over the depth of a graph, nothing is quadratic in its size."""
    n = net()
    x = n.input((1, 2, 2, 2))
    three, one = n.constant(n.draw(2, 2, 3, 3)), n.constant(n.draw(2, 2, 1, 1))
    nodes = []
    for k in range(5000):
        nodes.append(helper.make_node("Conv", [x, three], [f"a{k}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Conv", [x, one], [f"b{k}"]))
        nodes.append(helper.make_node("Add", [f"a{k}", f"b{k}"], [f"c{k}"]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"x{k}"]))
        x = f"x{k}"
    graph = helper.make_graph(
        nodes, "deep", n.inputs, [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)], n.initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folds, _ = fold(model, None)
    assert len(folds) == 5000
    assert ops(model) == ["Conv", "Relu"] * 5000


def test_attributes_that_the_view_cannot_show_are_declined():
    n = net()
    x = image(n, dynamic=False)
    model = n.model(n.bn(n.conv(x, 4, 3)))
    model.graph.node[0].attribute.add(name="extra", type=onnx.AttributeProto.TENSOR)
    folds, refusals = fold(copy(model), None)
    assert not folds
    assert codes(refusals) == {"unknown-attribute"}


@pytest.mark.parametrize("second", ["conv", "block"])
def test_a_norm_in_front_of_a_padded_convolution_still_folds_backward(second):
    """What cannot pass the border of the next convolution vanishes into the one before it."""
    n = net()
    x = n.conv_bn(image(n), 4, 3)
    y = n.conv(x, 4, 3) if second == "conv" else n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), n.bn(x))
    model = n.model(n.relu(y))
    result, _, _ = folded(model)
    assert ops(result) == ["Conv", "Conv", "Relu"]
    assert_same(model, result, sizes=(5,))
