"""Chains that only move data: lifted where they are the same map at every size, and left alone where they are not."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.blocks.tokens import split
from models.net import Net
from tests.tools import codes, folded, ops, run


def indices(net, *values):
    """An integer initializer."""
    return net.constant(list(values), dtype=np.int64)


def conv_model(move, shape=("n", 4, "h", "w"), channels=4):
    """Conv, a chain, Conv 1x1, Relu."""
    net = Net(2, exact=True, opset=18)
    x = net.input(shape)
    moved = move(net, net.conv(x, 4, 1, bias=True))
    net.channels[moved], net.axes[moved] = channels, 2
    return net.model(net.relu(net.conv(moved, 4, 1)))


def same(model, result, *shapes):
    """Both models agree bit for bit at some shapes."""
    for shape in shapes:
        feeds = {"x": np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)}
        assert np.array_equal(run(model, feeds)[0], run(result, feeds)[0]), shape


def shuffle(net, x):
    """A channel shuffle with sizes taken from the value."""
    shape = net.op("Shape", x)
    n, h, w = (net.op("Gather", shape, indices(net, k)) for k in (0, 2, 3))
    wide = net.op("Concat", n, indices(net, 2, 2), h, w, axis=0)
    narrow = net.op("Concat", n, indices(net, 4), h, w, axis=0)
    turned = net.op("Transpose", net.op("Reshape", x, wide), perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", turned, narrow)


def unshuffle(net, x):
    """Blocks of 2 x 2 pixels to channels, halves computed by division."""
    shape = net.op("Shape", x)
    n, h, w = (net.op("Gather", shape, indices(net, k)) for k in (0, 2, 3))
    rows, columns = (net.op("Div", side, indices(net, 2)) for side in (h, w))
    wide = net.op("Concat", n, indices(net, 4), rows, indices(net, 2), columns, indices(net, 2), axis=0)
    turned = net.op("Transpose", net.op("Reshape", x, wide), perm=[0, 1, 3, 5, 2, 4])
    return net.op("Reshape", turned, net.op("Concat", n, indices(net, 16), rows, columns, axis=0))


@pytest.mark.parametrize("shape", [("n", 4, "h", "w"), (2, 4, 6, 5)])
def test_a_shuffle_vanishes(shape):
    model = conv_model(shuffle, shape)
    result, _, _ = folded(model)
    assert ops(result) == ["Conv", "Relu"]
    same(model, result, *([(1, 4, 1, 1), (2, 4, 5, 8)] if shape[0] == "n" else [shape]))


@pytest.mark.parametrize("shape", [("n", 4, "h", "w"), (2, 4, 6, 4)])
def test_a_pixel_unshuffle_vanishes(shape):
    model = conv_model(unshuffle, shape, 16)
    result, _, _ = folded(model)
    assert "Transpose" not in ops(result)
    same(model, result, *([(1, 4, 2, 2), (2, 4, 6, 8)] if shape[0] == "n" else [shape]))


def cut(axis, start, stop):
    """A Slice with constant bounds."""
    return lambda net, x: net.op("Slice", x, indices(net, start), indices(net, stop), indices(net, axis))


def late(net, x):
    """A Slice that starts at the height less 60, or at 0."""
    height = net.op("Gather", net.op("Shape", x), indices(net, 2))
    start = net.op("Max", net.op("Sub", height, indices(net, 60)), indices(net, 0))
    return net.op("Slice", x, start, indices(net, 1 << 40), indices(net, 2))


@pytest.mark.parametrize(
    ("move", "shape"),
    [
        (cut(2, 0, 100), (1, 4, 128, 3)),
        (cut(2, 0, 50), (1, 4, 128, 3)),
        (cut(0, 0, 2), (3, 4, 2, 2)),
        (lambda net, x: net.op("Gather", x, indices(net, 0, 1), axis=0), (3, 4, 2, 2)),
        (late, (1, 4, 128, 3)),
        (lambda net, x: net.op("Pad", x, indices(net, 0, 0, 0, 0, 1, 0, 0, 0)), (3, 4, 2, 2)),
    ],
    ids=["rows up to 100", "rows up to 50", "two images", "gathered images", "computed start", "one more image"],
)
def test_what_changes_its_ways_at_a_size_stays(move, shape):
    model = conv_model(move)
    result, _, _ = folded(model)
    same(model, result, shape, (2, 4, 3, 3))


def test_what_scatters_by_adding_stays():
    def scatter(net, x):
        places = np.stack(np.meshgrid([0], range(4), range(6), range(5), indexing="ij"), -1)
        image = net.constant(np.full((1, 4, 6, 5), 3.0))
        return net.op("ScatterND", image, net.constant(places, dtype=np.int64), x, reduction="add")

    model = conv_model(scatter, (1, 4, 6, 5))
    result, _, _ = folded(model)
    assert "ScatterND" in ops(result)
    same(model, result, (1, 4, 6, 5))


@pytest.mark.parametrize("dead", ["Identity", "Shape", "Transpose", "Flatten", "Slice"])
def test_a_reader_that_nobody_reads_counts(dead):
    net = Net(0, exact=True)
    x = net.input((1, 4, 6, 6))
    a = net.conv(x, 4, 1)
    y = net.relu(net.conv(a, 4, 1))
    more = [indices(net, 0), indices(net, 2), indices(net, 2)] if dead == "Slice" else []
    net.op(dead, a, *more)
    model = net.model(y)
    result, _, _ = folded(model)
    same(model, result, (1, 4, 6, 6))


def test_a_value_that_is_read_in_two_layouts_stays():
    net = Net(0, exact=True)
    x = net.input((2, "l", 4))
    net.channels[x] = 6
    a = net.conv(x, 4, 1, bias=True)
    b = net.conv(a, 4, 1, bias=True)
    model = net.model(net.op("Add", net.op("Neg", net.op("Sub", b, a)), net.op("Transpose", a, perm=[0, 2, 1])))
    result, _, _ = folded(model)
    same(model, result, (2, 6, 4))


@pytest.mark.parametrize("move", ["Slice", "Gather", "Reshape"])
def test_a_product_from_the_left_is_written_for_what_it_is(move):
    net = Net(0, exact=True)
    x = net.input((2, 6, 4))
    y = net.op("Add", net.op("MatMul", net.constant(net.draw(6, 6)), x), x)
    net.axes[y] = 1
    if move == "Slice":
        y = net.op("Slice", y, indices(net, 0), indices(net, 4), indices(net, 2), indices(net, 2))
    elif move == "Gather":
        y = net.op("Gather", y, indices(net, -4), axis=2)
    else:
        y = net.op("Reshape", y, indices(net, 2, 6, 2, 2))
        net.axes[y] = 2
    model = net.model(net.op("Neg", y))
    result, _, _ = folded(model)
    same(model, result, (2, 6, 4))


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, w) \n y = Div(a, two)",
        "a = Add(x, x) \n b = MatMul(a, w) \n y = Mul(b, two)",
    ],
)
def test_integers_are_no_numbers_of_this_algebra(body):
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (int32[2, 2] x) => (int32[2, 2] y) <int32[2, 2] w = {{1, 3, 5, 7}}, int32[1] two = {{2}}> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    result, folds, _ = folded(model)
    assert not folds
    assert result == model


def test_ops_with_another_meaning_in_old_opsets_are_not_evaluated():
    """Before opset 13 a Softmax along axis 1 went over all the axes behind it too."""
    net = Net(0, opset=11)
    x = net.input((1, 4, 3, 3))
    weight = net.op("Softmax", net.constant(net.draw(4, 4, 2, 1)), axis=1)
    net.nodes.append(helper.make_node("Conv", [x, weight], ["a"]))
    net.channels["a"], net.axes["a"] = 4, 2
    model = net.model(net.relu(net.conv("a", 4, 1)))
    result, _, refusals = folded(model)
    assert "not-constant" in codes(refusals)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4, 3, 3)).astype(np.float32)}
    assert np.allclose(run(model, feeds)[0], run(result, feeds)[0], 1e-5, 1e-5)


def test_a_default_image_does_not_make_sizes_static():
    """A caller may feed another image, of another size, in place of an initializer that is an input too."""
    rng = np.random.default_rng(0)
    weights = [rng.integers(-3, 4, s).astype(np.float32) for s in ((8, 1, 2, 2), (1, 8, 3, 3))]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"], strides=[2, 2]),
            helper.make_node("Conv", ["a", "w1"], ["y"], pads=[1, 1, 1, 1]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"))],
        [
            numpy_helper.from_array(np.zeros((1, 1, 8, 8), np.float32), "x"),
            *(numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result, _, _ = folded(model)
    same(model, result, (1, 1, 9, 9), (1, 1, 8, 8))


def test_an_image_without_channels_is_left_alone():
    net = Net(0, exact=True)
    x, e = net.input((1, 4, 3, 3)), net.input((1, 0, 3, 3), "e")
    joined = net.op("Concat", net.conv(x, 4, 1), e, axis=1, channels=4)
    model = net.model(net.relu(net.conv(joined, 4, 1)))
    result, _, _ = folded(model)
    assert ops(result).count("Relu") == 1


def test_a_convolution_says_what_the_image_of_a_loop_has():
    """Nothing declares the carried value's shape, but its reader's weight tells rank and channels."""
    rng = np.random.default_rng(0)
    weights = [rng.integers(-2, 3, (4, 4, k, k)).astype(np.float32) for k in (3, 1)]
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["v", "w0"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["v", "w1"], ["b"]),
            helper.make_node("Sum", ["a", "b", "v"], ["t"]),
            helper.make_node("Relu", ["t"], ["v2"]),
            helper.make_node("Identity", ["c"], ["c2"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "go", "x"], ["y"], body=body)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list("nchw"))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"))],
        [
            *(numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)),
            numpy_helper.from_array(np.array(2), "n"),
            numpy_helper.from_array(np.array(True), "go"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result, _, _ = folded(model)
    inner = next(a.g for a in result.graph.node[0].attribute if a.name == "body")
    assert [n.op_type for n in inner.node] == ["Conv", "Relu", "Identity"]
    same(model, result, (1, 4, 5, 6), (2, 4, 1, 1))


def test_what_is_cropped_does_not_come_back_as_padding():
    """A Slice that drops rows at the end, then a padded convolution: the padding is zero, not the dropped rows."""

    def crop(net, x):
        padded = net.op("Pad", x, indices(net, 0, 0, 0, 1, 0, 0, 0, 0))
        return net.op("Slice", padded, indices(net, 0, 1), indices(net, 1 << 40, -2), indices(net, 2, 3))

    net = Net(1, exact=True)
    x = net.input(("n", 4, "h", "w"))
    moved = crop(net, x)
    net.channels[moved], net.axes[moved] = 4, 2
    branches = [net.conv(moved, 4, 3, pads=[1, 1, 1, 3], bias=True), net.conv(x, 4, 3)]
    model = net.model(net.relu(net.add(*branches)))
    result, _, refusals = folded(model)
    assert "border" in codes(refusals)
    same(model, result, (1, 4, 5, 6), (2, 4, 4, 7))


def test_a_chain_that_others_read_too_stays_for_them():
    net = Net(1, exact=True)
    x = net.input(("n", 4, "h", "w"))
    moved = shuffle(net, net.conv(x, 4, 1, bias=True))
    net.channels[moved], net.axes[moved] = 4, 2
    branches = [net.conv(moved, 3, k, pads=k // 2, bias=True) for k in (1, 3)]
    model = net.model(*map(net.relu, branches), net.relu(moved))
    result, _, _ = folded(model)
    feeds = {"x": np.random.default_rng(0).integers(-3, 4, (2, 4, 5, 6)).astype(np.float32)}
    for old, new in zip(run(model, feeds), run(result, feeds), strict=True):
        assert np.array_equal(old, new)


def test_a_value_of_which_only_the_type_is_taken_may_vanish():
    """Unoptimised exports compute a bias by a CastLike of a part of the image."""
    net = Net(1, exact=True, opset=18)
    x = net.input(("n", 4, "h", "w"))
    a = net.conv(x, 4, 3, bias=True)
    part = net.op("Slice", a, indices(net, 0), indices(net, 1), indices(net, 2))
    bias = net.op("CastLike", net.constant([1.0, 2.0, 3.0, 4.0]), part)
    weight = net.constant(net.draw(4, 4, 1, 1))
    net.nodes.append(helper.make_node("Conv", [a, weight, bias], ["b"]))
    net.channels["b"], net.axes["b"] = 4, 2
    model = net.model(net.relu("b"))
    result, _, _ = folded(model)
    assert ops(result) == ["Conv", "Relu"]
    same(model, result, (1, 4, 1, 1), (2, 4, 5, 6))


@pytest.mark.parametrize("shape", [("n", 4, "h", "w"), (2, 4, 6, 4)])
def test_sizes_taken_inside_a_chain(shape):
    """The last Reshape gives the value the shape that it has already; exporters write that for images without batch."""

    def move(net, x):
        inner = unshuffle(net, x)
        return net.op("Reshape", inner, net.op("Shape", inner))

    model = conv_model(move, shape, 16)
    result, _, _ = folded(model)
    assert "Transpose" not in ops(result)
    same(model, result, *([(1, 4, 2, 2), (2, 4, 6, 8)] if shape[0] == "n" else [shape]))


def test_slices_with_steps_keep_their_size_at_every_remainder():
    """Cut and joined again channel by channel: at width 3k + 2 the last column must not get lost."""

    def move(net, x):
        cuts = zip(split(net, x, [2, 2]), ((1, 0), (0, 1)), ((-2, -1), (-3, 2**31 - 1)), strict=True)
        parts = [
            net.op("Slice", half, *(indices(net, *values) for values in (starts, ends, (2, 3), (3, 3))))
            for half, starts, ends in cuts
        ]
        return net.op("Concat", *parts, axis=1)

    model = conv_model(move)
    result, folds, _ = folded(model)
    assert folds
    same(model, result, *[(1, 4, 7 + h, 7 + w) for h in range(3) for w in range(3)])
