"""Layers over all pixels of all channels: one matrix with the convolutions beside them, where the size is static."""

from __future__ import annotations

import numpy as np
import pytest

from models.net import Net
from tests.tools import folded, ops, run

CHANNELS, SIDE = 3, 4
PIXELS = CHANNELS * SIDE * SIDE
LEFT = ["MatMul", "Conv", "Add", "Reshape", "Reshape"]
"""What is left where the layer stays apart."""


def image(n, batch="N", side=SIDE):
    return n.input((batch, CHANNELS, side, side))


def shaped(n, x, *dims, channels=CHANNELS):
    return n.op("Reshape", x, n.constant(dims, dtype=np.int64), channels=channels)


def product(n, x, outputs=PIXELS):
    return n.op("MatMul", x, n.constant(n.draw(PIXELS, outputs)), channels=outputs)


def layer(n, x):
    """``x W`` over all pixels."""
    return shaped(n, product(n, shaped(n, x, -1, PIXELS, channels=PIXELS)), -1, CHANNELS, SIDE, SIDE)


def becomes(model, expected, side=SIDE, batches=(1, 3)):
    result, _, refusals = folded(model)
    assert sorted(ops(result)) == sorted(expected)
    rng = np.random.default_rng(0)
    for batch in batches:
        feeds = {"x": rng.integers(-3, 4, (batch, CHANNELS, side, side)).astype(np.float32)}
        for old, new in zip(run(model, feeds), run(result, feeds), strict=True):
            assert np.array_equal(old, new)
    assert "certificate" not in {r.code for r in refusals}
    return result


@pytest.mark.parametrize("kernel", [{"kernel": 3}, {"kernel": (1, 3), "group": 3}, {"kernel": 3, "dilation": 2}])
def test_a_layer_and_a_convolution(kernel):
    n = Net(4, exact=True)
    x = image(n)
    becomes(n.model(n.add(layer(n, x), n.conv(x, CHANNELS, **kernel))), ["Reshape", "MatMul", "Reshape"])


def test_a_static_batch():
    n = Net(4, exact=True)
    x = image(n, batch=2)
    becomes(n.model(n.add(layer(n, x), n.conv_bn(x, CHANNELS, 3))), ["Reshape", "Gemm", "Reshape"], batches=(2,))


def test_flatten_in_place_of_reshape():
    n = Net(4, exact=True)
    x = image(n)
    y = product(n, n.op("Flatten", x, channels=PIXELS))
    total = n.add(y, n.op("Flatten", n.conv_bn(x, CHANNELS, 3), channels=PIXELS))
    n.axes[total] = 0
    becomes(n.model(total), ["Reshape", "Gemm"])


def test_two_layers_in_a_row():
    n = Net(4, exact=True)
    x = image(n)
    y = product(n, product(n, shaped(n, x, -1, PIXELS, channels=PIXELS)))
    y = shaped(n, y, -1, CHANNELS, SIDE, SIDE)
    becomes(n.model(n.add(y, n.conv(x, CHANNELS, 3))), ["Reshape", "MatMul", "Reshape"])


def test_an_activation_between_keeps_them_apart():
    n = Net(4, exact=True)
    x = image(n)
    y = n.relu(product(n, shaped(n, x, -1, PIXELS, channels=PIXELS)))
    y = shaped(n, y, -1, CHANNELS, SIDE, SIDE)
    becomes(n.model(n.add(y, n.conv(x, CHANNELS, 3))), [*LEFT, "Relu"])


def test_a_layer_that_is_needed_elsewhere():
    n = Net(4, exact=True)
    x = image(n)
    y = layer(n, x)
    becomes(n.model(n.add(y, n.conv(x, CHANNELS, 3)), y), LEFT)


def test_an_image_of_open_size():
    n = Net(4, exact=True)
    x = n.input(("N", CHANNELS, "H", "W"))
    becomes(n.model(n.add(layer(n, x), n.conv(x, CHANNELS, 3))), LEFT)


def test_a_layer_to_another_size():
    n = Net(4, exact=True)
    x = image(n)
    y = product(n, shaped(n, x, -1, PIXELS, channels=PIXELS), 2 * SIDE * SIDE)
    y = shaped(n, y, -1, 2, SIDE, SIDE, channels=2)
    becomes(n.model(n.add(y, n.conv(x, 2, 3))), LEFT)


def test_a_matrix_of_pixels_that_all_channels_share():
    n = Net(4, exact=True)
    x = image(n)
    spots = SIDE * SIDE
    y = n.op("MatMul", shaped(n, x, -1, spots), n.constant(n.draw(spots, spots)))
    y = shaped(n, y, -1, CHANNELS, SIDE, SIDE)
    becomes(n.model(n.add(y, n.conv(x, CHANNELS, 3))), LEFT)


def test_two_open_sizes_have_no_constant_shape():
    n = Net(4, exact=True)
    x = n.input(("N", "T", CHANNELS, SIDE, SIDE))
    y = product(n, shaped(n, x, -1, PIXELS, channels=PIXELS))
    model = n.model(n.add(n.op("Reshape", y, n.op("Shape", x)), n.op("Mul", x, n.constant(2.0))))
    result, folds, refusals = folded(model)
    assert not folds
    assert not refusals
    assert ops(result) == ops(model)
