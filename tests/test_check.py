"""The end-to-end check: right folds pass, wrong ones do not, and what cannot be decided says so."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import skeletons
from models.net import Net
from onnxrep import Options, optimize, verify
from onnxrep.errors import ProviderUnavailable, UsageError
from onnxrep.folding import fold
from onnxrep.proof import check, inputs, judge, original, reference, sessions
from onnxrep.proof.inputs import index_limits
from onnxrep.proof.sessions import Runtime
from onnxrep.proof.sides import Side
from onnxrep.proof.twin import Twin
from tests.tools import copy, run


def chain(blocks=6, channels=8, *, size=12, dynamic=True, dtype=np.float32, hard=False, head=False, scale=1.0):
    """A chain of RepVGG blocks as trained ones behave: activations of order one."""
    n = Net(3, dtype=dtype)
    x = n.input((1, channels, size, size) if not dynamic else ("N", channels, "H", "W"))
    y = x
    for _ in range(blocks):
        y = n.relu(n.add(n.conv_bn(y, channels, 3), n.conv_bn(y, channels, 1), n.bn(y)))
    if hard:
        for tensor in n.initializers:
            values = numpy_helper.to_array(tensor)
            if values.ndim == 1 and (values >= 0.3).all() and (values <= 2).all():
                wild = 10.0 ** n.rng.uniform(-6, 2, values.shape)
                tensor.CopyFrom(numpy_helper.from_array(wild.astype(values.dtype), tensor.name))
    if head:
        y = n.op("Softmax", n.op("Flatten", n.op("GlobalAveragePool", y)), axis=1)
        n.axes[y] = 0
    if scale != 1.0:
        y = n.op("Mul", y, n.constant(scale))
    return n.model(y)


def wrong(model, change):
    """A folded copy in which one weight array was changed."""
    result = copy(model)
    folds, _ = fold(result, None)
    assert folds
    weights = [t for t in result.graph.initializer if len(t.dims) == 4]
    tensor = weights[len(weights) // 2]
    biases = [t for t in result.graph.initializer if t.name == f"{tensor.name}_bias"]
    change(tensor, *biases)
    return result


def edit(tensor, values):
    tensor.CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(values, numpy_helper.to_array(tensor).dtype), tensor.name)
    )


def array(tensor):
    return numpy_helper.to_array(tensor).copy()


def one_weight(tensor, bias):
    values = array(tensor)
    index = np.unravel_index(np.argmax(np.abs(values)), values.shape)
    values[index] *= 1.01
    edit(tensor, values)


MUTATIONS = {
    "bias dropped": lambda w, b: edit(b, 0 * array(b)),
    "bias of one channel dropped": lambda w, b: edit(b, array(b) * (np.arange(8) != 2)),
    "1x1 tap one column off": lambda w, b: edit(w, np.roll(array(w), 1, 3)),
    "two channels swapped": lambda w, b: edit(w, array(w)[[1, 0, 2, 3, 4, 5, 6, 7]]),
    "kernel transposed": lambda w, b: edit(w, array(w).swapaxes(2, 3)),
    "identity dropped": lambda w, b: edit(
        w, array(w) - np.eye(8)[:, :, None, None] * (np.arange(9).reshape(3, 3) == 4)
    ),
    "one weight off by 1%": one_weight,
    "stored through fp16": lambda w, b: edit(w, array(w).astype(np.float16)),
    "everything off by 1e-4": lambda w, b: edit(w, array(w) * 1.0001),
}


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_wrong_folds_are_rejected(mutation, head):
    model = chain(head=head)
    found = verify(model, wrong(model, MUTATIONS[mutation]))
    assert found.verdict == "rejected"
    assert "differs" in found.reason


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-3])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_right_folds_are_verified(dtype, hard, scale):
    result = optimize(chain(12, dtype=dtype, hard=hard and dtype == np.float32, scale=scale))
    assert result.report.verification.verdict == "verified", result.report.verification.reason
    assert result.status == "folded"


def test_a_border_mistake_is_seen_at_tiny_sizes():
    """A bias folded through zero padding: exact inside, wrong by one at the border."""
    n = Net(1)
    x = n.input(("N", 4, "H", "W"))
    first = n.conv(x, 4, 1, bias=True)
    model = n.model(n.op("GlobalAveragePool", n.conv(first, 4, 3, bias=True)))
    tensors = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    one, three = model.graph.node[0], model.graph.node[1]
    w1, b1, w3, b3 = (tensors[i] for i in (*one.input[1:], *three.input[1:]))
    merged = copy(model)
    weight = np.einsum("omhw,mi->oihw", w3, w1[:, :, 0, 0]).astype(np.float32)
    bias = (b3 + w3.sum((2, 3)) @ b1).astype(np.float32)
    del merged.graph.node[0]
    merged.graph.node[0].input[0] = "x"
    for tensor in merged.graph.initializer:
        if tensor.name == three.input[1]:
            edit(tensor, weight)
        if tensor.name == three.input[2]:
            edit(tensor, bias)
    assert verify(model, merged).verdict == "rejected"


def test_several_sizes_odd_and_tiny_ones_too():
    found = optimize(chain(2)).report.verification
    assert found.inputs[:3] == ("normal 1x8x1x1", "normal 2x8x33x47", "normal 2x8x32x32")
    assert [name.split()[0] for name in found.inputs[3:]] == ["uniform", "border", "zeros", "ones"]
    assert found.levels == ("off", "all")


def test_equal_names_get_equal_sizes_and_wishes_are_heard():
    model = chain(2)
    found = optimize(model, options=Options(input_shapes={"x": (3, 8, 9, 10)})).report.verification
    assert all("3x8x9x10" in name for name in found.inputs)
    with pytest.raises(UsageError, match="no such input"):
        optimize(model, options=Options(input_shapes={"image": (1, 8, 9, 9)}))
    with pytest.raises(UsageError, match="the model declares"):
        optimize(model, options=Options(input_shapes={"x": (1, 3, 9, 9)}))


def test_sizes_at_which_an_image_inside_is_empty_are_passed_over():
    """ONNX Runtime leaves an empty operand out of a Concat, so it runs there what is not defined."""
    net = Net(0)
    x = net.input((1, 4, "h", "w"))
    big = np.iinfo(np.int64).max
    parts = [
        net.op("Slice", x, *(net.constant(np.array(v), dtype=np.int64) for v in ([start], [big], [2], [2])), channels=4)
        for start in (0, 1)
    ]
    joined = net.op("Concat", *parts, axis=1, channels=8)
    net.axes[joined] = 2
    y = net.relu(net.add(net.conv_bn(joined, 8, 3), net.conv_bn(joined, 8, 1)))
    result = optimize(net.model(y))
    assert result.status == "folded"
    assert result.report.verification.inputs[0] == "normal 1x4x2x2"


def test_ranges_of_inputs_are_the_users_and_the_models_own():
    model = chain(2)
    name = "range 2x8x32x32"
    assert name in optimize(model, options=Options(input_ranges={"x": (0, 255)})).report.verification.inputs
    model.graph.input[0].type.denotation = "IMAGE"
    model.metadata_props.add(key="image.NominalPixelRange", value="Normalized_1_1")
    assert inputs.declared_ranges(model) == {"x": (-1.0, 1.0)}
    assert name in optimize(model).report.verification.inputs
    session = Runtime().session(model, "off")
    for limits in ((0.0, 255.0), (-2.0, -1.0)):
        wishes = inputs.Wishes({"x": (1, 8, 9, 9)}, ranges={"x": limits})
        values = next(s for s in inputs.input_sets(session, wishes, 0, {}, print) if s.name.startswith("range"))
        x = values.feeds["x"]
        assert limits[0] <= x.min() < x.mean() < x.max() <= limits[1]


def test_sizes_that_the_model_does_not_accept_are_passed_over():
    n = Net(1)
    x = n.input(("N", 4, "H", "W"))
    y = n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1))
    y = n.op("Reshape", y, n.constant([0, 4, -1, 12], dtype=np.int64))
    found = optimize(n.model(y)).report.verification
    assert found.verdict == "verified"
    assert found.inputs[0] == "normal 1x4x12x12"


def test_user_data(tmp_path):
    model = chain(2)
    data = tmp_path / "inputs.npz"
    np.savez(data, x=np.ones((3, 1, 8, 6, 6), np.float32))
    found = optimize(model, options=Options(input_data=data)).report.verification
    assert found.inputs[:3] == ("inputs.npz #0", "inputs.npz #1", "inputs.npz #2")
    np.savez(data, x=np.ones((1, 8, 6, 6), np.float64))
    found = optimize(model, options=Options(input_data=data)).report.verification
    assert found.inputs[0] == "inputs.npz"
    for arrays, words in (({"y": np.ones(3)}, "no array named x"), ({"x": np.array(["text"])}, "holds <U4")):
        np.savez(data, **arrays)
        with pytest.raises(UsageError, match=words):
            optimize(model, options=Options(input_data=data))
    np.savez(data, x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"not a \.npz file of plain arrays"):
        optimize(model, options=Options(input_data=data))
    with pytest.raises(UsageError, match="no such file"):
        optimize(model, options=Options(input_data=Path("nowhere.npz")))


def test_interfaces_must_agree():
    model = chain(1)
    for change, words in (
        (lambda m: setattr(m.graph.output[0], "name", m.graph.node[0].output[0]), "outputs"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 9), "another type or shape"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), "another type"),
    ):
        other = copy(model)
        change(other)
        found = verify(model, other)
        assert found.verdict == "rejected"
        assert words in found.reason


def test_a_model_that_does_not_load():
    model = chain(1)
    other = copy(model)
    other.graph.node[0].op_type = "Convolution"
    found = verify(model, other)
    assert (found.verdict, "does not load" in found.reason) == ("rejected", True)
    found = verify(other, model)
    assert (found.verdict, "does not run the original" in found.reason) == ("unverified", True)


def test_random_models_are_not_judged():
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    noise = n.op("RandomNormalLike", x)
    model = n.model(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), noise))
    found = optimize(model)
    assert found.status == "unverified"
    assert "random" in found.report.verification.reason


def test_new_infinities_are_rejected_and_old_ones_decide_nothing():
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    model = n.model(n.op("Exp", n.scale(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1)), [1000.0])))
    result = optimize(model)
    assert result.status == "unverified"
    assert "decided nothing" in result.report.verification.reason
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    calm = n.model(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1)))
    broken = wrong(calm, lambda w, b: edit(w, np.where(array(w) == array(w).max(), np.inf, array(w))))
    found = verify(calm, broken)
    assert found.verdict == "rejected"
    assert "became NaN or infinite" in found.reason


def test_discrete_outputs():
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    y = n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1))
    flat = n.op("Reshape", y, n.constant([1, -1], dtype=np.int64))
    n.nodes.append(helper.make_node("TopK", [flat, n.constant([5], dtype=np.int64)], ["values", "indices"]))
    model = n.model(y)
    model.graph.output.append(helper.make_tensor_value_info("values", TensorProto.FLOAT, [1, 5]))
    model.graph.output.append(helper.make_tensor_value_info("indices", TensorProto.INT64, [1, 5]))
    result = optimize(model)
    assert result.status == "folded"
    assert verify(model, wrong(model, one_weight)).verdict == "rejected"


def test_a_choice_that_falls_otherwise_by_rounding_is_undecided_not_rejected(tmp_path):
    """``y > threshold``, where the threshold lies between the two models' values of one element."""
    n = Net(1)
    x = n.input((1, 8, 6, 6))
    y = n.add(n.conv_bn(x, 8, 3), n.conv_bn(x, 8, 1), n.conv_bn(x, 8, 3))
    plain = n.model(y)
    data = np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)
    result = optimize(plain).model
    old = [run(plain, {"x": data}, level)[0] for level in ("off", "all")]
    new = [run(result, {"x": data}, level)[0] for level in ("off", "all")]
    twin = Runtime().session(Twin(plain, None).model, "off").run({"x": data.astype(np.float64)})[y]
    above = (np.minimum(*old) > np.maximum(*new)) & (twin > np.maximum(*new))
    threshold = np.maximum(*new)[above][0]
    jump = n.op("Cast", n.op("Greater", y, n.constant(threshold)), to=TensorProto.FLOAT)
    model = n.model(n.add(y, n.scale(jump, [10.0])))
    np.savez(tmp_path / "inputs.npz", x=data)
    found = optimize(model, options=Options(input_data=tmp_path / "inputs.npz")).report.verification
    assert found.verdict == "verified"
    assert [o.status for o in found.outputs if o.inputs == "inputs.npz"] == ["undecided", "same"]
    assert any("undecided" in note for note in found.notes)


def test_integer_inputs_stay_inside_tables():
    n = Net(1)
    table = n.constant(np.arange(12.0).reshape(3, 4))
    n.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 5]))
    n.axes["ids"] = 0
    rows = n.op("Gather", table, "ids", channels=5)
    n.axes[rows] = 1
    y = n.add(n.conv_bn(rows, 5, 3), n.conv_bn(rows, 5, 1))
    model = n.model(y)
    assert index_limits(model) == {"ids": 3}
    assert optimize(model).status == "folded"


def test_inputs_too_large_to_try():
    n = Net(1)
    x = n.input((1 << 20, 4, 6, 6))
    result = optimize(n.model(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1))))
    assert result.status == "unverified"
    assert "GiB" in result.report.verification.reason


def test_cuda_that_is_not_there_is_an_error_and_not_a_verdict():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    with pytest.raises(ProviderUnavailable, match="install onnxruntime-gpu"):
        optimize(chain(1), options=Options(provider="cuda"))
    with pytest.raises(ProviderUnavailable, match="unknown provider"):
        Runtime("tpu").check()


def test_a_session_that_falls_back_is_an_error(monkeypatch):
    """ONNX Runtime falls back to the CPU with a log line only."""
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, options, providers: real(data, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ProviderUnavailable, match="fell back to CPUExecutionProvider"):
        optimize(chain(1), options=Options(provider="cuda"))


def test_an_unverified_model_is_given_back_only_if_allowed():
    n = Net(1)
    x = n.input((1, 4, 6, 6))
    model = n.model(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1), n.op("RandomNormalLike", x)))
    kept = optimize(model)
    assert (kept.ok, len(kept.model.graph.node)) == (False, len(model.graph.node))
    taken = optimize(model, options=Options(allow_unverified=True))
    assert (taken.status, len(taken.model.graph.node)) == ("unverified", 3)


# -- the judgement itself -------------------------------------------------------------------------------------------


def judged(old, new, reference, others=()):
    figures = [judge.compare("y", "normal", [np.float32(old)], [np.float32(new)], np.float64(reference)), *others]
    return judge.settle(figures, 2.0**-24)[0]


def test_the_ratio_test_has_the_documented_limits():
    reference = np.ones(1000)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1000) * 1e-3
    for factor, status in ((1.0, "same"), (3.9, "same"), (4.2, "different")):
        found = judged(reference + noise, reference + factor * noise, reference)
        assert found.status == status
        assert found.ratio == pytest.approx(factor, rel=1e-3)
    spike = noise.copy()
    spike[7] = 9 * np.abs(noise).max()
    found = judged(reference + noise, reference + spike, reference)
    assert (found.status, "(7,)" in found.detail) == ("different", True)


def test_an_exact_original_leaves_a_floor():
    reference = np.full(100, 3.0)
    ulp = 3 * 2.0**-24
    assert judged(reference, reference + 2 * ulp, reference).status == "same"
    assert judged(reference, reference + 9 * ulp, reference).status == "different"


def test_luck_of_the_original_on_few_values_is_made_up_by_its_usual_error():
    others = [judge.OutputFigures("y", f"set {i}", "same", 1e-5, 1e-5, 1e-5, 1e-5, 1.0, 1.0) for i in range(4)]
    reference = np.ones(2)
    assert judged(reference, reference + 2e-5, reference).status == "different"
    assert judged(reference, reference + 2e-5, reference, others).status == "same"
    assert judged(reference, reference + 9e-5, reference, others).status == "different"


def test_new_weights_may_be_rounded_once_if_the_original_feels_that():
    reference = np.ones(100)
    new = reference + 1e-3
    found = judge.compare("y", "s", [reference + 1e-6], [new], reference)
    assert judge.settle([found], 2.0**-24)[0].status == "different"
    for moved, status in ((5e-4, "same"), (2e-4, "different"), (np.inf, "different"), (0.06, "skipped")):
        asked = judge.examined(found, reference + moved, new, reference)
        assert judge.settle([asked], 2.0**-24)[0].status == status


def test_where_the_reference_is_zero_the_usual_size_counts():
    zero, one = np.zeros(50), np.ones(50)
    others = [judge.compare("y", f"set {i}", [one + 1e-7], [one + 1e-7], one) for i in range(3)]
    for error, status in ((0.0, "skipped"), (3e-7, "same"), (1e-5, "different"), (1000.0, "different")):
        found = judge.compare("y", "s", [zero], [zero + error], zero)
        assert judge.settle([found, *others], 2.0**-24)[0].status == status
    found = judge.compare("y", "s", [zero], [zero + 1e-9], zero)
    assert judge.settle([found], 2.0**-24)[0].status == "different"


def test_an_output_that_is_always_zero_decides_nothing():
    net = Net(0)
    x = net.input((1, 4, 8, 8))

    def model(shift):
        y = net.op("Add", net.conv(x, 4, 3), net.constant(np.array(shift, np.float32)))
        return net.model(net.relu(y))

    dead, alive = model(-1000.0), model(1000.0)
    found = verify(dead, dead)
    assert (found.verdict, "zero everywhere" in found.reason) == ("unverified", True)
    assert verify(dead, alive).verdict == "rejected"


def test_folds_that_are_proven_may_lie_before_an_output_that_is_zero():
    net = Net(0)
    x = net.input((1, 4, 8, 8))
    scaled = net.op("Mul", net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1))), net.constant(0.0))
    result = optimize(net.model(scaled))
    assert result.status == "folded"
    assert "zero on every input" in result.report.verification.notes[-1]


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_very_small_and_very_large_numbers_are_measured(size):
    reference = np.full(10, size)
    for factor, status in ((1 + 1e-9, "different"), (1 + 1e-13, "same")):
        found = judge.compare("y", "s", [reference * (1 + 1e-13)], [reference * factor], reference)
        assert judge.settle([found], 2.0**-53)[0].status == status


def test_where_the_function_is_the_same_a_run_may_round_more():
    reference = np.ones(100)
    for error, function, status in (
        (1.5e-5, 1e-7, "same"),
        (1.7e-5, 1e-7, "different"),
        (1.5e-5, 3.9e-6, "same"),
        (1.5e-5, 4.3e-6, "different"),
        (1.5e-5, np.nan, "different"),
    ):
        found = judge.compare("y", "s", [reference + 1e-6], [reference + error], reference)
        asked = judge.examined(found, reference, reference + function, reference)
        assert judge.settle([asked], 2.0**-24)[0].status == status


@pytest.mark.parametrize("seed", range(8))
def test_pooling_that_rounds_otherwise_behind_a_fold_is_no_difference(seed):
    """ONNX Runtime has two kernels for it: which one it takes depends on what lies before."""
    net = Net(seed)
    x = net.input((1, 64, 32, 32))
    for _ in range(2):
        x = net.relu(net.add(net.conv_bn(x, 64, 3), net.conv_bn(x, 64, 1), net.bn(x)))
    pooled = net.op("GlobalAveragePool", x)
    assert optimize(net.model(pooled)).status == "folded"


def test_an_original_that_is_off_itself_decides_nothing():
    reference = np.ones(100)
    noise = np.random.default_rng(0).standard_normal(100)
    found = judged(reference + 0.1 * noise, reference + 0.1 * noise, reference)
    assert (found.status, "ill-conditioned" in found.detail) == ("skipped", True)


def test_shapes_types_and_integers_must_be_equal():
    one = np.ones(3, np.float32)
    assert judge.compare("y", "s", [one], [one[:2]], one).status == "different"
    assert judge.compare("y", "s", [one], [one.astype(np.float64)], one).status == "different"
    assert judge.compare("y", "s", [one[:0]], [one[:0]], one[:0]).status == "skipped"
    integers = np.arange(3)
    assert judge.compare("y", "s", [integers], [integers], integers).status == "same"
    found = judge.compare("y", "s", [integers], [integers[::-1]], integers)
    assert (found.status, "(0,): 0 became 2" in found.detail) == ("different", True)


def test_zoo_skeleton_of_a_detector_with_a_topk():
    found = optimize(skeletons.fill("hf_rtdetr_r18/train_legacy_bn")).report.verification
    assert found.verdict == "verified"
    assert "Resize" in found.islands


def test_on_cuda_each_model_runs_twice_and_tf32_is_reported_apart(monkeypatch):
    """With the CPU standing in for the device: what is asked of it, and what is said."""
    monkeypatch.setitem(sessions.PROVIDERS, "cuda", "CPUExecutionProvider")
    asked = []
    real = sessions.Runtime.session

    def session(self, *arguments, **settings):
        asked.append((self.provider, self.tf32, settings.get("alone", False)))
        return real(self, *arguments, **settings)

    monkeypatch.setattr(sessions.Runtime, "session", session)
    runs = []
    real_run = sessions.Session.run
    monkeypatch.setattr(sessions.Session, "run", lambda self, *a: runs.append(self) or real_run(self, *a))
    verification = optimize(chain(2), options=Options(provider="cuda")).report.verification
    assert verification.verdict == "verified"
    assert any(note.startswith("judged with TF32 off") for note in verification.notes)
    assert {a for a in asked if a[1] or a[2]} == {("cuda", True, False), ("cuda", False, True)}
    most = max(runs.count(s) for s in runs)
    assert most >= 2 * len(verification.inputs)


def test_images_smaller_than_a_kernel_do_not_end_the_process():
    """ONNX's inference aborts on a Slice of an image whose size it takes to be negative."""
    n = Net(1)
    x = n.input(("n", 4, "h", "w"))
    wide = n.add(n.conv_bn(x, 4, 7, pads=0), n.conv_bn(x, 4, 7, pads=0))
    one, far, axis = (n.constant([v], dtype=np.int64) for v in (1, 2**31, 2))
    model = n.model(n.relu(n.op("Slice", wide, one, far, axis)))
    assert optimize(model).status == "folded"


def test_a_size_at_which_the_runtime_departs_from_the_definition_decides_nothing():
    """Of an image smaller than the window, ONNX Runtime makes one pixel, and ONNX none."""
    net = Net(0)
    x = net.input(("batch", 4, "h", "w"))
    y = net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1)))
    model = net.model(net.op("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2], channels=4))
    report = optimize(model).report
    assert report.status == "folded"
    statuses = [o.status for o in report.verification.outputs]
    assert "same" in statuses
    assert set(statuses) <= {"same", "skipped"}


def test_the_twin_of_external_weights_waits_until_it_is_known_to_fit(tmp_path, monkeypatch):
    """The bytes of the message say nothing of how large its weights are."""
    model = chain(2)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    monkeypatch.setattr(original, "budget", lambda: 0.0)
    monkeypatch.setattr(original, "_SMALL_MODEL", 1 << 10)
    built = []
    monkeypatch.setattr(reference, "session_of_twin", lambda *_: built.append("twin"))
    monkeypatch.setattr(original.machine, "cores", lambda: 2)
    result = optimize(tmp_path / "m.onnx")
    assert not built
    assert result.status == "unverified"
    assert original.NEEDS in result.report.verification.reason


def test_the_next_input_set_runs_beside_the_one_before(monkeypatch):
    monkeypatch.setattr(original.machine, "cores", lambda: 2)
    run, second, begun = reference.Reference.run, threading.Event(), []

    def waiting(self, inputs):
        begun.append(inputs.name)
        if len(begun) == 1:
            assert second.wait(60)
        second.set()
        return run(self, inputs)

    monkeypatch.setattr(reference.Reference, "run", waiting)
    verification = verify(chain(2), chain(2))
    assert verification.verdict == "verified"
    assert list(verification.inputs) == begun


@pytest.mark.parametrize("share", [1.5, 2.5])
def test_runs_side_by_side_need_memory_for_both(share, monkeypatch):
    model = chain(2)
    monkeypatch.setattr(original.machine, "cores", lambda: 2)
    monkeypatch.setattr(original, "needed", lambda *_: 1.0)
    monkeypatch.setattr(original, "budget", lambda: share)
    active, most, run = [], [], sessions.Session.run

    def counted(self, *arguments):
        if threading.current_thread() is threading.main_thread():  # where inputs are looked for
            return run(self, *arguments)
        active.append(self)
        most.append(len(active))
        time.sleep(0.01)
        try:
            return run(self, *arguments)
        finally:
            active.remove(self)

    monkeypatch.setattr(sessions.Session, "run", counted)
    assert optimize(model).status == "folded"
    assert max(most) == int(share)


def test_a_verdict_on_the_users_data_comes_before_what_is_wrong_with_other_inputs(tmp_path):
    """The original runs on the user's size alone, which is none of those tried, and the new model runs on none."""
    models = []
    for height in (17, 18):
        net = Net(0)
        x = net.input(("n",))
        y = net.op("Reshape", x, net.constant([11, 13, height], dtype=np.int64))
        net.axes[y] = 1
        models.append(net.model(y))
    np.savez(tmp_path / "in.npz", **{models[0].graph.input[0].name: np.ones(11 * 13 * 17, np.float32)})
    verification = verify(*models, Options(input_data=tmp_path / "in.npz"))
    assert verification.verdict == "rejected"
    assert "does not run the new model on in.npz" in verification.reason


def test_a_difference_on_the_users_data_counts_where_no_other_input_is_legal(tmp_path):
    models = []
    for factor in (1.0, 1.0, 3.0):
        net = Net(0)
        x = net.input(("n",))
        y = net.op("Reshape", x, net.constant([11, 13, 17], dtype=np.int64))
        net.axes[y] = 1
        models.append(net.model(net.op("Mul", y, net.constant(factor))))
    data = {models[0].graph.input[0].name: np.random.default_rng(0).standard_normal(11 * 13 * 17).astype(np.float32)}
    np.savez(tmp_path / "in.npz", **data)
    first, same, other = models
    options = Options(input_data=tmp_path / "in.npz")
    assert verify(first, same, options).verdict == "unverified"
    verification = verify(first, other, options)
    assert verification.verdict == "rejected"
    assert [o.status for o in verification.outputs] == ["different"]


def test_the_users_data_counts_for_memory_too(tmp_path, monkeypatch):
    model = chain(2)
    np.savez(tmp_path / "in.npz", **{model.graph.input[0].name: np.ones((1, 8, 40, 40), np.float32)})
    measured = []
    monkeypatch.setattr(original, "needed", lambda _, shapes: measured.append(list(shapes.values())) or 1.0)
    monkeypatch.setattr(original, "budget", lambda: 10.0)
    assert optimize(model, options=Options(input_data=tmp_path / "in.npz")).status == "folded"
    assert [(1, 8, 40, 40)] in measured


def test_after_a_verdict_nothing_more_is_begun(monkeypatch):
    monkeypatch.setattr(original.machine, "cores", lambda: 2)
    monkeypatch.setattr(check, "_same", lambda *_: False)
    begun, run, threads = [], original.Original.run, threading.active_count()
    monkeypatch.setattr(original.Original, "run", lambda self, *a, **k: begun.append(a) or run(self, *a, **k))
    verification = verify(chain(2), chain(2))
    assert "differs from itself" in verification.reason
    assert len(begun) == 2
    assert threading.active_count() == threads


def test_a_model_that_only_its_stand_in_could_run_is_written(tmp_path):
    """ONNX Runtime has no kernels for it, so it cannot be asked to load the file."""
    for external in (False, True):
        result = optimize(chain(2, dtype=np.float64), tmp_path / f"{external}.onnx", Options(external_data=external))
        assert result.status == "folded"
        assert result.report.verification.levels == ("off",)
        assert (tmp_path / f"{external}.onnx").is_file()


def test_an_early_verdict_says_nothing_of_a_twin_that_judged_nothing(monkeypatch):
    monkeypatch.setattr(original.machine, "cores", lambda: 2)
    n = Net(3)
    x = n.input((1, 4, 6, 6))
    model = n.model(n.op("Resize", n.conv(x, 4, 3), "", n.constant([1, 1, 2, 2], dtype=np.float32), mode="cubic"))
    broken = copy(model)
    broken.graph.node[0].op_type = "NoSuchOp"
    verdict = verify(model, model)
    assert verdict.islands == ("Resize",)
    assert check.check(_side(model), _side(broken), Runtime(), inputs.Wishes({})).islands == ()


def _side(model):
    return Side(model, model.SerializeToString(), None)
