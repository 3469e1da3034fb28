"""A map with several readers is part of each of them, or of none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from models.net import Net
from onnxrep import folding
from onnxrep.folding import fold
from tests.tools import assert_same, codes, copy, folded, ops

WIDTH = 8


def net():
    return Net(11, exact=True)


def adapter(n, x, bias=True):
    """``x + 2 * B(A x)`` of rank 2, which by itself is cheapest as it is."""
    return n.add(x, n.scale(n.conv(n.conv(x, 2, 1, bias=bias), WIDTH, 1, bias=bias), 2.0))


def model_of(readers, bias=True, layers=1):
    """Adapters, then convolutions that all read the last, with an activation each."""
    n = net()
    value = n.input(("N", WIDTH, "H", "W"))
    for _ in range(layers):
        value = adapter(n, value, bias)
    return n.model(*(n.relu(n.conv(value, WIDTH, kernel, **settings)) for kernel, settings in readers))


def becomes(model, expected):
    result, folds, refusals = folded(model)
    assert sorted(ops(result)) == sorted(expected)
    assert_same(model, result, (3, 4, 5, 8))
    assert weights(result) <= weights(model)
    return result, folds, refusals


def weights(model):
    """How many weights the convolutions have."""
    shapes = {i.name: i.dims for i in model.graph.initializer}
    return sum(math.prod(shapes[n.input[1]]) for n in model.graph.node if n.op_type == "Conv")


def left(count):
    """What is left of some readers that took over what they read."""
    return ["Conv", "Relu"] * count


KEPT = ["Conv", "Conv", "Add"]
"""What is left of an adapter that stays: its scale is part of a convolution."""


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_goes_into_all_its_readers(count, bias):
    becomes(model_of([(1, {"bias": bias})] * count, bias), left(count))


def test_readers_of_other_sizes():
    becomes(model_of([(1, {}), (3, {"pads": 0}), (2, {"pads": 0, "stride": 2}), (1, {"stride": 2})]), left(4))


def test_two_adapters_in_a_row():
    becomes(model_of([(1, {})] * 3, layers=2), left(3))


def test_a_map_without_a_shift_goes_into_padded_readers():
    becomes(model_of([(3, {}), (3, {"dilation": 2}), (1, {"pads": 1})], bias=False), left(3))


@pytest.mark.parametrize("padded", [{"kernel": 3}, {"kernel": 1, "pads": 1}])
def test_a_shift_does_not_go_into_a_padded_reader(padded):
    kernel = padded["kernel"]
    settings = {k: v for k, v in padded.items() if k != "kernel"}
    becomes(model_of([(1, {}), (kernel, settings), (1, {})]), KEPT + left(3))


def test_a_grouped_reader_would_grow():
    becomes(model_of([(1, {}), (1, {"group": WIDTH}), (1, {})]), KEPT + left(3))


def test_a_plain_convolution_that_two_read():
    n = net()
    value = n.conv_bn(n.input(("N", WIDTH, "H", "W")), WIDTH, 1)
    becomes(n.model(*(n.relu(n.conv_bn(value, WIDTH, 1)) for _ in range(2))), left(2))


def test_a_reader_that_is_no_convolution():
    n = net()
    value = adapter(n, n.input(("N", WIDTH, "H", "W")))
    outputs = [n.relu(n.conv(value, WIDTH, 1)) for _ in range(2)]
    becomes(n.model(*outputs, n.relu(value)), [*KEPT, *left(2), "Relu"])


def test_the_map_is_a_graph_output():
    n = net()
    value = adapter(n, n.input(("N", WIDTH, "H", "W")))
    outputs = [n.relu(n.conv(value, WIDTH, 1)) for _ in range(2)]
    becomes(n.model(*outputs, value), KEPT + left(2))


def test_a_value_inside_the_map_is_a_graph_output():
    n = net()
    x = n.input(("N", WIDTH, "H", "W"))
    inner = n.conv(x, 2, 1, bias=True)
    value = n.add(x, n.conv(inner, WIDTH, 1, bias=True))
    outputs = [n.relu(n.conv(value, WIDTH, 1)) for _ in range(2)]
    result, _, _ = becomes(n.model(*outputs, inner), KEPT + left(2))
    assert inner in [o.name for o in result.graph.output]


def narrow(n):
    """A convolution from 8 channels to 2, and two convolutions that read it: one gains by taking it over, one loses."""
    value = n.conv(n.input(("N", WIDTH, "H", "W")), 2, 1)
    return n.conv(value, 1, 1), n.conv(value, WIDTH, 1)


def test_one_reader_alone_takes_nothing_over():
    n = net()
    becomes(n.model(*map(n.relu, narrow(n))), ["Conv", *left(2)])


def test_what_folds_without_the_map_still_folds():
    """The first plan takes the map over into one reader, with what is behind it; the second is done without the map."""
    n = net()
    gains, loses = narrow(n)
    _, folds, _ = becomes(n.model(n.relu(n.bn(gains)), n.relu(loses)), ["Conv", *left(2)])
    assert len(folds) == 1


def test_a_proof_that_fails_keeps_the_map(monkeypatch):
    """Where one of three folds is not proven, the others are not done either: the map would be needed still."""
    model = model_of([(1, {})] * 3)
    refused = [n.output[0] for n in model.graph.node if n.op_type == "Conv"][-1]

    def certify(claims):
        found = folding_certify(claims)
        return [
            replace(c, fault="wrong") if claim.output == refused else c for claim, c in zip(claims, found, strict=True)
        ]

    folding_certify = folding.certify
    monkeypatch.setattr(folding, "certify", certify)
    result = copy(model)
    _, refusals = fold(result, None)
    assert "certificate" in codes(refusals)
    assert sorted(ops(result)) == sorted(KEPT + left(3))
    assert_same(model, result, (3, 4))
    assert weights(result) == weights(model)


def test_a_reader_that_must_stay_keeps_the_map():
    model = model_of([(1, {})] * 3)
    kept = [n.output[0] for n in model.graph.node if n.op_type == "Conv"][-1]
    result = copy(model)
    fold(result, None, skipped=[("", kept)])
    assert sorted(ops(result)) == sorted(KEPT + left(3))
    assert_same(model, result, (3, 4))
    assert weights(result) == weights(model)
