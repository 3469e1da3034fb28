"""What the record of a fold says of the nodes that went in and came out, and of the taps of a merged kernel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import numpy_helper

from models import skeletons
from models.net import Net
from onnxrep import inspect, structure
from onnxrep.batch import journal
from tests.tools import folded, node


def merged(build, shape=(1, 4, 8, 8)):
    net = Net(3)
    x = net.input(shape)
    result, folds, _ = folded(net.model(net.relu(build(net, x))))
    (fold,) = folds
    return result, fold


def test_the_nodes_that_went_in_are_joined_by_their_values():
    _, fold = merged(lambda n, x: n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1)))
    made = {name for part in fold.removed for name in part.outputs}
    read = {name for part in fold.removed for name in part.inputs}
    assert fold.output in made
    assert read - made == set(fold.sources)
    assert made - read == {fold.output}
    three, one = (part for part in fold.removed if part.op == "Conv")
    assert three.attributes["kernel_shape"] == [3, 3]
    assert three.attributes["pads"] == [1, 1, 1, 1]
    assert "strides" not in three.attributes  # as they are where nothing is said
    assert one.constants[0] == (4, 4, 1, 1)
    norm = next(part for part in fold.removed if part.op == "BatchNormalization")
    assert norm.constants == ((4,),) * 4


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_taps_are_the_root_mean_square_of_the_new_weight(op):
    def build(n, x):
        if op == "Conv":
            return n.add(n.conv(x, 4, 3), n.conv(x, 4, (1, 3)))
        weight = n.constant(n.draw(4, 6, 2, 3))
        return n.bn(n.op("ConvTranspose", x, weight, channels=6, kernel_shape=[2, 3]))

    result, fold = merged(build)
    (new,) = fold.emitted
    weight = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}[node(result, op).input[1]]
    rms = np.sqrt(np.mean(np.square(weight.astype(np.float64)), axis=(0, 1)))
    assert new.kernel_shape == rms.shape
    assert np.allclose(np.reshape(new.taps, rms.shape), rms, rtol=1e-3)
    assert new.constants[0] == weight.shape
    assert new.inputs == fold.sources
    assert new.outputs == (fold.output,)


def test_a_kernel_that_nobody_could_see_is_not_recorded(monkeypatch):
    monkeypatch.setattr(structure, "_MOST_TAPS", 8)
    _, fold = merged(lambda n, x: n.add(n.conv(x, 4, 3), n.conv(x, 4, 1)))
    assert fold.emitted[0].kernel_shape == (3, 3)
    assert fold.emitted[0].taps == ()


@pytest.mark.parametrize("name", ["yolov9t/train_legacy_bn", "mobileone_s0/train_dynamic"])
def test_a_record_of_many_folds_stays_small(name):
    assert len(journal.line({"report": inspect(skeletons.fill(name)).to_dict()})) < 350_000


def test_names_are_printable_everywhere_in_a_record():
    net = Net(3)
    x = net.input((1, 4, 8, 8))
    model = net.model(net.relu(net.add(net.conv(x, 4, 3), net.conv(x, 4, 1))))
    for part in model.graph.node:
        part.name = "\x1b[31m" + part.name
        for values in (part.input, part.output):
            values[:] = [v if v in {t.name for t in model.graph.initializer} else f"\u202e{v}" for v in values]
    model.graph.input[0].name = "\u202e" + model.graph.input[0].name
    model.graph.output[0].name = "\u202e" + model.graph.output[0].name
    text = json.dumps(inspect(model).to_dict()["folds"], ensure_ascii=False)
    assert "u202e" in text
    assert text.isprintable()
