"""The proof of single folds: every wrong one is caught, at its place, and right ones are not accused."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from models.net import Net
from onnxrep import checking, folding, optimize, rollback
from onnxrep.emit import Emitter
from onnxrep.options import Options
from onnxrep.plan import numbers
from onnxrep.proof.blame import suspects
from onnxrep.proof.certificate import certify
from onnxrep.proof.inputs import Wishes
from onnxrep.proof.program import Program
from onnxrep.proof.semantics import CannotEvaluate, IllegalSize
from onnxrep.proof.sessions import Runtime
from onnxrep.proof.sides import Side
from tests import mutants, oracle
from tests.regions import random_case
from tests.strategies import random_region
from tests.tools import codes, copy, folded


def certified(model):
    """Fold a copy; return it with the folds, and the names of nodes whose fold failed its proof."""
    result = copy(model)
    folds, refusals = folding.fold(result, None)
    return result, folds, [r.node.name for r in refusals if r.code == "certificate"]


# -- the evaluator ---------------------------------------------------------------------------------------------------


def evaluated(model, feeds):
    """Run a whole model as a program, a last Relu aside."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    nodes = [n for n in model.graph.node if n.op_type != "Constant"]
    rectified = nodes[-1].op_type == "Relu"
    output = nodes.pop().input[0] if rectified else nodes[-1].output[0]
    program = Program(nodes, tuple(feeds), output, constants, model.opset_import[0].version)
    weights = {n: v[None, None].astype(np.float64) if v.dtype.kind == "f" else v for n, v in program.constants.items()}
    stacks = {k: v[None, None].astype(np.float64) for k, v in feeds.items()}
    result = program.run(stacks, weights, {}, empty=True)[0, 0]
    return np.maximum(result, 0.0) if rectified else result


@pytest.mark.parametrize("kind", ["regions", "compositions"])
def test_the_evaluator_says_what_the_naive_oracle_says(kind):
    compared = 0
    for seed in range(150):
        if kind == "regions":
            region = random_region(seed)
            model, feeds = region.model, {"x": region.x}
        else:
            case = random_case(seed)
            model, feeds = case.model, case.feeds[0]
        try:
            found = evaluated(model, feeds)
        except CannotEvaluate:  # it is not linear as a whole
            continue
        expected = oracle.run(model, feeds)[0]
        if expected.size:  # runtimes let a window reach a little beyond a tiny image
            assert np.array_equal(found, expected), seed
            compared += 1
    assert compared > (100 if kind == "regions" else 15)


# -- wrong folds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_every_mutant_is_caught_and_only_it(mutant, place, dtype):
    model = mutants.network(3, dtype=dtype)
    output = mutants.sums(model)[place]
    if mutant.hidden:
        mutants.hidden_channel(model, output)
    result, folds, refusals = mutants.folded_wrong(model, mutant, output, proven=True)
    assert [r.detail != "" for r in refusals if r.code == "certificate"] == [True]
    assert output not in [f.output for f in folds]
    assert next(n.op_type for n in result.graph.node if output in n.output) == "Add"
    assert {*mutants.sums(model)} - {output} <= {f.output for f in folds}
    assert all(f.certificate.error <= f.certificate.bound for f in folds)


@pytest.mark.parametrize("width", [8, 48, 200])
def test_one_weight_of_a_wide_block_is_seen(width):
    """By impulses in every channel, or by random channels at every position, or at some."""
    net = Net(0)
    x = net.input((1, width, "h", "w"))
    model = net.model(net.relu(net.add(net.conv_bn(x, width, 3), net.bn(x))))
    output = model.graph.node[-1].input[0]

    def change(tensors, _):
        mutants.kernel(tensors)[width - 1, width // 2, 2, 0] *= 1.0 + 1e-5

    assert certified(model)[2] == []
    with mutants.wrong_weights(output, change):
        assert len(certified(model)[2]) == 1


def test_what_is_stored_must_be_what_was_calculated():
    model = mutants.network(1)

    def change(edit):
        (name, values), *rest = edit.tensors
        off = values.copy()
        off.flat[0] = np.nextafter(np.nextafter(off.flat[0], np.float32(9)), np.float32(9))
        return replace(edit, tensors=[(name, off), *rest])

    with mutants.wrong_edit(mutants.sums(model)[0], change, proven=True):
        assert len(certified(model)[2]) == 1


def _border(build):
    net = Net(3)
    x = net.input(("n", 4, "h", "w"))
    return net.model(net.relu(build(net, x)))


@pytest.mark.parametrize(
    "build",
    [
        lambda net, x: net.conv(net.conv(x, 4, 1, bias=True), 4, 3),
        lambda net, x: net.conv(net.bn(x), 4, 3),
        lambda net, x: net.conv(net.conv(x, 4, 3), 4, 3),
        lambda net, x: net.conv(net.conv(x, 4, 3, pads=0), 4, 3, stride=2),
    ],
)
def test_a_fold_that_forgets_the_border_is_caught(build):
    model = _border(build)
    free = {"border_fault": lambda *_: None, "reads_outside": lambda *_: False}
    with mock.patch.multiple(numbers, **free), mock.patch("onnxrep.price.Price.beats", return_value=True):
        wrong = certified(model)
    assert len(wrong[2]) >= 1
    assert certified(model)[2] == []


def claims_of(model):
    """Return what is claimed when a copy of a model is folded."""
    found = []
    with mock.patch.object(folding, "certify", lambda claims: found.extend(claims) or certify(claims)):
        folding.fold(copy(model), None)
    return found


def test_a_pool_that_counts_real_pixels_is_not_one_that_counts_all():
    def build(count):
        net = Net(1)
        x = net.input((1, 4, "h", "w"))
        pool = net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=count)
        return net.model(net.relu(net.add(net.conv(x, 4, 3), pool)))

    (claim,) = claims_of(build(1))
    other = build(0)
    facts = folding.known_facts(folding.Model(other, None, folding.LIFTED | folding.FOLLOWED))[0]
    assert "became" in certify([replace(claim, facts=facts, representative=str)])[0].fault


def test_groups_of_a_transposed_convolution_are_not_interleaved():
    net = Net(1)
    x = net.input((1, 4, "h", "w"))
    net.nodes.append(
        onnx.helper.make_node("ConvTranspose", [x, net.constant(net.draw(4, 3, 2, 2))], ["y"], group=2, strides=[2, 2])
    )
    net.channels["y"], net.axes["y"] = 6, 2
    model = net.model(net.relu(net.bn("y")))
    output = model.graph.node[-1].input[0]

    def change(tensors, _):
        weight = mutants.kernel(tensors)
        weight[:] = weight.reshape(2, 2, 3, 2, 2).swapaxes(0, 1).reshape(weight.shape).copy()

    assert certified(model)[2] == []
    with mutants.wrong_weights(output, change):
        assert len(certified(model)[2]) == 1


# -- right folds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_ill_conditioned_norms_are_no_fault(seed):
    model = mutants.network(12, seed=seed)
    generator = np.random.default_rng(seed)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            mutants.set_values(model, node.input[4], lambda v: 10.0 ** generator.uniform(-6, 2, v.shape))
    _, folds, bad = certified(model)
    assert bad == []
    assert len(folds) >= 12
    assert max(f.certificate.error for f in folds) < 1e-14


def test_what_could_not_be_proven_is_tried_again_when_the_graph_has_changed():
    model = mutants.network(3)
    whole, folds, _ = certified(model)
    calls = []

    def certify(claims):
        calls.append(len(claims))
        found = [mutants.Certificate() for _ in claims]
        return [*found[:-1], replace(found[-1], fault="a doubt")] if len(calls) == 1 else found

    with mock.patch.object(folding, "certify", certify):
        again, _, doubted = certified(model)
    assert calls == [len(folds), 0, 1, 0]
    assert [(n.op_type, n.output) for n in again.graph.node] == [(n.op_type, n.output) for n in whole.graph.node]
    assert doubted == []


@pytest.mark.parametrize("gathered", [0, 600, 1 << 22])
@pytest.mark.parametrize("poisoned", range(4))
def test_each_fold_has_its_own_proof_however_many_are_proven_at_once(poisoned, gathered, monkeypatch):
    """A fold has 8 channels and 584 numbers, so that 600 make a batch of two."""
    model = mutants.network(4)
    output, calls = mutants.sums(model)[poisoned], []
    monkeypatch.setattr(folding, "_MOST_CALCULATED", gathered)
    monkeypatch.setattr(folding, "certify", lambda claims: calls.append(len(claims)) or certify(claims))

    def change(tensors, _):
        mutants.kernel(tensors)[0] *= 1.01

    _, folds, none = certified(model)
    assert none == []
    assert max(calls) == {0: 1, 600: 2}.get(gathered, len(folds))
    with mutants.wrong_weights(output, change):
        _, kept, bad = certified(model)
    assert {f.output for f in folds} - {f.output for f in kept} == {output}
    assert len(bad) == 1


def test_a_proof_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(folding, "certify", lambda claims: certify(claims)[:-1])
    with pytest.raises(ValueError, match="shorter"):
        folding.fold(mutants.network(3), None)


def test_a_stage_inside_another_is_not_counted_twice(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(folding.time, "perf_counter", lambda: now[0])
    clock = folding.Clock(told.append)
    with clock.stage("plan"):
        now[0] += 1.0
        with clock.stage("prove"):
            now[0] += 10.0
        now[0] += 100.0
    now[0] += 1000.0
    with clock.stage("plan"):
        now[0] += 10000.0
    assert clock.seconds == {"plan": 10101.0, "prove": 10.0}
    assert told == ["plan", "prove", "plan", "plan"]


# -- rolling back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["by itself", "by halves"])
@pytest.mark.parametrize("poisoned", [(0,), (3,), (1, 4)])
def test_only_the_folds_that_spoil_the_model_are_taken_back(poisoned, search, monkeypatch):
    if search == "by itself":
        monkeypatch.setattr(rollback, "MOST_ATTEMPTS", 1)
    else:
        monkeypatch.setattr(checking.Checking, "_blamed", lambda *_: [])
    model = mutants.network(5)
    outputs = [mutants.sums(model)[k] for k in poisoned]
    real = Emitter.edit

    def edit(self, region):
        made = real(self, region)
        return mutants.mutated(made, mutants.bias_dropped) if region.output in outputs else made

    blind = mock.patch.object(folding, "certify", lambda claims: [mutants.Certificate() for _ in claims])
    with mock.patch.object(Emitter, "edit", edit), blind:
        result = optimize(model, options=Options(input_shapes={"x": (1, 3, 8, 8)}))
    report = result.report
    assert report.status == "folded"
    assert report.verification is not None
    assert report.verification.verdict == "verified"
    assert {*mutants.sums(model)} - {f.output for f in report.folds} == set(outputs)
    left = [r for r in report.refusals if r.code == "taken-back"]
    assert sorted(r.detail.split(":")[0] for r in left) == sorted(outputs)


def test_a_fold_is_not_blamed_for_what_comes_to_it_wrong():
    model = mutants.network(5)
    wrong = mutants.sums(model)[1]
    with mutants.wrong_weights(wrong, mutants.bias_dropped, proven=False):
        result, folds, _ = certified(model)
    sides = Side(model, None, None), Side(result, None, None)
    places = [(f.output, f.sources) for f in folds]
    assert suspects(*sides, places, Runtime(), Wishes({"x": (1, 3, 8, 8)})) == {wrong}
    assert suspects(sides[0], sides[0], places, Runtime(), Wishes({})) == set()


def test_a_search_that_tries_too_much_takes_nothing_back():
    every = [("", str(i)) for i in range(64)]
    tried = []

    def passes(kept):
        tried.append(kept)
        return False

    assert rollback.culprits(every, [], passes) == []
    assert len(tried) == rollback.MOST_ATTEMPTS


def test_folds_that_only_together_are_too_much():
    """Each half passes: no fold is a culprit, and the larger set that was seen to pass stays."""
    every = [("", str(i)) for i in range(5)]
    asked = []

    def passes(kept):
        asked.append(kept)
        return len(kept) < 4

    bad = rollback.culprits(every, [], passes)
    assert bad == every[:2]
    assert list(asked[-1]) == every[2:]


def test_a_model_whose_only_fold_is_wrong_is_rejected():
    net = Net(0)
    model = net.model(net.relu(net.conv_bn(net.input((1, 3, 8, 8)), 4, 3)))
    with mutants.wrong_weights("BatchNormalization_7", mutants.bias_dropped, proven=False):
        result = optimize(model)
    assert result.status == "rejected"
    assert result.model == model
    assert codes(result.report.refusals) == set()


# -- what a proof must not overlook ----------------------------------------------------------------------------------


def test_blocks_that_share_a_weight_are_not_proven_with_blocks_that_do_not():
    net = Net(1)
    x = net.input((1, 4, "h", "w"))
    weight = net.draw(4, 4, 3, 3)
    shared = net.constant(weight)
    ends = []
    for names in ((shared, shared), (net.constant(net.draw(4, 4, 3, 3)), net.constant(net.draw(4, 4, 3, 3)))):
        parts = [net.op("Conv", x, name, pads=[1] * 4) for name in names]
        ends.append(net.add(*parts))
        x = net.relu(ends[-1])
    model = net.model(x)
    assert certified(model)[2] == []
    second = numpy_helper.to_array(model.graph.initializer[-1]).astype(np.float64)

    def change(tensors, _):
        mutants.kernel(tensors)[:] = 2.0 * second

    with mutants.wrong_weights(ends[1], change):
        assert len(certified(model)[2]) == 1


def followed(edit, output, op, inputs=(), tensors=(), **attributes):
    """Return an edit with one node more at its end."""
    *nodes, last = edit.nodes
    inner = gs.Variable("inner")
    more = gs.Node(op, "", attributes, [inner, *map(gs.Variable, inputs)], [gs.Variable(output)])
    last = gs.Node(last.op, last.name, last.attrs, list(last.inputs), [inner])
    return replace(edit, nodes=[*nodes, last, more], heirs=[*edit.heirs, None], tensors=[*edit.tensors, *tensors])


@pytest.mark.parametrize("shape", [("n", 4, "h", "w"), (1, 4, 20, 20), (2, 4, 8, 8), ("n", 4, 8, 8)])
@pytest.mark.parametrize("order", [[0, 1, 3, 2], [2, 1, 0, 3]])
def test_a_result_that_is_turned_is_seen_though_the_map_is_pointwise(shape, order):
    net = Net(1)
    model = net.model(net.relu(net.conv_bn(net.input(shape), 4, 1)))
    output = model.graph.node[-1].input[0]
    with mutants.wrong_edit(output, lambda edit: followed(edit, output, "Transpose", perm=order), proven=True):
        assert len(certified(model)[2]) == 1


def test_a_batch_of_two_is_tried():
    net = Net(1)
    model = net.model(net.relu(net.conv_bn(net.input(("n", 4, 8, 8)), 4, 3)))
    output = model.graph.node[-1].input[0]
    one = [("one", np.array([1, 4, 8, 8]))]
    with mutants.wrong_edit(output, lambda edit: followed(edit, output, "Reshape", ["one"], one), proven=True):
        assert len(certified(model)[2]) == 1


def test_every_remainder_of_a_large_stride_is_tried():
    net = Net(1)
    x = net.input(("n", 3, "h", "w"))
    patches = net.conv(x, 192, 16, stride=16, pads=[0, 0, 2, 2])
    model = net.model(net.relu(net.bn(patches)))
    output = model.graph.node[-1].input[0]

    def change(_, attributes):
        attributes["pads"] = [0, 0, 9, 9]

    with mutants.wrong_weights(output, change):
        assert len(certified(model)[2]) == 1


@pytest.mark.parametrize("factor", [1.01, 1.0])
def test_the_slack_of_a_border_is_none_for_weights(factor):
    """float16: the border holds the bias as it is stored; only what zero becomes may differ by that."""
    net = Net(1, dtype=np.float16, opset=22)
    x = net.input(("n", 8, "h", "w"))
    first = net.op("Conv", x, net.constant(net.draw(8, 8, 1, 1)), net.constant(np.full(8, 0.3)), channels=8)
    pads = net.constant([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64)
    framed = net.op("Pad", first, pads, net.constant(np.float16(0.3)))
    model = net.model(net.relu(net.conv(framed, 8, 3, pads=0)))
    output = model.graph.node[-1].input[0]

    def change(tensors, _):
        mutants.kernel(tensors)[3, 5, 1, 1] *= factor

    with mutants.wrong_weights(output, change):
        assert len(certified(model)[2]) == (factor != 1.0)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("y = Cast<to=7>(x)", "Cast"),
        ("y = BatchNormalization<training_mode=1>(x, w, w, w, w)", "statistics"),
        ("y = AveragePool<kernel_shape=[3], strides=[2], ceil_mode=1>(x)", "hangs over"),
    ],
)
def test_what_the_evaluator_does_not_know_is_no_proof(node, words):
    text = f'<ir_version: 8, opset_import: ["" : 15]> g (float[1, 2, 6] x) => (float y) {{ {node} }}'
    model = onnx.parser.parse_model(text)
    program = Program(model.graph.node, ("x",), "y", {"w": np.ones(2, np.float32)}, 15)
    with pytest.raises(CannotEvaluate, match=words):
        program.run({"x": np.ones((1, 1, 1, 2, 6))}, {"w": np.ones((1, 1, 2))}, {})


@pytest.mark.parametrize("error", [IllegalSize("traced sizes"), CannotEvaluate("too large")])
def test_a_region_that_cannot_be_run_is_unproven_and_no_bug(error):
    model = mutants.network(2)
    with mock.patch.object(Program, "run", side_effect=error):
        _, folds, refusals = folded(model)
    assert folds == []
    assert "unproven" in codes(refusals)
    assert "certificate" not in codes(refusals)


def test_names_with_control_characters_can_be_taken_back():
    model = mutants.network(3)
    output = mutants.sums(model)[1]
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "bad\u200bname" if name == output else name
    change = mock.patch.object(folding, "certify", lambda claims: [mutants.Certificate() for _ in claims])
    wrong = mutants.wrong_weights("bad\u200bname", mutants.bias_dropped)
    with wrong, change:
        result = optimize(model, options=Options(input_shapes={"x": (1, 3, 8, 8)}))
    assert result.status == "folded"
    assert "taken-back" in codes(result.report.refusals)
