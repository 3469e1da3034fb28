"""Neighbours that change places: what pays, what is not exact, and what does not pay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.net import Net
from onnxrep.folding import fold
from onnxrep.proof.semantics import Call, CannotEvaluate, _resize
from onnxrep.selection import Selection
from tests.tools import assert_same, attributes, codes, copy, folded, ops, run

COPYING = ["asymmetric", "half_pixel", "pytorch_half_pixel"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def net(**settings):
    return Net(11, exact=True, **settings)


def image(n, channels=8, size=None):
    return n.input(("N", channels, "H", "W") if size is None else (1, channels, size, size))


def pool(n, x, kernel=2, stride=2, **attributes):
    return n.op("AveragePool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)


def enlarged(n, x, scales=(1, 1, 2, 2), how="asymmetric", rounding="floor", **attributes):
    chosen = {"mode": "nearest", "coordinate_transformation_mode": how, "nearest_mode": rounding, **attributes}
    return n.op("Resize", x, "", n.constant(np.array(scales, np.float32)), **chosen)


def becomes(model, expected, sizes=(2, 5, 8), exact=True):
    result, folds, refusals = folded(model)
    assert ops(result) == expected
    assert_same(model, result, sizes, exact)
    return result, folds, refusals


def left(model, code, sizes=(3, 8)):
    """The model keeps the order of its nodes, and says why."""
    order = [op for op in ops(model) if op != "BatchNormalization"]
    result, _, refusals = folded(model)
    assert ops(result) == order
    assert code in codes(refusals)
    assert_same(model, result, sizes)


# -- averages -------------------------------------------------------------------------------------------------------


def test_a_transition_pools_first():
    """DenseNet's: norm, activation, 1x1 convolution, pool."""
    n = net()
    model = n.model(pool(n, n.conv(n.relu(n.bn(image(n))), 4, 1)))
    _, (record,), _ = becomes(model, ["BatchNormalization", "Relu", "AveragePool", "Conv"])
    assert record.kind == "move"
    assert record.macs[1] < record.macs[0]


def test_weights_stay_as_they_are():
    n = net()
    model = n.model(pool(n, n.conv(image(n), 4, 1, bias=True)))
    result, _, _ = becomes(model, ["AveragePool", "Conv"])
    assert list(model.graph.initializer) == list(result.graph.initializer)
    assert {m.name for m in model.graph.node} == {m.name for m in result.graph.node}


def test_scales_and_shifts_between_go_with_the_convolution():
    n = net()
    x = n.scale(n.bn(n.conv(image(n), 4, 1)), n.draw(4, 1, 1))
    becomes(n.model(pool(n, x)), ["AveragePool", "Conv"])


def test_several_convolutions_in_a_row():
    n = net()
    x = n.conv(n.conv(image(n), 2, 1, bias=True), 8, 1, bias=True)
    becomes(n.model(pool(n, x)), ["AveragePool", "Conv", "Conv"])


@pytest.mark.parametrize(("kernel", "stride", "pads"), [(3, 2, [0] * 4), (2, 2, [0] * 4), (3, 3, [1, 0, 0, 1])])
def test_windows_of_real_pixels(kernel, stride, pads):
    n = net()
    x = n.conv(image(n), 8, 1, bias=True)
    model = n.model(pool(n, x, kernel, stride, pads=pads))
    becomes(model, ["AveragePool", "Conv"], (3, 5, 8), exact=False)


def test_a_padded_average_of_all_pixels_passes_what_has_no_bias():
    n = net()
    x = n.conv(image(n), 8, 1)
    model = n.model(pool(n, x, 4, 2, pads=[1] * 4, count_include_pad=1))
    becomes(model, ["AveragePool", "Conv"])


def test_a_padded_average_of_all_pixels_stays_behind_a_bias():
    n = net()
    x = n.conv(image(n), 8, 1, bias=True)
    left(n.model(pool(n, x, 4, 2, pads=[1] * 4, count_include_pad=1)), "border")


def test_a_pool_that_rounds_its_size_up_stays():
    n = net()
    left(n.model(pool(n, n.conv(image(n), 8, 1, bias=True), ceil_mode=1)), "pool", (4, 8))


def test_a_pool_without_stride_stays():
    n = net()
    left(n.model(pool(n, n.conv(image(n), 8, 1, bias=True), 2, 1, pads=[1, 0, 0, 1])), "order")


def test_many_channels_that_become_one_stay_in_front():
    n = net()
    x = image(n, 64, 8)
    model = n.model(n.op("GlobalAveragePool", n.relu(pool(n, n.conv(x, 1, 1), 2, 2, pads=[1] * 4))))
    left(model, "order", (8,))


@pytest.mark.parametrize("spelling", ["GlobalAveragePool", "attribute", "input"])
@pytest.mark.parametrize("size", [None, 8])
def test_the_mean_of_the_whole_image(spelling, size):
    n = net(opset=18 if spelling == "input" else 17)
    x = n.conv(image(n, 8, size), 16, 1, bias=True)
    if spelling == "GlobalAveragePool":
        y = n.op(spelling, x)
    elif spelling == "attribute":
        y = n.op("ReduceMean", x, axes=[2, 3])
    else:
        y = n.op("ReduceMean", x, n.constant([-1, -2], dtype=np.int64))
    becomes(n.model(y), ["GlobalAveragePool" if spelling == "GlobalAveragePool" else "ReduceMean", "Conv"], (2, 4, 8))


@pytest.mark.parametrize("axes", [[1], [3], [1, 2, 3]])
def test_the_mean_over_other_axes_stays(axes):
    n = net()
    x = n.conv(image(n, 8, 8), 8, 1, bias=True)
    left(n.model(n.op("ReduceMean", x, axes=axes)), "order", (8,))


def test_a_mean_that_drops_axes_stays():
    n = net()
    y = n.op("ReduceMean", n.conv(image(n, 8, 8), 8, 1, bias=True), axes=[2, 3], keepdims=0)
    n.axes[y] = 0
    left(n.model(y), "order", (8,))


def test_what_others_read_stays():
    n = net()
    x = n.conv(image(n), 4, 1, bias=True)
    model = n.model(pool(n, x), n.relu(x))
    assert ops(folded(model)[0]) == ops(model)


def test_a_convolution_that_reads_neighbours_is_no_exchange():
    n = net()
    model = n.model(pool(n, n.conv(image(n), 4, 3, bias=True)))
    assert [f.kind for f in folded(model)[1]].count("move") == 0


def test_a_value_that_is_skipped_stays():
    n = net()
    model = n.model(pool(n, n.conv(image(n), 4, 1, bias=True)))
    again = copy(model)
    folds, _ = fold(again, None, skipped=[("", model.graph.output[0].name)])
    assert not folds
    assert ops(again) == ops(model)


# -- nearest Resize -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", COPYING)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_convolution_goes_in_front_of_any_nearest_resize(how, rounding):
    n = net()
    model = n.model(n.bn(n.conv(enlarged(n, image(n), (1, 1, 2, 3), how, rounding), 4, 1)))
    becomes(model, ["Conv", "Resize"], (1, 2, 5))


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset):
    n = net(opset=opset)
    x = image(n)
    scales = [1.0, 1.0, 2.0, 2.0]
    y = n.op("Upsample", x, scales=scales) if opset == 7 else n.op("Upsample", x, n.constant(scales))
    becomes(n.model(n.conv(y, 8, 1, bias=True)), ["Conv", "Upsample"], (1, 2, 5))


@pytest.mark.parametrize(
    ("scales", "attributes"),
    [
        ((1, 1, 2, 2), {"mode": "linear"}),
        ((1, 1, 2, 2), {"how": "align_corners"}),
        ((1, 1, 1.5, 1.5), {}),
        ((1, 1, 0.5, 0.5), {}),
        ((1, 1, 1, 1), {}),
    ],
)
def test_other_resizes_stay(scales, attributes):
    n = net()
    model = n.model(n.conv(enlarged(n, image(n), scales, **attributes), 8, 1, bias=True))
    left(model, "order" if set(scales) == {1} else "resize", (2, 6))


def test_a_resize_of_channels_stays():
    n = net()
    y = enlarged(n, image(n, 4, 4), (1, 2, 2, 2))
    n.channels[y] = 8
    left(n.model(n.conv(y, 8, 1, bias=True)), "resize", (4,))


def test_a_resize_to_sizes_stays():
    n = net()
    y = n.op("Resize", image(n, 4, 4), "", "", n.constant([1, 4, 8, 8], dtype=np.int64), mode="nearest")
    left(n.model(n.conv(y, 8, 1, bias=True)), "resize", (4,))


def test_a_resize_that_would_write_more_stays():
    n = net()
    left(n.model(n.conv(enlarged(n, image(n, 1)), 64, 1, bias=True)), "order")


# -- Concat of an enlarged image --------------------------------------------------------------------------------------


def neck(n, parts=1, size=32, width=64, group=1, **attributes):
    """A pyramid's joint: an enlarged image beside others of its size, and a convolution."""
    low = n.input((1, width, size, size), "low")
    others = [n.input((1, width, 2 * size, 2 * size), f"high_{i}") for i in range(parts)]
    y = n.op("Concat", *others[:1], enlarged(n, low), *others[1:], axis=1, channels=width * (parts + 1))
    return n.model(n.relu(n.conv(y, width, 1, bias=True, group=group)))


@pytest.mark.parametrize(("parts", "expected"), [(1, []), (2, ["Concat"])])
def test_a_concat_of_an_enlarged_image_is_taken_apart(parts, expected):
    model = neck(net(), parts)
    result, (record,), _ = becomes(model, [*expected, "Conv", "Resize", "Conv", "Add", "Relu"], (1,))
    assert record.macs[1] < record.macs[0]
    weights = [t.dims[1] for t in result.graph.initializer if len(t.dims) == 4 and t.data_type == TensorProto.FLOAT]
    assert sorted(weights) == [64, 64 * parts]


def test_a_concat_stays_for_a_provider_on_which_that_was_not_measured():
    model = neck(net())
    folds, _ = fold(model, None, provider="cuda")
    assert not folds


def test_a_small_concat_stays():
    n = net()
    left(neck(n, size=2, width=4), "order", (1,))


def test_a_concat_stays_in_front_of_groups():
    left(neck(net(), group=2), "order", (1,))


# -- the proof --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", COPYING)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_proofs_resize_is_that_of_the_runtime(how, rounding, scale):
    n = net()
    model = n.model(enlarged(n, n.input((1, 2, 5, 1)), (1, 1, scale, scale), how, rounding))
    x = np.arange(10, dtype=np.float32).reshape(1, 2, 5, 1)
    node = model.graph.node[0]
    scales = np.array([1, 1, scale, scale], np.float64)[None, None]
    mine = _resize(Call(node, decoded(node), [x.astype(np.float64)[None, None], None, scales], False, 17))
    assert np.array_equal(mine[0, 0], run(model, {"x": x})[0])


def decoded(node):
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes(node).items()}


@pytest.mark.parametrize("attribute", [{"mode": "linear"}, {"coordinate_transformation_mode": "align_corners"}])
def test_the_proof_knows_no_other_resize(attribute):
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], **attribute)
    scales = np.array([1, 1, 2, 2], np.float64)[None, None]
    with pytest.raises(CannotEvaluate):
        _resize(Call(node, decoded(node), [np.ones((1, 1, 1, 1, 2, 2)), None, scales], False, 17))


def test_a_wrong_exchange_is_found(monkeypatch):
    """A pool that counts the border's zeros, taken in front of a bias all the same."""
    from onnxrep import commute

    monkeypatch.setattr(commute._Run, "biased", False)
    n = net()
    model = n.model(pool(n, n.conv(image(n), 8, 1, bias=True), 4, 2, pads=[1] * 4, count_include_pad=1))
    result = copy(model)
    folds, refusals = fold(result, None)
    assert not folds
    assert "certificate" in codes(refusals)
    assert result.SerializeToString() == model.SerializeToString()


def test_models_are_checked():
    n = net()
    result, _, _ = folded(n.model(pool(n, n.conv(image(n), 4, 1, bias=True))))
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("scale", [np.inf, np.nan, 0.0])
def test_scales_that_are_no_numbers_stay(scale):
    n = net()
    made = enlarged(n, image(n), (1, 1, 2, scale))
    model = n.model(n.conv(made, 4, 1))
    result = copy(model)
    folds, refusals = fold(result, None)
    assert not folds
    assert result == model
    assert "resize" in codes(refusals)


def test_pads_of_another_rank_stay():
    n = net()
    result = n.model(n.op("AveragePool", n.conv(image(n), 4, 1), kernel_shape=[2, 2], pads=[1] * 4, channels=4))
    (pads,) = [a for node in result.graph.node for a in node.attribute if a.name == "pads" and node.op_type != "Conv"]
    del pads.ints[2:]
    assert not fold(result, None)[0]


@pytest.mark.parametrize("shape", [(1, 256, 1024), (1, 256, 8, 16, 16)])
def test_a_concat_along_another_axis_stays(shape):
    """Counted from the end, axis -3 is that of the channels in images of two axes only."""
    axes = len(shape) - 2
    scales = [1.0, 1.0, *[2.0] * axes]
    n = net()
    large = n.op("Resize", n.input(shape), "", n.constant(np.array(scales, np.float32)), mode="nearest", channels=256)
    other = n.input(tuple(s if a < 2 else 2 * s for a, s in enumerate(shape)), "other")
    joined = n.op("Concat", large, other, axis=-3, channels=256)
    model = n.model(n.op("Conv", joined, n.constant(n.draw(4, 256, *[1] * axes)), channels=4))
    assert not fold(model, None)[0]


def test_an_exchange_that_is_not_asked_for_is_reported():
    n = net()
    model = n.model(n.op("GlobalAveragePool", n.conv(image(n), 8, 1)))
    _, refusals = fold(copy(model), None, selection=Selection(kinds=("merge",)))
    assert "excluded" in codes(refusals)
