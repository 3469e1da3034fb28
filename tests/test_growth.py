"""The work of planning grows with the length of a model, not with its square; counted in steps, not in seconds."""

from __future__ import annotations

import pytest

from benchmarks.growth import foldable, plain
from models.net import Net
from onnxrep.plan.expansion import Expander
from onnxrep.plan.views import Views
from tests.tools import folded, ops


def linear_sums(count):
    """``count`` sums ``C(x) + C(x) + x`` of 1x1 convolutions in a row."""
    n = Net(0)
    x = n.input((1, 4, 8, 8))
    for _ in range(count):
        x = n.add(n.conv(x, 4, 1), n.conv(x, 4, 1), x)
    return n.model(n.relu(x))


def wide_sum(count):
    """A sum of ``count`` convolutions of one value."""
    n = Net(0, exact=True)
    x = n.input((1, 4, 8, 8))
    return n.model(n.relu(n.add(*(n.conv(x, 4, 1) for _ in range(count)))))


def many_readers(count):
    """``count`` convolutions that read the sum of two."""
    n = Net(0, exact=True)
    x = n.input((1, 4, 8, 8))
    y = n.relu(n.add(n.conv(x, 4, 3), n.conv(x, 4, 1)))
    return n.model(*(n.conv(y, 4, 1) for _ in range(count)))


def residual(count):
    """``count`` residual blocks of two convolutions in a row."""
    n = Net(0, exact=True)
    x = n.input((1, 4, 8, 8))
    for _ in range(count):
        x = n.add(x, n.conv_bn(n.relu(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1))), 4, 3))
    return n.model(n.relu(x))


def work(model, monkeypatch):
    """The steps that planning a model takes: ops looked through, and looks at how an op is linear."""
    steps = 0

    def counted(method, measure):
        def call(*arguments):
            nonlocal steps
            result = method(*arguments)
            steps += measure(result)
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Expander, "expand", counted(Expander.expand, lambda found: len(found.expanded)))
        patch.setattr(Views, "lifted", counted(Views.lifted, lambda _: 1))
        folded(model)
    return steps


@pytest.mark.parametrize(
    ("build", "size"),
    [(foldable, 100), (plain, 100), (wide_sum, 60), (many_readers, 60), (residual, 20)],
)
def test_work_grows_with_length(build, size, monkeypatch):
    short, long = (work(build(n), monkeypatch) for n in (size, 4 * size))
    assert long <= 4.4 * short


def test_long_linear_chains_are_folded_in_pieces(monkeypatch):
    """Everything below could be one convolution; looking for that takes the square of the length, up to a bound."""
    short, long = (work(linear_sums(n), monkeypatch) for n in (50, 200))
    assert long <= 8 * short
    result, _, _ = folded(linear_sums(30))
    assert ops(result) == ["Conv", "Relu"]
