"""Times side by side: the statistics, the profile, the command."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

import onnxrep
from models.net import Net
from onnxrep.cli import main
from onnxrep.errors import UsageError
from onnxrep.report import latency
from onnxrep.timing.profile import parsed
from onnxrep.timing.rounds import Budget, repeats_for, timed_rounds, warm_up
from onnxrep.timing.statistics import Ratio, order_rank, quartiles, ratio

CHANNELS = 16


def network(layers, size=32):
    """A chain of 3x3 convolutions; the weights of fewer layers are those of the first of more."""
    net = Net(0)
    x = net.input((1, CHANNELS, size, size))
    for _ in range(layers):
        x = net.relu(net.conv(x, CHANNELS, 3))
    return net.model(x)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, and one that does forty times its work."""
    folder = tmp_path_factory.mktemp("bench")
    onnx.save(network(1), folder / "quick.onnx")
    onnx.save(network(40), folder / "slow.onnx")
    return folder / "quick.onnx", folder / "slow.onnx"


def test_the_rank_of_the_sign_test():
    """The table in every book of statistics, at 95 %."""
    assert [order_rank(n) for n in (6, 8, 9, 12, 15, 20, 25, 100)] == [0, 0, 1, 2, 3, 5, 7, 39]
    with pytest.raises(ValueError, match="too few"):
        order_rank(5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        drift = rng.uniform(1.0, 3.0, 25)  # the machine is slowed down for both of a pair
        first, second = (drift * scale * rng.lognormal(0.0, 0.1, 25) for scale in (1.5, 1.0))
        found = ratio(first, second)
        held += found.low <= 1.5 <= found.high
    assert 930 <= held <= 990


def test_a_drift_of_the_machine_leaves_the_ratio():
    drift = np.linspace(1.0, 5.0, 15)
    assert ratio(2.0 * drift, drift) == Ratio(2.0, 2.0, 2.0)


def test_one_outlier_changes_nothing():
    first, second = [3.0] * 14 + [300.0], [2.0] * 15
    found = ratio(first, second)
    assert (found.median, found.low, found.high) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Ratio(1.5, 1.4, 1.6), "faster"),
        (Ratio(0.7, 0.6, 0.8), "slower"),
        (Ratio(1.05, 0.99, 1.1), "same"),
        (Ratio(0.95, 0.9, 1.01), "same"),
        (Ratio(1.005, 1.004, 1.006), "same"),
        (Ratio(0.995, 0.994, 0.996), "same"),
    ],
)
def test_the_verdict(found, verdict):
    assert found.verdict == verdict


def test_quartiles():
    assert quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0)


def test_rounds_are_interleaved_in_random_order():
    order = []
    runs = [lambda: order.append(0), lambda: order.append(1)]
    shares = []
    times = timed_rounds(runs, Budget(50, 60.0), np.random.default_rng(0), repeats=2, progress=shares.append)
    assert [len(t) for t in times] == [50, 50]
    pairs = np.reshape(order, (50, 2, 2))
    assert (pairs[:, :, 0] == pairs[:, :, 1]).all()  # both repeats of one before the other
    assert (pairs.sum(1) == 1).all()
    assert set(pairs[:, 0, 0]) == {0, 1}
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_fewest_rounds_are_made_when_the_time_is_up():
    assert len(timed_rounds([int], Budget(100, 1e-9), np.random.default_rng(0))[0]) == 7
    assert len(timed_rounds([int], Budget(1, 60.0), np.random.default_rng(0))[0]) == 7


def test_short_runs_are_repeated():
    assert repeats_for(1.0) == 1
    assert repeats_for(1e-3) == 2
    assert repeats_for(0.0) > 1000
    count = []
    assert warm_up([lambda: count.append(1)]) < 1.0
    assert len(count) >= 3


def test_a_profile_is_parsed(tmp_path):
    events = []
    for run in range(4):
        begin = 1000 * run
        events.append({"cat": "Session", "name": "model_run", "ts": begin, "dur": 900})
        kinds = [("a", "Conv", 100 + 10 * run), ("b", "Conv", 50), ("c", "If", 500), ("d", "Relu", 7)]
        for index, (name, op, spent) in enumerate(kinds):
            event = {"cat": "Node", "name": f"{name}_kernel_time", "ts": begin + index, "dur": spent}
            events.append({**event, "args": {"op_name": op}})
            events.append({**event, "name": f"{name}_fence_before"})
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([*events, {"name": "without duration", "ts": 1}]))
    times, counts = parsed(path, skipped=1)
    assert list(times) == ["Conv", "Relu"]
    assert times == pytest.approx({"Conv": 170e-6, "Relu": 7e-6})
    assert counts == {"Conv": 2, "Relu": 1}


def test_more_work_is_slower(files, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    quick, slow = map(str, files)
    assert main(["bench", slow, quick, "--rounds", "9", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1
    assert data["verdict"] == "faster"
    assert data["ratio"] > data["interval"][0] > 1.0
    assert data["inputs"] == {"x": [1, CHANNELS, 32, 32]}
    assert (data["rounds"], data["threads"], data["provider"], data["chosen"]) == (9, 1, "cpu", False)
    for side, name, count in (("before", slow, 40), ("after", quick, 1)):
        timing = data[side]
        assert timing["model"] == name
        assert 0.0 < timing["low"] <= timing["median"] <= timing["high"]
        assert sum(n for op, n in timing["kernels"].items() if "Conv" in op) == count
        assert timing["kernels"].keys() == timing["ops"].keys()
    assert {"onnxrep", "onnxruntime"} <= data["versions"].keys()
    assert not list(tmp_path.iterdir())
    assert main(["bench", quick, slow, "--rounds", "9"]) == 0
    text = capsys.readouterr().out
    assert "x as fast (95 % interval 0." in text
    assert ": slower" in text
    assert "9 rounds" in text
    assert f"x 1x{CHANNELS}x32x32; ONNX Runtime on cpu, 1 thread" in text


def test_dynamic_inputs_get_one_usual_size(tmp_path, capsys):
    net = Net(0)
    onnx.save(net.model(net.conv(net.input(("n", 3, "h", "w")), 4, 3)), tmp_path / "m.onnx")
    path = str(tmp_path / "m.onnx")
    found = onnxrep.bench(path, path, rounds=7)
    assert found.chosen
    assert dict(found.inputs) == {"x": (1, 3, 224, 224)}
    assert main(["bench", path, path, "--rounds", "7"]) == 0
    assert "--input-shape NAME:1,3,224,224 takes others" in capsys.readouterr().out
    assert main(["bench", path, path, "--rounds", "7", "--input-shape", "x:2,3,8,8"]) == 0
    text = capsys.readouterr().out
    assert "x 2x3x8x8" in text
    assert "--input-shape" not in text
    np.savez(tmp_path / "data.npz", x=np.ones((1, 3, 16, 9), np.float32))
    options = onnxrep.Options(input_data=tmp_path / "data.npz", threads=1)
    assert dict(onnxrep.bench(path, path, options, rounds=7).inputs) == {"x": (1, 3, 16, 9)}


def test_outputs_that_are_not_finite_are_told(tmp_path):
    net = Net(0)
    x = net.input((1, 4))
    onnx.save(net.model(net.op("Sqrt", net.op("Neg", net.op("Exp", x)))), tmp_path / "m.onnx")
    found = onnxrep.bench(tmp_path / "m.onnx", tmp_path / "m.onnx", rounds=7)
    assert any("NaN" in note for note in found.notes)


def test_what_cannot_be_compared(files, tmp_path, capsys):
    quick = files[0]
    net = Net(0)
    onnx.save(net.model(net.relu(net.input((1, CHANNELS, 32, 32), name="other"))), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="different inputs"):
        onnxrep.bench(quick, tmp_path / "m.onnx")
    assert main(["bench", str(quick), str(quick), "--input-shape", "x:1,2,3,4"]) == 2
    assert "does not fit" in capsys.readouterr().err
    unknown = onnx.ModelProto.FromString(quick.read_bytes())
    unknown.opset_import.add(domain="strange", version=1)
    unknown.graph.node[0].domain = "strange"
    onnx.save(unknown, tmp_path / "strange.onnx")
    assert main(["bench", str(quick), str(tmp_path / "strange.onnx")]) == 1
    assert "does not load the second model" in capsys.readouterr().err


def test_cuda_that_is_not_there_is_an_error(files, capsys):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is there")
    assert main(["bench", *map(str, files), "--provider", "cuda"]) == 2
    assert "cuda" in capsys.readouterr().err


def test_optimize_times_its_result(tmp_path, capsys):
    net = Net(0)
    x = net.input((1, 8, 16, 16))
    model = net.model(net.relu(net.add(net.conv_bn(x, 8, 3), net.conv_bn(x, 8, 1), net.bn(x))))
    result = onnxrep.optimize(model, options=onnxrep.Options(bench=True))
    assert result.report.latency is not None
    assert result.report.latency.threads == 1
    assert result.report.to_dict()["latency"]["before"]["kernels"]
    assert "bench" in result.report.seconds
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["optimize", str(tmp_path / "m.onnx"), "--bench"]) == 0
    assert "x as fast (95 % interval" in capsys.readouterr().out
    onnx.save(result.model, tmp_path / "done.onnx")
    assert onnxrep.optimize(tmp_path / "done.onnx", options=onnxrep.Options(bench=True)).report.latency is None


def test_the_words(files):
    found = onnxrep.bench(files[1], files[0], rounds=7)
    assert latency.sentence(found).startswith(f"{found.ratio:.2f}x as fast (95 % interval ")
    same = dataclasses.replace(found, verdict="same", ratio=1.0, interval=(0.98, 1.02))
    assert latency.sentence(same) == "no difference beyond noise: 1.00x as fast (95 % interval 0.98 to 1.02)"
    console = Console(record=True, width=100, file=io.StringIO())
    latency.show(same, console)
    assert "no difference" in console.export_text()
