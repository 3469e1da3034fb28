"""What the one mutator keeps, and what it removes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import skeletons
from models.net import Net
from onnxrep import graph, validity
from onnxrep.errors import InvalidModel, UnsupportedModel
from onnxrep.folding import fold
from onnxrep.graph import PROVENANCE, Model
from tests.tools import copy, folded, node, ops, run


def rep_block(**settings):
    """A RepVGG block with BatchNormalization kept, and its net."""
    n = Net(5, exact=True)
    x = n.input((1, 4, 6, 6))
    y = n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), n.bn(x))
    return n.model(n.relu(y), **settings)


def test_the_consumers_names_stay():
    model = rep_block()
    result, _, _ = folded(model)
    relu = node(model, "Relu")
    assert node(result, "Relu") == relu
    assert node(result, "Conv").output[0] == relu.input[0]


def test_metadata_doc_strings_and_versions_stay():
    model = rep_block()
    model.doc_string, model.domain, model.model_version = "what it is", "org.example", 7
    model.metadata_props.add(key="author", value="somebody")
    model.graph.doc_string = "the graph"
    model.graph.metadata_props.add(key="graph", value="kept")
    model.opset_import.add(domain="com.example", version=3)
    for proto in model.graph.node:
        proto.doc_string = f"doc of {proto.name}"
        proto.metadata_props.add(key="scope", value=proto.name)
    result, _, _ = folded(model)
    for field in (
        "doc_string",
        "domain",
        "model_version",
        "ir_version",
        "producer_name",
        "metadata_props",
        "opset_import",
    ):
        assert getattr(result, field) == getattr(model, field)
    assert result.graph.doc_string == "the graph"
    assert result.graph.metadata_props == model.graph.metadata_props
    assert node(result, "Relu") == node(model, "Relu")
    conv = node(result, "Conv")
    kept = {p.key: p.value for p in conv.metadata_props}
    assert conv.doc_string == f"doc of {conv.name}"
    assert kept["scope"] == conv.name
    assert len(kept[PROVENANCE].split(", ")) == 7


def test_provenance_needs_a_new_enough_ir_version():
    result, _, _ = folded(rep_block(ir_version=9))
    assert not node(result, "Conv").metadata_props
    assert result.ir_version == 9


def test_new_names_are_fresh():
    model = rep_block()
    weight = model.graph.node[0].input[1]
    taken = [f"{weight}_folded", f"{weight}_folded_1", f"{weight}_folded_bias"]
    model.graph.node[-1].output[0] = taken[0]
    model.graph.output[0].name = taken[0]
    for name in taken[1:]:
        model.graph.value_info.add(name=name)
    result, _, _ = folded(model)
    names = {t.name for t in result.graph.initializer}
    assert not names & set(taken)
    assert len(names) == 2


def test_shared_initializers_are_not_edited():
    n = Net(5, exact=True)
    x = n.input((1, 4, 6, 6))
    weight = n.constant(n.draw(4, 4, 3, 3))
    convs = [n.op("Conv", v, weight, channels=4, pads=[1, 1, 1, 1]) for v in (x, x)]
    y = n.relu(n.bn(convs[0]))
    model = n.model(n.add(y, n.relu(convs[1])))
    result, _, _ = folded(model)
    before = {t.name: t for t in model.graph.initializer}
    after = {t.name: t for t in result.graph.initializer}
    assert after[weight] == before[weight]
    assert len(after) == 3


def test_two_folds_that_share_a_weight_get_their_own():
    n = Net(5, exact=True)
    x = n.input((1, 4, 6, 6))
    weight = n.constant(n.draw(4, 4, 3, 3))
    model = n.model(*(n.relu(n.bn(n.op("Conv", x, weight, channels=4, pads=[1, 1, 1, 1]))) for _ in range(2)))
    result, folds, _ = folded(model)
    assert len(folds) == 2
    assert len({t.name for t in result.graph.initializer}) == 4
    feeds = {"x": np.random.default_rng(0).integers(-3, 4, (1, 4, 6, 6)).astype(np.float32)}
    for old, new in zip(run(model, feeds), run(result, feeds), strict=True):
        assert np.array_equal(old, new)


def test_an_unused_initializer_stays():
    model = rep_block()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "lonely"))
    result, _, _ = folded(model)
    assert "lonely" in {t.name for t in result.graph.initializer}


def test_an_initializer_that_is_an_output_stays():
    model = rep_block()
    weight = model.graph.node[0].input[1]
    dims = next(t for t in model.graph.initializer if t.name == weight).dims
    model.graph.output.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, dims))
    result, _, _ = folded(model)
    assert weight in {t.name for t in result.graph.initializer}


def test_value_infos_and_annotations_of_removed_values_go():
    model = onnx.shape_inference.infer_shapes(rep_block())
    kept = node(model, "Relu").input[0]
    for name in (kept, model.graph.node[0].output[0]):
        model.graph.quantization_annotation.add(tensor_name=name)
    result, _, _ = folded(model)
    assert [v.name for v in result.graph.value_info] == [kept]
    assert [q.tensor_name for q in result.graph.quantization_annotation] == [kept]


def test_constant_nodes_that_only_fed_the_region_go():
    n = Net(5, exact=True)
    x = n.input((1, 4, 6, 6))
    shared = n.constant([2.0], as_node=True)
    scaled = n.op("Mul", n.conv(x, 4, 3), shared)
    shifted = n.op("Add", scaled, n.constant([1.0], as_node=True))
    result, _, _ = folded(n.model(n.op("Mul", n.relu(shifted), shared)))
    assert [p.op_type for p in result.graph.node] == ["Constant", "Conv", "Relu", "Mul"]


def test_a_new_node_stands_where_the_one_stood_whose_name_it_has():
    n = Net(5, exact=True)
    x = n.input((1, 4, 6, 6))
    first = n.conv(x, 4, 3)
    aside = n.op("Sigmoid", x)
    total = n.add(first, n.conv(x, 4, 1))
    result, _, _ = folded(n.model(n.add(n.relu(total), aside)))
    assert ops(result) == ["Conv", "Sigmoid", "Relu", "Add"]


def test_a_new_node_stands_behind_what_it_reads():
    n = Net(5, exact=True)
    x = n.input((1, 4, 6, 6))
    first = n.conv(x, 4, 3)
    seen = n.relu(x)
    model = n.model(n.add(first, n.conv(seen, 4, 1)))
    model.graph.node.insert(2, helper.make_node("Sigmoid", [x], ["aside"], name="aside"))
    assert ops(model) == ["Conv", "Relu", "Sigmoid", "Conv", "Add"]
    weight, output = model.graph.node[3].input[1], model.graph.output[0].name
    view = Model(model, None, ("Conv",))
    new = gs.Node("Conv", "new", {}, [gs.Variable(seen), gs.Variable(weight)], [gs.Variable(output)])
    graph.commit(view, [(view.scopes[0], graph.Edit(frozenset((0, 3, 4)), 4, [new], [], [0]))])
    assert ops(model) == ["Relu", "Sigmoid", "Conv"]


def test_branches_of_the_deploy_form_keep_their_order():
    """The order of nodes decides when ONNX Runtime runs them: RepGhostNet's shortcut came too early, and was slower."""
    train = skeletons.fill("repghostnet_050/train_legacy_bn")
    fold(train, None)
    deploy = skeletons.fill("repghostnet_050/deploy_legacy")
    fold(deploy, None)
    assert [n.op_type for n in train.graph.node] == [n.op_type for n in deploy.graph.node]


def test_nodes_out_of_order_are_put_in_order():
    model = rep_block()
    shuffled = copy(model)
    nodes = list(shuffled.graph.node)[::-1]
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    validity.check(shuffled, "model")
    result, _, _ = folded(shuffled)
    assert ops(result) == ["Conv", "Relu"]


def test_two_runs_and_two_processes_give_the_same_bytes():
    code = (
        "import hashlib, onnx; from models import skeletons; from onnxrep.folding import fold;"
        "m = skeletons.fill('sg_qarepvgg_alpha/train_legacy_bn'); fold(m, None);"
        "print(hashlib.sha256(m.SerializeToString(deterministic=True)).hexdigest())"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_what_no_fold_touches_stays_byte_for_byte():
    model = skeletons.fill("hf_rtdetr_r18/train_dynamo")
    result = copy(model)
    folds, _ = fold(result, None)
    gone = {r.name for f in folds for r in f.removed}
    new = {e.name for f in folds for e in f.emitted}
    untouched = [n.SerializeToString(deterministic=True) for n in model.graph.node if n.name not in gone]
    assert [n.SerializeToString(deterministic=True) for n in result.graph.node if n.name not in new] == untouched
    before = {t.name: t for t in model.graph.initializer}
    assert all(t == before[t.name] for t in result.graph.initializer if t.name in before)


def test_the_view_never_changes_the_model():
    model = skeletons.fill("mmpose_rep_dil2/train_dynamo")
    before = model.SerializeToString(deterministic=True)
    view = Model(model, None, ("Conv",))
    view.scopes[0].nodes[0].attrs["strides"] = [9, 9]
    assert model.SerializeToString(deterministic=True) == before


# -- what is no usable model ----------------------------------------------------------------------------------------


def broken(change):
    model = rep_block()
    change(model)
    return model


def _cycle(model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.ClearField("opset_import"), "no opset import"),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=1), "imported in versions"),
        (lambda m: setattr(m.graph.node[1], "name", m.graph.node[0].name), "two nodes are named"),
        (lambda m: m.graph.node[1].output.__setitem__(0, m.graph.node[0].output[0]), "made twice"),
        (lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"), "nothing makes"),
        (lambda m: setattr(m.graph.output[0], "name", "nowhere"), "made by nothing"),
        (_cycle, "a cycle"),
        (lambda m: m.ClearField("graph"), "no graph"),
    ],
)
def test_invalid_models(change, words):
    with pytest.raises(InvalidModel, match=words):
        validity.check(broken(change), "model.onnx")


@pytest.mark.parametrize(
    "change", [lambda m: setattr(m, "ir_version", 99), lambda m: setattr(m.opset_import[0], "version", 999)]
)
def test_unsupported_models(change):
    with pytest.raises(UnsupportedModel, match="99"):
        validity.check(broken(change), "model.onnx")


def test_control_characters_in_names_are_escaped():
    def rename(model):
        model.graph.node[1].input[0] = "bad\x1b[31m\nname"

    with pytest.raises(InvalidModel) as caught:
        validity.check(broken(rename), "model.onnx")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_training_graph_reads_stays():
    model = rep_block()
    weight = model.graph.node[0].input[1]
    algorithm = model.training_info.add().algorithm
    algorithm.name = "step"
    algorithm.node.append(helper.make_node("Neg", [weight], ["gradient"]))
    result, folds, _ = folded(model)
    assert folds
    assert weight in {t.name for t in result.graph.initializer}
    assert result.training_info == model.training_info
    held = copy(model)
    held.training_info[0].algorithm.node[0].input[0] = model.graph.node[0].output[0]
    result, _, _ = folded(held)
    assert model.graph.node[0].output[0] in {o for n in result.graph.node for o in n.output}
