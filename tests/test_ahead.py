"""The original runs while the new model is still being made: what begins, what ends, and that nothing depends on it."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.net import Net
from onnxrep import Options, folding, optimize
from onnxrep.errors import UsageError
from onnxrep.proof import check, original, sessions
from onnxrep.proof.errors import CannotRun


def network(shape=(1, 8, 16, 16)):
    """Two blocks; five input sets where the shape is fixed."""
    n = Net(1)
    y = n.input(shape)
    for _ in range(2):
        y = n.relu(n.add(n.conv_bn(y, 8, 3), n.conv_bn(y, 8, 1), n.bn(y)))
    return n.model(y)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    monkeypatch.setattr(original.machine, "cores", lambda: 2)


@pytest.fixture
def begun(monkeypatch):
    """Return what has been run ahead: the names of the input sets."""
    names, run = [], original.Original.run

    def noted(self, inputs, **settings):
        if threading.current_thread() is not threading.main_thread():
            names.append(inputs.name)
        return run(self, inputs, **settings)

    monkeypatch.setattr(original.Original, "run", noted)
    return names


def wait_for(monkeypatch, event):
    """Let nothing be proven before an event."""
    real = folding.certify

    def certify(claims):
        assert not claims or event.wait(60)
        return real(claims)

    monkeypatch.setattr(folding, "certify", certify)


def _said():
    event = threading.Event()
    event.set()
    return event


def all_begun(monkeypatch, count):
    """Return an event: as many input sets have been run ahead."""
    event, run, seen = threading.Event(), original.Original.run, []

    def counted(self, inputs, **settings):
        seen.append(inputs.name)
        if len(seen) == count:
            event.set()
        return run(self, inputs, **settings)

    monkeypatch.setattr(original.Original, "run", counted)
    return event


def test_the_original_runs_before_the_folds_are_proven(monkeypatch):
    wait_for(monkeypatch, all_begun(monkeypatch, 5))
    verification = optimize(network()).report.verification
    assert verification.verdict == "verified"
    assert len(verification.inputs) == 5


@pytest.mark.parametrize("sizes", [(1, 8, 16, 16), ("batch", 8, "height", "width")])
def test_the_verdict_is_that_of_a_check_that_begins_later(sizes, monkeypatch):
    model = network(sizes)
    wait_for(monkeypatch, all_begun(monkeypatch, 2))
    ahead = optimize(model).report.verification
    monkeypatch.setattr(original.Original, "begin", lambda self: None)
    assert optimize(model).report.verification == ahead


def test_no_more_results_are_held_than_may_be(monkeypatch, begun):
    monkeypatch.setattr(original, "_MOST_HELD", 0)
    wait_for(monkeypatch, all_begun(monkeypatch, 2))
    verification = optimize(network()).report.verification
    assert verification.verdict == "verified"
    assert len(verification.inputs) == 5
    assert len(begun) == 2


def test_what_fails_ahead_is_judged_as_ever(monkeypatch, begun):
    """Here the first session of the original does not load, but a second attempt does."""
    failed, session = [], sessions.Runtime.session

    def failing(self, *arguments, **settings):
        if not failed and "reuse_memory" not in settings:  # which the twin alone has
            failed.append(1)
            raise CannotRun("not now")
        return session(self, *arguments, **settings)

    monkeypatch.setattr(sessions.Runtime, "session", failing)
    verification = optimize(network()).report.verification
    assert failed
    assert not begun
    assert verification.verdict == "verified"


def test_an_original_that_differs_from_itself_is_found_ahead_too(monkeypatch, begun):
    monkeypatch.setattr(check, "_same", lambda *_: False)
    wait_for(monkeypatch, all_begun(monkeypatch, 2))
    assert "differs from itself" in optimize(network()).report.verification.reason
    assert begun


def test_what_does_not_fit_into_memory_ahead_is_judged_as_ever(monkeypatch):
    monkeypatch.setattr(original, "budget", lambda: 0.0)
    verification = optimize(network()).report.verification
    assert verification.verdict == "unverified"
    assert original.NEEDS in verification.reason


def test_a_wish_that_does_not_fit_is_the_callers_fault_ahead_too():
    with pytest.raises(UsageError, match="no such input"):
        optimize(network(), options=Options(input_ranges={"nothing": (0.0, 1.0)}))


def test_no_more_is_begun_once_the_new_model_is_there(monkeypatch, begun):
    """Nothing that runs ahead ends before the check asks for it: two input sets have begun by then."""
    asked, run, is_ahead = threading.Event(), sessions.Session.run, original.Original.is_ahead
    monkeypatch.setattr(sessions.Session, "run", lambda self, *a: asked.wait(60) and run(self, *a))

    def asking(self):
        self._enough.set()  # as the call itself does first
        asked.set()
        return is_ahead(self)

    monkeypatch.setattr(original.Original, "is_ahead", asking)
    wait_for(monkeypatch, all_begun(monkeypatch, 2))
    verification = optimize(network()).report.verification
    assert verification.verdict == "verified"
    assert len(verification.inputs) == 5
    assert len(begun) == 2


def test_runs_end_when_nobody_needs_them(monkeypatch):
    """Here they would take hours."""
    n = Net(1)
    x = n.input((1, 4, 8, 8))
    y = n.relu(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1)))
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, None)],
        [value("still", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, None)],
    )
    n.nodes.append(helper.make_node("Loop", [n.constant(2**40, dtype=np.int64), "", y], ["z"], body=body))
    n.axes["z"] = 2
    wait_for(monkeypatch, all_begun(monkeypatch, 1))
    threads = threading.active_count()
    result = optimize(n.model("z"), options=Options(select=lambda fold: False))
    assert result.status == "unchanged"
    assert threading.active_count() == threads


def test_memory_that_is_lacking_beside_folding_may_be_there_afterwards(monkeypatch):
    failed, run = [], sessions.Session.run

    def failing(self, *arguments):
        if not failed:
            failed.append(1)
            raise MemoryError
        return run(self, *arguments)

    monkeypatch.setattr(sessions.Session, "run", failing)
    wait_for(monkeypatch, all_begun(monkeypatch, 2))
    assert optimize(network()).report.verification.verdict == "verified"


@pytest.mark.parametrize("limit", [0, 1 << 28])
def test_nothing_is_begun_of_a_large_model(limit, monkeypatch, begun):
    monkeypatch.setattr(original, "_SMALL_MODEL", limit)
    wait_for(monkeypatch, all_begun(monkeypatch, 1) if limit else _said())
    assert optimize(network()).status == "folded"
    assert bool(begun) == bool(limit)


def test_nothing_is_begun_where_choices_must_be_watched(begun):
    n = Net(2)
    x = n.input((1, 4, 8, 8))
    y = n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1))
    largest = n.op("ArgMax", y, axis=1, keepdims=1)
    n.axes[largest] = 2
    assert optimize(n.model(n.op("Cast", largest, to=onnx.TensorProto.FLOAT))).status == "folded"
    assert not begun


def test_nothing_is_begun_where_nothing_folds(monkeypatch):
    called = []
    monkeypatch.setattr(original.Original, "begin", called.append)
    n = Net(0)
    model = n.model(n.relu(n.conv(n.input((1, 4, 8, 8)), 4, 3)))
    assert optimize(model).status == "unchanged"
    assert not called


@pytest.mark.parametrize("options", [Options(verify=False), Options(threads=1), Options(tune=True)])
def test_nothing_is_begun_unasked(options, monkeypatch, tmp_path, begun):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = optimize(network(), options=options).report
    assert report.status == "folded"
    assert not begun
    assert ("verify" in report.seconds) == options.verify


def test_all_that_was_begun_ends_where_no_fold_is_wanted():
    threads = threading.active_count()
    result = optimize(network(), options=Options(select=lambda fold: False))
    assert result.status == "unchanged"
    assert threading.active_count() == threads


def test_all_that_was_begun_ends_with_an_error(monkeypatch):
    threads = threading.active_count()

    def certify(claims):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(folding, "certify", certify)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        optimize(network())
    assert threading.active_count() == threads


def test_users_data_is_run_ahead_too(tmp_path, monkeypatch, begun):
    model = network()
    np.savez(tmp_path / "in.npz", **{model.graph.input[0].name: np.ones((1, 8, 16, 16), np.float32)})
    wait_for(monkeypatch, all_begun(monkeypatch, 1))
    verification = optimize(model, options=Options(input_data=tmp_path / "in.npz")).report.verification
    assert verification.verdict == "verified"
    assert begun[0] == verification.inputs[0] == "in.npz"
