"""Sizes that are followed through the graph: right, or not known."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from google.protobuf.message import DecodeError

from onnxrep.constants import Constants
from onnxrep.graph import Model
from onnxrep.lift import LIFTED
from onnxrep.shapes import FOLLOWED, Shapes, Size, counted, infer, inferred
from tests.tools import run


def shapes_of(body, inputs="float[n, 4, h, w] x"):
    """Follow the sizes through some nodes, without the help of ONNX's inference."""
    text = f'<ir_version: 8, opset_import: ["" : 13]> g ({inputs}) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    scope = Model(model, None, LIFTED | FOLLOWED).scopes[0]
    declared = onnx.GraphProto(input=model.graph.input)
    return Shapes(scope, Constants(scope, None, None, {}), declared, None)


def test_arithmetic_with_fractions_is_not_followed():
    body = """
        s = Shape(x)  f = Cast<to=1>(s)  half = Constant<value_floats=[0.5]>()
        m = Mul(f, half)  i = Cast<to=7>(m)  y = Reshape(x, i)
    """
    shapes = shapes_of(body)
    assert shapes.vector("s") is not None
    assert shapes.vector("half") is None
    assert shapes.vector("i") is None
    assert shapes.of("y") is None


def test_arithmetic_with_integers_is_followed():
    body = """
        s = Shape(x)  one = Constant<value_ints=[1]>()  c = Gather(s, one)  two = Constant<value_ints=[2]>()
        half = Div(c, two)  minus = Constant<value_ints=[-1]>()  to = Concat<axis=0>(minus, half)  y = Reshape(x, to)
    """
    shape = shapes_of(body).of("y")
    assert shape is not None
    assert isinstance(shape[0], Size)
    assert shape[1] == 2


@pytest.mark.parametrize(
    "node",
    [
        "a = Constant<value_ints=[0, 0]>()  y = Unsqueeze(x, a)",
        "a = Constant<value_ints=[9]>()  y = Unsqueeze(x, a)",
        "a = Constant<value_ints=[9]>()  y = Squeeze(x, a)",
        "a = Constant<value_ints=[-5]>()  y = Squeeze(x, a)",
        "y = ReduceMean<axes=[7]>(x)",
        "y = Concat<axis=8>(x, x)",
        "y, z = Split<axis=6>(x)",
        "y = Flatten<axis=7>(x)",
        "a = Constant<value_ints=[0]>() e = Constant<value_ints=[1]>() k = Constant<value_ints=[5]>() "
        "y = Slice(x, a, e, k)",
    ],
)
def test_axes_that_do_not_exist_give_no_shape(node):
    assert shapes_of(node).of("y") is None


def test_counted_axes():
    assert counted([-1, 0], 3) == [2, 0]
    assert counted([], 3) == []
    for wrong in ([3], [-4], [0, -3], [None], [1.0]):
        assert counted(wrong, 3) is None


@pytest.mark.parametrize("opset", [13, 22])
@pytest.mark.parametrize(
    ("length", "attributes", "size"),
    [
        (10, "kernel_shape=[1], strides=[2], ceil_mode=1", 5),
        (9, "kernel_shape=[1], strides=[2], ceil_mode=1", 5),
        (10, "kernel_shape=[3], strides=[2], ceil_mode=1", 5),
        (10, "kernel_shape=[3], strides=[2], pads=[1, 1], ceil_mode=1", 6),
        (4, "kernel_shape=[2], strides=[3], pads=[1, 1], ceil_mode=1", 2),
    ],
)
def test_a_pool_that_rounds_up_has_the_size_that_the_runtime_gives_it(opset, length, attributes, size):
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[1, 1, {length}] x) => (float z) {{ y = MaxPool<{attributes}>(x)  z = Relu(y) }}"""
    model = onnx.parser.parse_model(text)
    assert run(model, {"x": np.ones((1, 1, length), np.float32)})[0].shape == (1, 1, size)
    view = Model(model, None, LIFTED | FOLLOWED)
    graph = infer(view)[id(view.scopes[0])]
    shapes = Shapes(view.scopes[0], Constants(view.scopes[0], graph, None, {}), graph, None)
    assert shapes.of("z") == (1, 1, size)


def test_where_a_resize_goes_is_followed():
    inputs = "float[1, 4, 6, 5] x"
    scaled = """
        none = Constant<value_floats=[0.0]>()  by = Constant<value_floats=[1.0, 1.0, 2.0, 3.0]>()
        y = Resize<mode="nearest">(x, none, by)
    """
    assert shapes_of(scaled, inputs).of("y") == (1, 4, 12, 15)
    assert shapes_of(scaled.replace("2.0, 3.0", "1.5, 3.0"), inputs).of("y") is None
    dynamic = shapes_of(scaled).of("y")
    assert dynamic is not None
    assert [d.number({("x", 2): 6, ("x", 3): 5}) for d in dynamic[2:] if isinstance(d, Size)] == [12, 15]
    sized = """
        none = Constant<value_floats=[0.0]>()  to = Constant<value_ints=[1, 4, 7, 9]>()
        y = Resize<mode="nearest">(x, none, none, to)
    """
    assert shapes_of(sized, inputs).of("y") == (1, 4, 7, 9)


def test_graphs_nested_deeper_than_a_message_may_be_have_no_sizes():
    """Protobuf reads a hundred levels; a model in memory may have more."""
    model = onnx.ModelProto(ir_version=10)
    model.opset_import.add(version=17)
    graph = model.graph
    for depth in range(33):
        node = graph.node.add(op_type="If", input=["c"], output=[f"y{depth}"])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    graph.node.add(op_type="Relu", input=["x"], output=["y"])
    with pytest.raises(DecodeError):
        onnx.ModelProto.FromString(model.SerializeToString())
    assert not inferred(model).graph.value_info
