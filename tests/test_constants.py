"""What is calculated from constants: right, and nobody else's memory."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxrep import constants
from onnxrep.constants import evaluate

NODES = {
    "Reshape": ([np.arange(12, dtype=np.float32), np.array([3, 4])], {}),
    "Identity": ([np.arange(12, dtype=np.float32)], {}),
    "Slice": ([np.arange(12, dtype=np.float32), np.array([2]), np.array([5])], {}),
    "Transpose": ([np.arange(12, dtype=np.float32).reshape(3, 4)], {"perm": [1, 0]}),
    "Split": ([np.arange(12, dtype=np.float32), np.array([5, 7])], {}),
}


def made(op):
    arrays, attributes = NODES[op]
    names = [f"i{k}" for k in range(len(arrays))]
    outputs = ["o0", "o1"] if op == "Split" else ["o0"]
    feeds = {name: array.copy() for name, array in zip(names, arrays, strict=True)}
    return helper.make_node(op, names, outputs, **attributes), feeds


@pytest.mark.parametrize("op", NODES)
def test_what_is_remembered_is_a_copy(op):
    """What it is made of may be part of a file, which changes, or of a large weight, which must not stay in memory."""
    node, feeds = made(op)
    first = {name: values.copy() for name, values in evaluate(node, feeds, 17).items()}
    for values in feeds.values():
        values[...] = 1  # as a file does that is written anew
    _, again = made(op)
    found = evaluate(node, again, 17)
    for name, values in found.items():
        assert np.array_equal(values, first[name])
        assert values.base is None
        assert not values.flags.writeable


def test_equal_inputs_are_evaluated_once_and_others_anew(monkeypatch):
    node, feeds = made("Transpose")
    calls, real = [], constants._evaluated
    monkeypatch.setattr(constants, "_remembered", {})
    monkeypatch.setattr(constants, "_evaluated", lambda *a: calls.append(a) or real(*a))
    results = [evaluate(node, {"i0": values}, 17)["o0"] for values in (feeds["i0"], feeds["i0"].copy())]
    assert len(calls) == 1
    assert np.array_equal(*results)
    for other in (feeds["i0"] + 1, feeds["i0"].astype(np.float64), feeds["i0"].reshape(4, 3)):
        assert np.array_equal(evaluate(node, {"i0": other}, 17)["o0"], other.T)
    assert len(calls) == 4


def test_not_too_much_is_remembered(monkeypatch):
    monkeypatch.setattr(constants, "_remembered", {})
    monkeypatch.setattr(constants, "_MOST_REMEMBERED", 3)
    node, _ = made("Identity")
    for size in range(10):
        evaluate(node, {"i0": np.zeros(size)}, 17)
        assert len(constants._remembered) <= 3
    evaluate(node, {"i0": np.zeros(1 << 12)}, 17)
    large = helper.make_node("ConstantOfShape", ["i0"], ["o0"])
    evaluate(large, {"i0": np.array([1 << 12])}, 17)
    assert all(v.nbytes <= 1 << 12 for found in constants._remembered.values() for v in found.values())
