"""Estimates of time: what they count, what they know to be free, and that the runtime is as they take it to be."""

import dataclasses
import io
import math
import re

import numpy as np
import onnx
import pytest
from rich.console import Console

from benchmarks import calibrate
from models.net import Net
from onnxrep import Options, inspect
from onnxrep.cli import main
from onnxrep.estimate import Estimator
from onnxrep.folding import known_facts
from onnxrep.graph import Edit, Model
from onnxrep.lift import LIFTED
from onnxrep.proof.sessions import Runtime
from onnxrep.rates import KINDS, RATES, Rates, kind_of
from onnxrep.report import plan, records
from onnxrep.shapes import FOLLOWED

WORK = Rates(1.0, 1.0, 1.0, 1.0, 1.0, (1.0, 1.0), math.inf, 0.0, True, True, True, True)
"""One second per multiply-accumulate, nothing else counts."""
MOVES = Rates(*(math.inf,) * 5, (1.0, 1.0), 1.0, 0.0, False, False, True, True)
"""One second per element of what is element-wise."""
STARTS = dataclasses.replace(MOVES, elements=math.inf, launch=1.0)
"""One second per kernel."""


def seconds(model, rates, output=None):
    """Return the estimate of all nodes of a model."""
    facts = known_facts(Model(model, None, LIFTED | FOLLOWED))[0]
    nodes = facts.scope.nodes
    edit = Edit(frozenset(), 0, [], [])
    return Estimator(facts, rates).seconds(range(len(nodes)), edit, output or model.graph.output[0].name)[0]


def image(channels=4, side=6):
    net = Net(0)
    return net, net.input((1, channels, side, side))


def test_work_is_that_of_the_kernels():
    net, x = image()
    assert seconds(net.model(net.conv(x, 8, 3)), WORK) == 36 * 8 * 4 * 9
    net, x = image()
    assert seconds(net.model(net.conv(x, 4, 3, group=4)), WORK) == 36 * 4 * 9
    net, x = image()
    assert seconds(net.model(net.conv(x, 8, 1, stride=2)), WORK) == 9 * 8 * 4
    net = Net(0)
    x = net.input((1, 5, 4))
    assert seconds(net.model(net.op("MatMul", x, net.constant(np.ones((4, 7))))), WORK) == 5 * 4 * 7


@pytest.mark.parametrize(
    ("weight", "group", "kind"),
    [
        ((8, 8, 1, 1), 1, "pointwise"),
        ((8, 8, 1, 3), 1, "dense"),
        ((8, 1, 3, 3), 8, "depthwise"),
        ((8, 2, 3, 3), 4, "grouped"),
    ],
)
def test_each_kind_has_its_own_speed(weight, group, kind):
    assert kind_of(weight, group) == kind
    assert kind in KINDS
    rates = dataclasses.replace(WORK, **{kind: 5.0, "dilated": (0.5, 0.25)})
    assert rates.macs(kind) == 5.0
    assert rates.macs(kind, dilated=True) == (2.5 if kind == "depthwise" else 1.25)


def test_a_scale_behind_a_convolution_is_free_where_the_runtime_fuses_it():
    net, x = image()
    model = net.model(net.scale(net.bn(net.conv(x, 4, 1)), np.full((1, 4, 1, 1), 2.0)))
    assert seconds(model, STARTS) == 3
    assert seconds(model, dataclasses.replace(STARTS, fuses_scales=True)) == 1
    net, x = image()
    y = net.conv(x, 4, 1)
    shared = net.model(net.add(net.bn(y), net.relu(y)))
    assert seconds(shared, dataclasses.replace(STARTS, fuses_scales=True)) == 4, "another node reads the convolution"
    net, x = image()
    alone = net.model(net.bn(x))
    assert seconds(alone, dataclasses.replace(STARTS, fuses_scales=True)) == 1, "no convolution to vanish into"


def test_a_sum_behind_a_convolution_reads_one_image_where_the_runtime_fuses_it():
    net, x = image()
    model = net.model(net.add(net.conv(x, 4, 3), x))
    assert seconds(model, MOVES) == 3 * 4 * 36
    assert seconds(model, dataclasses.replace(MOVES, fuses_sums=True)) == 4 * 36
    assert seconds(model, STARTS) == 2
    assert seconds(model, dataclasses.replace(STARTS, fuses_sums=True)) == 1


def test_open_sizes_count_as_one_image_of_56_positions_a_side():
    net = Net(0)
    x = net.input(("n", 4, "h", "w"))
    assert seconds(net.model(net.conv(x, 8, 1)), WORK) == 56 * 56 * 8 * 4


def test_a_fold_states_both_times_and_the_merged_kernel_takes_its_share():
    net, x = image(16, 28)
    model = net.model(net.relu(net.add(net.conv_bn(x, 16, 3), net.conv_bn(x, 16, 1), net.bn(x))))
    [fold] = inspect(model).folds
    before, after = fold.seconds
    cpu, positions = RATES["cpu"], 28 * 28 * 16
    assert after == pytest.approx(cpu.launch + positions * 16 * 9 / cpu.dense)
    assert before > after + positions * 16 / cpu.pointwise


def test_what_takes_the_place_of_others_is_estimated_with_its_own_sizes():
    """A convolution in front of a Resize works on the small image; behind it, on the large one."""
    net, x = image(8, 10)
    large = net.op("Resize", net.relu(x), "", net.constant([1, 1, 2, 2]), mode="nearest")
    model = net.model(net.relu(net.conv(large, 8, 1)))
    [fold] = inspect(model).folds
    assert fold.kind == "move"
    cpu = RATES["cpu"]
    saved = fold.seconds[0] - fold.seconds[1]
    assert saved == pytest.approx((400 - 100) * 8 * 8 / cpu.pointwise)


def test_a_reshaped_map_is_estimated_at_the_size_that_it_has():
    net = Net(0)
    x = net.relu(net.input((1, 6, 5, 5)))
    flat = net.op("Reshape", net.conv_bn(x, 12, 1), net.constant([1, 12, 25], dtype=np.int64))
    net.axes[flat] = 1
    model = net.model(net.op("Softmax", net.op("Transpose", flat, perm=[0, 2, 1])))
    [fold] = inspect(model).folds
    assert fold.seconds[1] <= fold.seconds[0] * 1.001


def test_a_person_reads_the_estimate(tmp_path, capsys):
    net, x = image(16, 28)
    onnx.save(net.model(net.relu(net.add(net.conv_bn(x, 16, 3), net.conv_bn(x, 16, 1)))), tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "% less time by estimate (one CPU thread of a server; 'onnxrep bench' measures the whole)" in text


def test_the_runtime_fuses_what_the_rates_say():
    runtime = Runtime(threads=1)
    assert calibrate.fuses_scales(runtime) is RATES["cpu"].fuses_scales
    assert calibrate.fuses_sums(runtime) is RATES["cpu"].fuses_sums


def test_calibration_times_what_it_says():
    model = calibrate.row(calibrate.convolution(3, "four", 2), 16, 6, 3)
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == 3
    attributes = {a.name: a for a in convolutions[0].attribute}
    assert attributes["group"].i == 4
    assert list(attributes["dilations"].ints) == [2, 2]
    for name, layer in calibrate.BLOCKS.items():
        report = inspect(calibrate.row(layer, 8, 6, 2), Options())
        assert len(report.folds) == 2, name


def test_what_folds_twice_is_counted_once():
    net, x = image(16, 28)
    report = inspect(net.model(net.relu(net.add(net.conv_bn(x, 16, 3), net.conv_bn(x, 16, 1)))))
    [fold] = report.folds

    def told(*folds):
        console = Console(file=io.StringIO(), width=200)
        plan.show(dataclasses.replace(report, folds=folds), console)
        return int(re.search(r"(\d+) % less time", console.file.getvalue())[1])

    first = dataclasses.replace(fold, seconds=(4e-3, 2e-3))
    other = dataclasses.replace(fold, seconds=(2e-3, 1e-3), round=2, removed=(records.RegionNode("other", "Conv"),))
    again = dataclasses.replace(other, removed=(records.RegionNode(first.emitted[0].name, "Conv"),))
    assert told(first) == 50
    assert told(first, other) == 50
    assert told(first, again) == 75
