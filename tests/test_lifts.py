"""Each lift: it fires, it declines what it must with the right reason, and the folded graph computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.net import Net
from tests.tools import assert_same, attributes, codes, copy, folded, node, ops, run


def net(**settings):
    return Net(7, exact=True, **settings)


def after_conv(build, shape=(1, 4, 6, 6), **settings):
    """A Conv followed by what ``build`` adds."""
    n = net(**settings)
    x = n.input(shape)
    return n.model(build(n, n.conv(x, 4, 3, bias=True)))


def assert_folds(model, expected=("Conv",), sizes=(6,)):
    result, folds, _ = folded(model)
    assert ops(result) == list(expected)
    assert folds
    assert_same(model, result, sizes)
    return result


def assert_declines(model, code):
    result, folds, refusals = folded(model)
    assert not folds
    assert result == model
    assert code in codes(refusals)
    return [r for r in refusals if r.code == code]


# -- Conv -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes_",
    [
        {"kernel": 3},
        {"kernel": (1, 5)},
        {"kernel": 2, "pads": [0, 1, 1, 0]},
        {"kernel": 4, "pads": [0, 0, 3, 1], "stride": (2, 1)},
        {"kernel": 3, "dilation": (2, 3)},
        {"kernel": 3, "group": 2},
        {"kernel": 3, "group": 4},
    ],
)
def test_conv_attributes_survive_a_fold(attributes_):
    n = net()
    x = n.input((1, 4, 7, 8))
    model = n.model(n.bn(n.conv(x, 4, bias=True, **attributes_)))
    assert_folds(model)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_conv_in_one_to_three_dimensions(axes):
    n = net()
    x = n.input((1, 4, *range(4, 4 + axes)))
    assert_folds(n.model(n.bn(n.conv(x, 6, 3))))


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel", [2, 3])
def test_auto_pad_of_a_known_size_is_resolved(auto, size, kernel):
    n = net()
    x = n.input((1, 4, size, size))
    branches = [n.conv(x, 4, k, stride=2, auto_pad=auto) for k in (kernel, kernel)]
    result = assert_folds(n.model(n.bn(n.add(*branches))))
    assert "auto_pad" not in attributes(node(result, "Conv"))


def test_auto_pad_at_stride_1_needs_no_size():
    n = net()
    x = n.input(("N", 4, "H", "W"))
    branches = [n.conv(x, 4, 3, auto_pad="SAME_UPPER"), n.conv(x, 4, 2, auto_pad="SAME_UPPER"), n.conv(x, 4, 1)]
    assert_folds(n.model(n.add(*branches)), sizes=(1, 2, 5, 8))


def test_auto_pad_of_an_unknown_size_is_kept():
    n = net()
    x = n.input(("N", 4, "H", "W"))
    model = n.model(n.bn(n.add(*(n.conv(x, 4, 3, stride=2, auto_pad="SAME_LOWER") for _ in range(2)))))
    result = assert_folds(model, sizes=(1, 2, 7, 8))
    assert attributes(node(result, "Conv"))["auto_pad"] == b"SAME_LOWER"


def test_auto_pad_of_an_unknown_size_does_not_merge_with_another_kernel():
    n = net()
    x = n.input(("N", 4, "H", "W"))
    model = n.model(n.add(n.conv(x, 4, 3, stride=2, auto_pad="SAME_UPPER"), n.conv(x, 4, 1, stride=2)))
    assert_declines(model, "not-aligned")


def test_kernel_shape_may_be_absent():
    model = after_conv(lambda n, c: n.bn(c))
    for proto in model.graph.node:
        kept = [a for a in proto.attribute if a.name != "kernel_shape"]
        del proto.attribute[:]
        proto.attribute.extend(kept)
    assert_folds(model)


def test_conv_with_a_weight_computed_from_data():
    n = net()
    x, w = n.input((1, 4, 6, 6)), n.input((4, 4, 1, 1), "w")
    model = n.model(n.bn(n.op("Conv", x, w, channels=4)))
    (refusal,) = assert_declines(model, "not-constant")
    assert "w" in refusal.detail


def test_unknown_attribute():
    model = after_conv(lambda n, c: n.bn(c))
    model.graph.node[0].attribute.append(helper.make_attribute("novelty", 1))
    copy_ = copy(model)
    from onnxrep.folding import fold

    folds, refusals = fold(copy_, None)
    assert not folds
    assert codes(refusals) == {"unknown-attribute"}


# -- BatchNormalization ---------------------------------------------------------------------------------------------


def test_batch_normalization_by_hand():
    """gamma 4, beta 1, mean 3, var 3.75, eps 0.25: scale 2, so weight [2, 4, 6] and bias 5."""
    n = net()
    x = n.input((1, 1, 4))
    c = n.conv(x, 1, 3, weight=np.array([[[1, 2, 3]]], np.float32))
    n.nodes[-1].input.append(n.constant([5.0]))
    y = n.op("BatchNormalization", c, *(n.constant([v]) for v in (4.0, 1.0, 3.0, 3.75)), epsilon=0.25)
    result = assert_folds(n.model(y))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    weight, bias = (tensors[i] for i in node(result, "Conv").input[1:])
    assert weight.ravel().tolist() == [2, 4, 6]
    assert bias.tolist() == [5]
    assert run(result, {"x": np.array([[[1, 2, 3, 4]]], np.float32)})[0].ravel().tolist() == [21, 33, 45, 27]


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17, 22])
def test_batch_normalization_of_every_opset(opset):
    assert_folds(after_conv(lambda n, c: n.bn(c), opset=opset))


def test_batch_normalization_default_epsilon_is_the_stored_float():
    model = after_conv(lambda n, c: n.bn(c))
    bn = node(model, "BatchNormalization")
    del bn.attribute[:]
    variance = next(t for t in model.graph.initializer if t.name == bn.input[4])
    variance.CopyFrom(onnx.numpy_helper.from_array(np.zeros(4, np.float32), variance.name))
    result, folds, _ = folded(model)
    assert len(folds) == 1
    assert_same(model, result, exact=False)


def test_batch_normalization_in_training_mode():
    model = after_conv(lambda n, c: n.bn(c))
    node(model, "BatchNormalization").attribute.append(helper.make_attribute("training_mode", 1))
    assert_declines(model, "training-mode")


def test_batch_normalization_with_running_statistics_as_outputs_before_opset_14():
    model = after_conv(lambda n, c: n.bn(c), opset=9)
    node(model, "BatchNormalization").output.extend(["mean_out", "var_out", "saved_mean", "saved_var"])
    assert_declines(model, "training-mode")


def test_batch_normalization_per_element_before_opset_9():
    n = net(opset=7)
    x = n.input((1, 4, 2, 2))
    c = n.conv(x, 4, 3)
    parameters = [n.constant(np.ones((4, 2, 2))) for _ in range(4)]
    output = n.op("BatchNormalization", c, *parameters, spatial=0)
    graph = helper.make_graph(
        n.nodes, "g", n.inputs, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], n.initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=8)
    from onnxrep.folding import fold

    folds, refusals = fold(model, None)
    assert not folds
    assert codes(refusals) == {"unknown-attribute"}


@pytest.mark.parametrize("value", [-1.0, -(2.0**-10)])
def test_batch_normalization_with_a_variance_that_has_no_root(value):
    model = after_conv(lambda n, c: n.bn(c))
    _poison(model, node(model, "BatchNormalization").input[4], value)
    assert_declines(model, "negative-variance")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_batch_normalization_with_parameters_that_are_not_finite(value, index):
    model = after_conv(lambda n, c: n.bn(c))
    _poison(model, node(model, "BatchNormalization").input[index], value)
    assert_declines(model, "not-finite")


def test_nan_in_one_branch_does_not_reach_the_others():
    n = net()
    x = n.input((1, 4, 6, 6))
    bad = n.conv(x, 4, 1)
    model = n.model(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), bad))
    _poison(model, next(p.input[1] for p in model.graph.node if p.output[0] == bad), np.nan)
    result, folds, refusals = folded(model)
    assert "not-finite" in codes(refusals)
    assert ops(result) == ["Conv", "Conv", "Add"]
    assert len(folds) == 1


def _poison(model, name, value):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[1] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))


# -- scales and shifts ----------------------------------------------------------------------------------------------

SHAPES = [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("as_node", [False, True])
def test_scale_and_shift_per_channel(op, shape, first, as_node):
    if op == "Div" and first:
        pytest.skip("a constant divided by data is not linear")

    def build(n, c):
        values = 2.0 ** n.rng.integers(-2, 3, shape)
        constant = n.constant(values, as_node=as_node)
        return n.op(op, constant, c, channels=4) if first else n.op(op, c, constant)

    assert_folds(after_conv(build))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 1, 1, 6), (1, 4, 6, 6), (4, 6, 6)])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_constants_along_another_axis(op, shape):
    model = after_conv(lambda n, c: n.op(op, c, n.constant(np.ones(shape))))
    assert_declines(model, "not-per-channel")


def test_a_vector_is_along_the_width_even_if_it_has_as_many_entries_as_channels():
    model = after_conv(lambda n, c: n.op("Mul", c, n.constant(np.ones(4))), shape=(1, 4, 4, 4))
    assert_declines(model, "not-per-channel")


def test_constants_that_change_the_shape():
    one = lambda n, c: n.op("Mul", c, n.constant(np.ones((1, 1, 1, 1, 1))))  # noqa: E731
    n = net()
    x = n.input((1, 4, 6, 6))
    value = one(n, n.conv(x, 4, 3))
    n.axes[value] = 3
    assert_declines(n.model(value), "broadcast")
    n = net()
    x = n.input((1, 4, 6, 6))
    model = n.model(n.op("Mul", n.conv(x, 1, 3), n.constant(np.ones((3, 1, 1)))))
    assert_declines(model, "broadcast")


def test_division_by_zero():
    assert_declines(after_conv(lambda n, c: n.op("Div", c, n.constant([0.0]))), "not-finite")


def test_constant_divided_by_data_is_silently_left():
    model = after_conv(lambda n, c: n.op("Div", n.constant([2.0]), c, channels=4))
    _, folds, refusals = folded(model)
    assert not folds
    assert not refusals


def test_product_of_two_data_tensors_is_silently_left():
    model = after_conv(lambda n, c: n.silu(c))
    _, folds, refusals = folded(model)
    assert not folds
    assert not refusals


# -- sums -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Add", "Sub", "Sum", "Mean"])
def test_sums_of_branches(op):
    n = net()
    x = n.input(("N", 4, "H", "W"))
    model = n.model(n.op(op, n.conv(x, 4, 3, bias=True), n.conv(x, 4, 1, bias=True)))
    assert_folds(model, sizes=(1, 5, 8))


@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_sums_of_one_and_of_many(op):
    for count in (1, 2, 4):
        n = net()
        x = n.input((1, 4, 6, 6))
        model = n.model(n.bn(n.op(op, *(n.conv(x, 4, 3) for _ in range(count)))))
        assert_folds(model)


def test_sum_with_constants_among_its_operands():
    n = net()
    x = n.input((1, 4, 6, 6))
    values = [n.conv(x, 4, 3), n.constant([2.0]), n.conv(x, 4, 1), n.constant(n.draw(4, 1, 1))]
    assert_folds(n.model(n.op("Sum", *values)))


def test_a_sum_that_may_broadcast():
    n = net()
    x = n.input((1, 4, 3, 3))
    model = n.model(n.add(n.conv(x, 4, 3, pads=1), n.conv(x, 4, 3, pads=0)))
    assert run(model, {"x": np.ones((1, 4, 3, 3), np.float32)})[0].shape == (1, 4, 3, 3)
    assert_declines(model, "broadcast")


def test_a_sum_of_unrelated_dynamic_sizes():
    n = net()
    x, z = n.input(("N", 4, "H", "W")), n.input(("N", 4, "H", "W"), "z")
    assert_declines(n.model(n.bn(n.add(n.conv(x, 4, 3), n.conv(z, 4, 1)))), "broadcast")


# -- ops that do nothing --------------------------------------------------------------------------------------------


def test_idle_ops_are_looked_through():
    n = net()
    x = n.input((1, 4, 6, 6))
    a = n.op("Identity", n.op("Dropout", n.conv(x, 4, 3)))
    b = n.op("Cast", n.op("Neg", n.conv(x, 4, 1)), to=TensorProto.FLOAT)
    assert_folds(n.model(n.op("Identity", n.add(a, b))))


def test_an_idle_op_alone_is_no_reason_to_touch_a_convolution():
    model = after_conv(lambda n, c: n.op("Identity", c))
    result, folds, _ = folded(model)
    assert not folds
    assert result == model


def test_cast_to_another_type_is_a_boundary():
    def build(n, c):
        return n.op("Cast", n.op("Cast", c, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)

    _, folds, _ = folded(after_conv(build))
    assert not folds


def test_dropout_in_training_mode():
    def build(n, c):
        return n.bn(n.op("Dropout", c, "", n.constant(True, dtype=np.bool_)))

    assert_declines(after_conv(build), "training-mode")
    model = after_conv(lambda n, c: n.bn(n.op("Dropout", c, n.constant(0.5), n.constant(False, dtype=np.bool_))))
    assert_folds(model)


def test_dropout_whose_mask_is_used():
    model = after_conv(lambda n, c: n.bn(n.op("Dropout", c)))
    node(model, "Dropout").output.append("mask")
    model.graph.output.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 4, 6, 6]))
    _, folds, refusals = folded(model)
    assert not folds
    assert "unknown-attribute" in codes(refusals)


# -- Pad and ConvTranspose ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [10, 11, 17, 18, 21])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 1, 0), (2, 0, 0, 0)])
def test_pad_before_a_convolution(opset, pads):
    n = net(opset=opset)
    x = n.input(("N", 4, "H", "W"))
    whole = [0, 0, *pads[:2], 0, 0, *pads[2:]]
    if opset < 11:
        padded = n.op("Pad", x, pads=whole)
    elif opset < 18:
        padded = n.op("Pad", x, n.constant(whole, dtype=np.int64), n.constant(0.0))
    else:
        padded = n.op("Pad", x, n.constant(pads, dtype=np.int64), "", n.constant([2, -1], dtype=np.int64))
    assert_folds(n.model(n.conv(padded, 4, 3, bias=True)), sizes=(3, 4, 7))


@pytest.mark.parametrize("inner", [0, 1])
def test_a_crop_before_a_convolution(inner):
    """Behind a crop a kernel needs more taps (of zero); and a padded one would see what the crop hides."""
    n = net(opset=10)
    x = n.input(("N", 4, "H", "W"))
    _, folds, _ = folded(n.model(n.conv(n.op("Pad", x, pads=[0, 0, -1, 0, 0, 0, 0, 0]), 4, 3, pads=inner)))
    assert not folds


def test_pad_with_another_value_or_mode():
    for attributes_ in ({"mode": "reflect"}, {"value": 1.0}):
        n = net(opset=10)
        x = n.input((1, 4, 6, 6))
        padded = n.op("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1], **attributes_)
        _, folds, _ = folded(n.model(n.conv(padded, 4, 3)))
        assert not folds


def test_pad_on_the_channel_axis():
    n = net(opset=10)
    x = n.input((1, 4, 6, 6))
    padded = n.op("Pad", x, pads=[0, 1, 0, 0, 0, 0, 0, 0], channels=5)
    _, folds, _ = folded(n.model(n.conv(padded, 4, 3)))
    assert not folds


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(
    "attributes_",
    [{}, {"strides": [2, 2]}, {"strides": [2, 1], "pads": [1, 0, 1, 2]}, {"strides": [3, 2], "output_padding": [2, 1]}],
)
def test_transposed_convolution(group, attributes_):
    n = net()
    x = n.input((1, 4, 5, 6))
    weight = n.constant(n.draw(4, 8 // group, 3, 3))
    y = n.op("ConvTranspose", x, weight, n.constant(n.draw(8)), channels=8, group=group, **attributes_)
    assert_folds(n.model(n.bn(y)), ("ConvTranspose",))


def test_transposed_convolutions_merge():
    n = net()
    x = n.input((1, 4, 5, 6))
    big = n.op("ConvTranspose", x, n.constant(n.draw(4, 6, 4, 4)), channels=6, strides=[2, 2], pads=[1, 1, 1, 1])
    small = n.op("ConvTranspose", x, n.constant(n.draw(4, 6, 2, 2)), channels=6, strides=[2, 2])
    assert_folds(n.model(n.add(big, small)), ("ConvTranspose",))


def test_transposed_convolution_with_a_given_output_shape():
    n = net()
    x = n.input((1, 4, 5, 5))
    y = n.op("ConvTranspose", x, n.constant(n.draw(4, 4, 3, 3)), strides=[2, 2], output_shape=[10, 10])
    assert_declines(n.model(n.bn(y)), "unknown-attribute")


# -- constants that are computed ------------------------------------------------------------------------------------


def test_constants_through_ops_that_read_constants_only():
    n = net()
    x = n.input((1, 4, 6, 6))
    gate = n.op("Sigmoid", n.constant(np.zeros((4,))))
    gate = n.op(
        "Expand", n.op("Unsqueeze", gate, n.constant([1, 2], dtype=np.int64)), n.constant([4, 1, 1], dtype=np.int64)
    )
    transposed = n.op("Transpose", n.constant(n.draw(4, 4, 3, 3)), perm=[1, 0, 2, 3])
    weight = n.op("Reshape", n.op("Cast", transposed, to=TensorProto.FLOAT), n.constant([4, 4, 3, 3], dtype=np.int64))
    conv = n.op("Conv", x, n.op("Identity", weight), channels=4, pads=[1, 1, 1, 1])
    result = assert_folds(n.model(n.op("Mul", conv, gate)))
    assert len(result.graph.initializer) == 2
    assert len(result.graph.node) == 1


@pytest.mark.parametrize("kind", ["value_float", "value_floats", "value"])
def test_constant_nodes_of_every_form(kind):
    value = {"value_float": 2.0, "value_floats": [2.0], "value": helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])}
    n = net()
    x = n.input((1, 4, 6, 6))
    n.nodes.append(helper.make_node("Constant", [], ["two"], **{kind: value[kind]}))
    model = n.model(n.op("Mul", n.conv(x, 4, 3), "two"))
    result = assert_folds(model)
    assert len(result.graph.node) == 1


def test_bias_of_an_unoptimized_dynamo_export():
    """``Expand(CastLike(0, x), Shape(w))`` reads data, but depends on none of it."""
    n = net(opset=18)
    x = n.input(("N", 4, "H", "W"))
    weight = n.constant(n.draw(6, 4, 3, 3))
    size = n.op("Shape", weight, start=0, end=1)
    zero = n.op("CastLike", n.constant(0.0), x)
    bias = n.op("Expand", zero, size)
    n.channels.pop(bias, None)
    conv = n.op("Conv", x, weight, bias, channels=6, pads=[1, 1, 1, 1])
    result = assert_folds(n.model(n.bn(conv)))
    assert len(result.graph.node) == 1


def test_a_constant_too_large_to_compute_is_not_computed():
    n = net()
    x = n.input((1, 4, 6, 6))
    huge = n.op("ConstantOfShape", n.constant([1 << 20, 1 << 20], dtype=np.int64))
    total = n.op("ReduceSum", huge, keepdims=0)
    model = n.model(n.op("Mul", n.conv(x, 4, 3), total))
    _, folds, refusals = folded(model)
    assert not folds
    assert "not-constant" in codes(refusals)


def test_quantized_weight():
    n = net()
    x = n.input((1, 4, 6, 6))
    weight = n.op("DequantizeLinear", n.constant(np.ones((4, 4, 1, 1)), dtype=np.int8), n.constant(0.5))
    assert_declines(n.model(n.bn(n.op("Conv", x, weight, channels=4))), "quantized")


# -- types ----------------------------------------------------------------------------------------------------------


def test_float16_is_folded_in_float64_and_stored_in_float16():
    n = Net(3, dtype=np.float16)
    x = n.input((1, 4, 6, 6))
    model = n.model(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), n.bn(x)))
    result, _, _ = folded(model)
    assert ops(result) == ["Conv"]
    assert {t.data_type for t in result.graph.initializer} == {TensorProto.FLOAT16}
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float16)}
    assert np.allclose(run(model, feeds)[0], run(result, feeds)[0], atol=0.02)


def test_sizes_beyond_all_floats_are_refused():
    n = Net(0)
    x = n.input((*[2**61] * 18, 4))
    model = n.model(n.op("Add", *(n.op("MatMul", x, n.constant(n.draw(4, 4))) for _ in range(2))))
    _, folds, refusals = folded(model)
    assert not folds
    assert "overflow" in codes(refusals)


def test_overflow_of_the_stored_type():
    n = Net(3, dtype=np.float16)
    x = n.input((1, 4, 6, 6))
    model = n.model(n.scale(n.scale(n.conv(x, 4, 1), [60000.0]), [60000.0]))
    result, _, refusals = folded(model)
    assert "overflow" in codes(refusals)
    assert not any(np.isinf(onnx.numpy_helper.to_array(t)).any() for t in result.graph.initializer)


def test_old_opsets_are_left_alone():
    model = after_conv(lambda n, c: n.op("Neg", c), opset=7)
    model.opset_import[0].version = 6
    from onnxrep.folding import fold

    folds, refusals = fold(model, None)
    assert not folds
    assert codes(refusals) == {"old-opset"}
