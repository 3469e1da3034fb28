"""Models with local functions: kept as they are, or inlined on request."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxrep import Options, cli, inspect, optimize
from tests.tools import codes, run

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]


def model_with_function(linear=True):
    """A block of two convolutions inside a function, called twice with weights as arguments."""
    inner = [] if linear else [helper.make_node("Relu", ["a"], ["r"])]
    body = [
        helper.make_node("Conv", ["x", "w3"], ["a"], pads=[1, 1, 1, 1]),
        *inner,
        helper.make_node("Conv", ["x", "w1"], ["b"]),
        helper.make_node("Add" if linear else "Mul", ["a" if linear else "r", "b"], ["y"]),
    ]
    function = helper.make_function("local", "Block", ["x", "w3", "w1"], ["y"], body, OPSETS[:1])
    rng = np.random.default_rng(0)
    weights = [rng.integers(-3, 4, (4, 4, k, k)).astype(np.float32) for k in (3, 1, 3, 1)]
    graph = helper.make_graph(
        [
            helper.make_node("Block", ["x", "w0", "w1"], ["h"], "first", domain="local"),
            helper.make_node("Relu", ["h"], ["g"], "relu"),
            helper.make_node("Block", ["g", "w2", "w3"], ["y"], "second", domain="local"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=OPSETS, functions=[function], ir_version=10)


def test_they_stay_by_default():
    model = model_with_function()
    result = optimize(model)
    assert result.status == "unchanged"
    assert codes(result.report.refusals) == {"local-function"}
    assert len(result.model.functions) == 1


@pytest.mark.parametrize("size", [(1, 4, 1, 1), (2, 4, 5, 8)])
def test_they_fold_when_inlined(size):
    model = model_with_function()
    result = optimize(model, options=Options(inline_functions=True))
    assert result.status == "folded"
    assert result.report.verification.verdict == "verified"
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Relu", "Conv"]
    assert not result.model.functions
    feeds = {"x": np.random.default_rng(1).integers(-3, 4, size).astype(np.float32)}
    assert np.array_equal(run(model, feeds)[0], run(result.model, feeds)[0])


def test_a_model_in_which_nothing_folds_stays_as_it_was(tmp_path):
    model = model_with_function(linear=False)
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    result = optimize(path, out, Options(inline_functions=True))
    assert result.status == "unchanged"
    assert out.read_bytes() == path.read_bytes()


def test_the_option(tmp_path, capsys):
    path = tmp_path / "in.onnx"
    onnx.save(model_with_function(), path)
    assert len(inspect(path, Options(inline_functions=True)).folds) == 2
    assert cli.main(["optimize", str(path), "--inline-functions"]) == 0
    assert "Conv" in capsys.readouterr().out
    assert not onnx.load(path.with_suffix(".rep.onnx")).functions
