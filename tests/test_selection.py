"""What a caller lets fold: by name, by kind, by a function."""

from __future__ import annotations

import doctest

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import onnxrep
from models import skeletons
from models.net import Net
from onnxrep import passes, pipeline
from onnxrep.errors import UsageError
from tests.tools import ops, run


def two_blocks():
    """Two blocks of 3x3 + 1x1 + identity with BatchNormalizations, a Relu behind each; the names of their nodes."""
    n = Net(3)
    value = n.input((1, 4, 6, 6))
    blocks = []
    for _ in range(2):
        first = len(n.nodes)
        value = n.relu(n.add(n.conv_bn(value, 4, 3), n.conv_bn(value, 4, 1), n.bn(value)))
        blocks.append(n.nodes[first:])
    return n.model(value), blocks


def same(before, after):
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)}
    for old, new in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-4)


def kept(model, nodes):
    """Whether nodes are in a model just as they were."""
    found = {node.name: node for node in model.graph.node}
    return all(found.get(node.name) == node for node in nodes)


def test_the_type_that_goes_in_comes_out(tmp_path):
    model, _ = two_blocks()
    before = model.SerializeToString(deterministic=True)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    graph = gs.import_onnx(model)
    for form in (model, path, str(path), before):
        folded = onnxrep.fold(form)
        assert isinstance(folded, onnx.ModelProto)
        assert ops(folded) == ["Conv", "Relu"] * 2
        same(model, folded)
    folded = onnxrep.fold(graph)
    assert isinstance(folded, gs.Graph)
    assert [node.op for node in folded.nodes] == ["Conv", "Relu"] * 2
    assert len(graph.nodes) == len(model.graph.node)
    assert model.SerializeToString(deterministic=True) == before
    assert isinstance(onnxrep.optimize(graph).graph(), gs.Graph)


def test_external_data_comes_into_the_message(tmp_path):
    model, _ = two_blocks()
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0)
    folded = onnxrep.fold(path, only=["nothing"])
    assert not any(t.external_data for t in folded.graph.initializer)
    same(onnx.load(path), folded)
    same(onnx.load(path), onnxrep.fold(path))


@pytest.mark.parametrize("by", ["name", "output"])
def test_only_and_exclude(by):
    model, (first, second) = two_blocks()
    names = [node.name if by == "name" else node.output[0] for node in second]
    for folded in (onnxrep.fold(model, exclude=names), onnxrep.fold(model, only=[first[0].output[0]])):
        assert kept(folded, second)
        assert ops(folded)[:2] == ["Conv", "Relu"]
        same(model, folded)


def test_what_is_around_an_excluded_node_folds():
    model, (first, _) = two_blocks()
    convs = [node for node in first if node.op_type == "Conv"]
    (small,) = [node for node in convs if node is not convs[0]]
    folded = onnxrep.fold(model, exclude=[small.name])
    assert kept(folded, [small])
    assert len([op for op in ops(folded) if op == "Conv"]) == 3
    same(model, folded)


def test_every_node_may_be_excluded_by_itself():
    """Whatever single node is excluded, it stays, and the function too."""
    model, blocks = two_blocks()
    for node in blocks[0]:
        folded = onnxrep.fold(model, exclude=[node.name])
        assert kept(folded, [node]), node.name
        same(model, folded)


def test_kinds():
    model, _ = two_blocks()
    merged = onnxrep.fold(model, kinds=["merge"])
    assert ops(merged) == ["Conv", "Relu"] * 2
    fused = onnxrep.fold(model, kinds=["fuse"])
    report = onnxrep.inspect(model, onnxrep.Options(kinds=["fuse"]))
    assert {fold.kind for fold in report.folds} == {"fuse"}
    assert ops(fused).count("Conv") == 4
    assert ops(fused).count("Add") == 4
    same(model, fused)


def test_a_function_decides():
    model, _ = two_blocks()
    seen = []

    def select(fold):
        seen.append(fold)
        return len(seen) == 1

    report = onnxrep.inspect(model, onnxrep.Options(select=select))
    assert len(report.folds) == 1
    assert seen[0].certificate.error <= seen[0].certificate.bound
    assert report.folds[0].output == seen[0].output
    assert {r.code for r in report.refusals} == {"excluded"}
    assert "select" in report.options["select"]
    same(model, onnxrep.fold(model, select=lambda fold: fold.kind == "merge"))


def test_refusals_name_the_pattern():
    model, (first, _) = two_blocks()
    report = onnxrep.inspect(model, onnxrep.Options(exclude_nodes=[first[-2].name, "typo?"]))
    details = [r.detail for r in report.refusals if r.code == "excluded"]
    assert any(first[-2].name in detail for detail in details)
    assert report.unmatched == ("typo?",)
    assert report.options == {"exclude_nodes": [first[-2].name, "typo?"]}


def test_what_is_excluded_is_refused_for_no_other_reason():
    model, _ = two_blocks()
    for options in (onnxrep.Options(only_nodes=["nothing"]), onnxrep.Options(exclude_nodes=["*"])):
        report = onnxrep.inspect(model, options)
        assert not report.folds
        assert {r.code for r in report.refusals} == {"excluded"}
    report = onnxrep.inspect(
        skeletons.fill("mobileone_s0/train_dynamic"), onnxrep.Options(only_nodes=["*/stages.0.0/*"])
    )
    assert len(report.folds) == 1
    assert {r.code for r in report.refusals} == {"excluded"}


def test_wrong_calls():
    model, _ = two_blocks()
    for wrong in ({"kinds": ["melt"]}, {"only": "name"}, {"exclude": "name"}):
        with pytest.raises(UsageError):
            onnxrep.fold(model, **wrong)


def test_folds_that_need_each_other_stay_consistent():
    """Where two regions take over a shared node, excluding one of them leaves the node."""
    n = Net(5)
    x = n.input((1, 4, 6, 6))
    shared = n.bn(x)
    first = n.add(n.conv_bn(x, 4, 3), shared)
    second = n.add(n.conv_bn(x, 4, 1), shared)
    model = n.model(first, second)
    for excluded in (first, second, shared):
        folded = onnxrep.fold(model, exclude=[excluded])
        assert excluded in {o for node in folded.graph.node for o in node.output}
        same(model, folded)
    for select in (lambda fold: fold.output == first, lambda fold: fold.output == second):
        same(model, onnxrep.fold(model, select=select))


@pytest.mark.parametrize("module", [passes, pipeline])
def test_examples_in_the_documentation(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
