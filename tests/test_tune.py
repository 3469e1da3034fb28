"""Tuning, with times that are made up: what is decided, remembered, and reported."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnxrep
from models.net import Net
from onnxrep.cli import main
from onnxrep.errors import UnsupportedModel
from onnxrep.folding import fold
from onnxrep.proof.inputs import Wishes
from onnxrep.proof.sessions import Runtime
from onnxrep.proof.sides import Side
from onnxrep.report import latency
from onnxrep.tuning.cache import Cache, default_folder, fingerprint
from onnxrep.tuning.regions import is_unclear, spots
from onnxrep.tuning.tune import Tuner, timed
from onnxrep.tuning.whole import tune
from tests.tools import copy, ops, run

CHANNELS = 8


def blocks(count=1, seed=0, dynamic=False, depthwise=True):
    """Depthwise blocks of three branches (or dense ones), all of one structure."""
    net = Net(seed)
    x = net.input(("n", CHANNELS, "h", "w") if dynamic else (1, CHANNELS, 12, 12))
    group = CHANNELS if depthwise else 1
    for _ in range(count):
        three, one = net.conv_bn(x, CHANNELS, 3, group=group), net.conv_bn(x, CHANNELS, 1, group=group)
        x = net.relu(net.add(net.add(three, one), net.bn(x)))
    return net.model(x)


class Clock:
    """A timer that knows its answers, and what it was asked."""

    def __init__(self, **seconds):
        self.seconds = {"left": 2.0, "partial": 1.5, "folded": 1.0} | seconds
        self.asked = []

    def __call__(self, sides, feeds, runtime):
        self.asked.append({name: ops(side.model) for name, side in sides.items()})
        for side in sides.values():  # what is timed can be run
            assert runtime.session(side.serialized, "all").run(feeds)
        return {name: [self.seconds[name]] * 9 for name in sides}


@functools.cache
def comparison(verdict):
    """A comparison of whole models that ended so."""
    return dataclasses.replace(onnxrep.bench(blocks(), blocks(), rounds=7), verdict=verdict)


def tuned(model, clock, cache, verdicts=("faster",)):
    """Tune a copy of a model; return it, what tuning says, and how often whole models were compared."""
    result, verdicts = copy(model), list(verdicts)

    def anew(skipped):
        result.CopyFrom(model)
        return fold(result, None, None, skipped)

    def side_by_side(before, after):
        verdict = verdicts.pop(0)
        if verdict == "fails":
            raise UnsupportedModel("no")
        return comparison(verdict)

    tuner = Tuner(
        Side(model, None, None), lambda s: (result, anew(s)[0]), Runtime(threads=1), Wishes({}), Cache(cache), clock
    )
    return result, tune(result, tuner, anew, side_by_side), verdicts


def choices(found):
    return [d.choice for d in found.record.decisions]


def test_the_fold_is_kept_where_it_is_fastest(tmp_path):
    clock = Clock()
    result, found, _ = tuned(blocks(), clock, tmp_path)
    assert ops(result) == ["Conv", "Relu"]
    assert choices(found) == ["folded"]
    (decision,) = found.record.decisions
    assert decision.seconds == {"left": 2.0, "partial": 1.5, "folded": 1.0}
    assert decision.ratio == 2.0
    assert not decision.cached
    (asked,) = clock.asked
    assert asked["folded"] == ["Conv", "Relu"]  # with the activation behind it, as the runtime fuses it
    assert sorted(asked["left"]) == sorted(ops(blocks()))
    assert len(asked["folded"]) < len(asked["partial"]) < len(asked["left"])


def test_a_region_that_is_slower_when_folded_is_left(tmp_path):
    model = blocks(2)
    result, found, _ = tuned(model, Clock(folded=3.0, partial=2.5), tmp_path)
    assert choices(found) == ["left", "left"]
    assert not found.folds
    assert result.SerializeToString() == model.SerializeToString()
    assert found.latency is None


def test_a_partial_fold_that_is_fastest_is_taken(tmp_path):
    model = blocks()
    result, found, _ = tuned(model, Clock(partial=0.5), tmp_path)
    assert choices(found)[0] == "partial"
    assert 2 < len(ops(result)) < len(ops(model))
    assert found.folds
    feeds = {"x": np.ones((1, CHANNELS, 12, 12), np.float32)}
    (old,), (new,) = run(model, feeds), run(result, feeds)
    assert abs(old - new).max() < 1e-4


def test_noise_decides_nothing(tmp_path):
    class Noisy(Clock):
        def __call__(self, sides, feeds, runtime):
            super().__call__(sides, feeds, runtime)
            return {n: [1.0, 2.0] * 5 if n == "folded" else [1.5] * 10 for n in sides}

    _, found, _ = tuned(blocks(), Noisy(), tmp_path)
    assert choices(found) == ["folded"]


def test_what_is_alike_is_timed_once_and_remembered(tmp_path):
    clock = Clock()
    _, found, _ = tuned(blocks(3), clock, tmp_path)
    assert len(found.record.decisions) == 3
    assert len(clock.asked) == 1
    again = Clock()
    _, found, _ = tuned(blocks(2, seed=7), again, tmp_path)  # other weights of the same shapes
    assert not again.asked
    assert all(d.cached for d in found.record.decisions)
    assert found.record.decisions[0].seconds == {"left": 2.0, "partial": 1.5, "folded": 1.0}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: "{",
        lambda entry: "[]",
        lambda entry: json.dumps(entry | {"schema": 0}),
        lambda entry: json.dumps(entry | {"key": "other"}),
        lambda entry: json.dumps(entry | {"seconds": {"folded": [1.0]}}),
        lambda entry: json.dumps(entry | {"seconds": dict.fromkeys(entry["seconds"], [-1.0] * 9)}),
        lambda entry: json.dumps(entry | {"seconds": dict.fromkeys(entry["seconds"], "fast")}),
        lambda entry: json.dumps(entry | {"seconds": dict.fromkeys(entry["seconds"], [10**400] * 9)}),
        lambda entry: json.dumps(entry | {"seconds": {n: [] for n in entry["seconds"]}}),
        lambda entry: json.dumps(entry | {"seconds": dict.fromkeys(entry["seconds"], [1.0, None] * 5)}),
        lambda entry: "[" * 60000,
        lambda entry: " " * (1 << 17) + json.dumps(entry),
    ],
)
def test_spoilt_entries_are_ignored(tmp_path, spoil):
    tuned(blocks(), Clock(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(spoil(json.loads(path.read_text())))
    clock = Clock()
    _, found, _ = tuned(blocks(), clock, tmp_path)
    assert clock.asked
    assert choices(found) == ["folded"]
    assert json.loads(path.read_text())["schema"] == 1


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    _, found, _ = tuned(blocks(), Clock(), tmp_path / "file")
    assert choices(found) == ["folded"]


def test_the_key_is_of_structure_shapes_and_surroundings():
    def key(model, *about):
        return fingerprint({"a": model}, about)

    first = blocks()
    renamed = onnx.ModelProto.FromString(first.SerializeToString().replace(b"Relu_1", b"Rely_1"))
    assert key(first) == key(blocks(seed=3)) == key(renamed)
    others = [
        key(blocks(2)),
        key(blocks(depthwise=False)),
        key(blocks(dynamic=True)),
        key(first, "cuda"),
        key(first, 2),
    ]
    assert len({key(first), *others}) == len(others) + 1
    assert fingerprint({"b": first}, ()) != key(first)


def test_the_folder_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "onnxrep/tune"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache/onnxrep/tune"


def test_the_price_is_trusted_where_it_is_clear(tmp_path):
    clock = Clock(folded=9.0)
    result, found, _ = tuned(blocks(depthwise=False), clock, tmp_path)
    assert not clock.asked
    assert not found.record.decisions
    assert ops(result) == ["Conv", "Relu"]
    fold_record = found.folds[0]
    assert not is_unclear(fold_record, "cpu")
    assert is_unclear(dataclasses.replace(fold_record, seconds=(100.0, 99.0)), "cpu")
    dilated = dataclasses.replace(fold_record.emitted[0], dilations=(2, 2))
    assert is_unclear(dataclasses.replace(fold_record, emitted=(dilated,)), "cpu")
    assert is_unclear(fold_record, "cuda"), "no rates were measured there"


def test_a_whole_that_is_slower_is_timed_everywhere(tmp_path):
    clock = Clock(folded=9.0, partial=9.0)
    model = blocks(depthwise=False)
    result, found, left = tuned(model, clock, tmp_path, ("slower",))
    assert clock.asked
    assert not left
    assert choices(found) == ["left"]
    assert result.SerializeToString() == model.SerializeToString()
    assert not found.record.dropped


def test_a_whole_that_stays_slower_is_not_folded(tmp_path):
    model = blocks(depthwise=False)
    result, found, left = tuned(model, Clock(), tmp_path, ("slower", "slower"))
    assert not left
    assert found.record.dropped
    assert not found.folds
    assert result.SerializeToString() == model.SerializeToString()


def test_where_nothing_can_be_timed_the_price_decides(tmp_path):
    result, found, _ = tuned(blocks(), Clock(), tmp_path, ("fails",))
    assert found.record.note == "no"
    assert ops(result) == ["Conv", "Relu"]
    assert len(found.folds) == 1


def test_dynamic_models_are_timed_at_a_usual_size(tmp_path):
    clock = Clock()
    _, found, _ = tuned(blocks(dynamic=True), clock, tmp_path)
    assert choices(found) == ["folded"]


def test_the_real_timer():
    model = blocks()
    result = copy(model)
    folds, _ = fold(result, None)
    assert [s.output for s in spots(model, result, folds)] == [folds[0].output]
    feeds = {"x": np.ones((1, CHANNELS, 12, 12), np.float32)}
    times = timed({"left": Side(model, None, None), "folded": Side(result, None, None)}, feeds, Runtime(threads=1))
    assert all(len(t) >= 7 and min(t) > 0.0 and max(t) < math.inf for t in times.values())


def test_the_command(tmp_path, capsys):
    onnx.save(blocks(2), tmp_path / "m.onnx")
    command = ["optimize", str(tmp_path / "m.onnx"), "--tune", "--tune-cache", str(tmp_path / "cache")]
    report = tmp_path / "report.json"
    assert main([*command, "--report", str(report)]) == 0
    text = capsys.readouterr().out
    data = json.loads(report.read_text())
    assert data["tuning"]["threads"] == 1
    assert len(data["tuning"]["decisions"]) >= 2
    assert "timed 2 regions" in text
    assert data["latency"] is None or data["latency"]["verdict"] != "slower"
    assert list((tmp_path / "cache").glob("*.json"))
    assert main(command) == 0
    assert "2 known from former runs" in capsys.readouterr().out
    assert main(["optimize", str(tmp_path / "m.onnx"), "--tune-cache", str(tmp_path)]) == 2
    assert "give --tune too" in capsys.readouterr().err


def test_the_words(tmp_path):
    for verdicts, words in ((("slower", "slower"), "all folds were given up"), (("fails",), "nothing was timed")):
        _, found, _ = tuned(blocks(), Clock(), tmp_path, verdicts)
        console = Console(record=True, width=200, file=io.StringIO())
        latency.show_tuning(found.record, console, verbose=True)
        assert words in console.export_text()
