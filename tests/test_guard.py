"""Windows larger than their image: ONNX's inference makes a negative size of them, and its Slice ends the process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.net import Net
from onnxrep.shapes.inference import inferred
from tests.test_cli import call


def integers(net, *values):
    """A list of whole numbers that the model holds."""
    net.initializers.append(onnx.numpy_helper.from_array(np.array(values, np.int64), f"list_{len(net.initializers)}"))
    return net.initializers[-1].name


def model(size, op="Conv", before=lambda net, x: x, **attributes):
    """A window on an image of ``size`` and a Slice of what it makes; made at a size that fits, then cut down."""
    net = Net(0, opset=17)
    x = before(net, net.input((1, 3, 64, 64)))
    weights = [net.constant(net.draw(3, 3, 5, 5))] if op.startswith("Conv") else []
    made = net.op(op, x, *weights, **attributes)
    graph = net.model(net.op("Slice", made, *(integers(net, n) for n in (0, 1, 2))))
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    for dim in list(graph.graph.input[0].type.tensor_type.shape.dim)[2:]:
        dim.dim_value = size
    return graph


def shrunk(net, x):
    """Three windows in a row, which make an image smaller by 6."""
    for _ in range(3):
        x = net.op("MaxPool", x, kernel_shape=[3, 3])
    return x


def emptied(net, x):
    """Two windows, the second of which fits the first's result at no size up to 8."""
    return net.op("MaxPool", net.op("MaxPool", x, kernel_shape=[8, 8]), kernel_shape=[2, 2])


def cut(net, x):
    """A Pad that takes off 10 pixels."""
    return net.op("Pad", x, integers(net, 0, 0, -5, 0, 0, 0, -5, 0))


def computed(net, x):
    """A Pad whose margins the graph computes, as exports do: 100 pixels less the image's size remain."""
    sizes = net.op("Slice", net.op("Shape", x), *(integers(net, n) for n in (2, 4, 0)))
    ends = net.op("Sub", integers(net, 100, 100), net.op("Add", sizes, sizes))
    return net.op("Pad", x, net.op("Concat", integers(net, 0, 0, 0, 0, 0, 0), ends, axis=0))


SMALL = {
    "Conv": model(2),
    "a pool": model(2, "MaxPool", kernel_shape=[5, 5]),
    "dilated": model(6, dilations=[2, 2]),
    "VALID": model(2, auto_pad="VALID", pads=[0, 0, 0, 0]),
    "an empty image": model(8, before=emptied),
    "behind others": model(8, before=shrunk),
    "ConvTranspose": model(1, "ConvTranspose", pads=[4, 4, 4, 4]),
    "a Pad that is computed": model(200, "Relu", before=computed),
    "Pad": model(8, before=cut),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_model_ends_the_process(tmp_path, name):
    onnx.save(SMALL[name], tmp_path / "m.onnx")
    command = [
        sys.executable,
        "-m",
        "onnxrep",
        "optimize",
        "--no-verify",
        tmp_path / "m.onnx",
        "-o",
        tmp_path / "o.onnx",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "internal error" not in done.stderr
    assert "Traceback" not in done.stderr


def test_optimize_says_what_became_of_it(tmp_path, capsys):
    onnx.save(SMALL["Conv"], tmp_path / "m.onnx")
    code, out, err = call(capsys, "optimize", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert (code, err) == (0, "")
    assert "written unchanged" in out


@pytest.mark.parametrize(
    ("graph", "shape"),
    [
        (model(6), [1, 3, 1, 2]),
        (model(14, before=shrunk), [1, 3, 1, 4]),
        (model(8, "ConvTranspose", pads=[4, 4, 4, 4]), [1, 3, 1, 4]),
    ],
)
def test_sizes_are_known_where_the_window_fits(graph, shape):
    (output,) = inferred(graph).graph.output
    assert [d.dim_value for d in output.type.tensor_type.shape.dim] == shape


def test_dynamic_sizes_hide_nothing():
    graph = model(6)
    for dim in list(graph.graph.input[0].type.tensor_type.shape.dim)[2:]:
        dim.dim_param = "n"
    (output,) = inferred(graph).graph.output
    assert len(output.type.tensor_type.shape.dim) == 4
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT


def test_pads_that_the_graph_computes_are_not_hidden():
    """As an export of a SAME convolution writes them: from the size of the image, behind a Slice."""
    net = Net(0, opset=17)
    x = net.input((1, 3, 9, 9))
    shape = net.op("Shape", x, channels=1)
    sizes = net.op("Slice", shape, *(integers(net, n) for n in (2, 4, 0)), channels=1)
    margins = net.op("Sub", sizes, integers(net, 8, 8), channels=1)
    pads = net.op("Concat", integers(net, 0, 0, 0, 0), integers(net, 0, 0), margins, axis=0, channels=1)
    y = net.op("Conv", net.op("Pad", x, pads, channels=3), net.constant(net.draw(3, 3, 5, 5)), channels=3)
    graph = net.model(y)
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    (output,) = inferred(graph).graph.output
    assert len(output.type.tensor_type.shape.dim) == 4
