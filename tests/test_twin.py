"""The float64 twin: every lowering against ONNX's reference evaluator, and what it cannot express."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxrep import optimize, verify
from onnxrep.proof.errors import NoTwin
from onnxrep.proof.lowering import LOWERINGS, erfc_coefficients
from onnxrep.proof.memory import needed
from onnxrep.proof.reference import session_of_twin
from onnxrep.proof.scopes import distinct
from onnxrep.proof.sessions import Runtime
from onnxrep.proof.twin import Twin

RNG = np.random.default_rng(0)


def single(op, inputs, opset=17, constants=(), outputs=1, **attributes):
    """A model of one float32 node; inputs whose index is in ``constants`` are initializers."""
    names = [f"i{k}" for k in range(len(inputs))]
    node = helper.make_node(op, names, [f"o{k}" for k in range(outputs)], **attributes)
    kinds = [helper.np_dtype_to_tensor_dtype(a.dtype) for a in inputs]
    infos = [
        helper.make_tensor_value_info(n, k, a.shape)
        for i, (n, k, a) in enumerate(zip(names, kinds, inputs, strict=True))
        if i not in constants
    ]
    tensors = [numpy_helper.from_array(inputs[i], names[i]) for i in constants]
    results = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in node.output]
    graph = helper.make_graph([node], "g", infos, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def double(model):
    """The same model with every float in double, for the reference evaluator."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return wide


def feeds(model, inputs):
    given = {v.name for v in model.graph.input}
    wide = {f"i{k}": a.astype(np.float64) if a.dtype == np.float32 else a for k, a in enumerate(inputs)}
    return {k: v for k, v in wide.items() if k in given}


def assert_exact(model, inputs, tolerance=1e-12):
    twin = Twin(model, None)
    assert not twin.islands
    session = Runtime().session(twin.model, "off", reuse_memory=False)
    got = list(session.run(feeds(model, inputs)).values())
    expected = ReferenceEvaluator(double(model)).run(None, feeds(model, inputs))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == np.float64
        assert a.shape == b.shape
        assert np.allclose(a, b, rtol=tolerance, atol=tolerance)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


CONVOLUTIONS = [
    ((1, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 4, 9, 8), (6, 4, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1], "dilations": [1, 2]}),
    ((2, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "strides": [2, 3]}),
    ((2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    ((2, 4, 9, 8), (8, 1, 3, 3), {"group": 4}),
    ((2, 3, 9, 8), (3, 1, 3, 3), {"group": 3, "pads": [0, 1, 2, 0], "strides": [2, 3], "dilations": [2, 1]}),
    ((1, 3, 7, 8), (3, 1, 4, 1), {"group": 3, "pads": [2, 0, 1, 0]}),
    ((1, 3, 7, 8), (3, 1, 1, 4), {"group": 3, "strides": [1, 2]}),
    ((1, 3, 7, 8), (3, 1, 2, 1), {"group": 3, "strides": [2, 1]}),
    ((2, 3, 20, 23), (3, 1, 9, 9), {"group": 3, "pads": [4, 4, 4, 4], "strides": [2, 1]}),
    ((1, 3, 40, 37), (3, 1, 9, 7), {"group": 3, "pads": [8, 6, 8, 6], "dilations": [2, 2]}),
    ((1, 64, 6, 7), (8, 64, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 80, 6, 7), (8, 40, 3, 1), {"group": 2}),
    ((2, 4, 9), (6, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2]}),
    ((2, 4, 9), (6, 4, 4), {"auto_pad": "SAME_LOWER"}),
    ((1, 4, 5, 6, 4), (6, 4, 3, 2, 2), {"pads": [1, 0, 1, 1, 1, 0]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_conv(x, w, attributes, bias, constant):
    inputs = [floats(*x), floats(*w)] + ([floats(w[0])] if bias else [])
    model = single("Conv", inputs, constants=range(1, len(inputs)) if constant else (), **attributes)
    assert_exact(model, inputs)


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 22])
def test_conv_in_every_form_of_pad_and_slice(opset):
    inputs = [floats(1, 3, 7, 8), floats(4, 3, 3, 3)]
    model = single("Conv", inputs, opset, (1,), strides=[2, 2], pads=[1, 1, 1, 1])
    assert_exact(model, inputs)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 4, 5, 6), (4, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((2, 4, 5, 6), (4, 3, 3, 2), {"pads": [0, 1, 1, 0], "strides": [2, 3], "output_padding": [1, 2]}),
        ((2, 4, 5, 6), (4, 2, 3, 3), {"group": 2, "dilations": [2, 1]}),
        ((1, 4, 5), (4, 1, 4), {"group": 4, "strides": [2], "pads": [1, 1]}),
        ((1, 2, 3, 3), (2, 2, 3, 3), {"pads": [2, 2, 2, 2]}),
    ],
)
def test_conv_transpose(x, w, attributes, constant):
    inputs = [floats(*x), floats(*w)]
    model = single("ConvTranspose", inputs, constants=(1,) if constant else (), **attributes)
    twin = Runtime().session(Twin(model, None).model, "off").run(feeds(model, inputs))["o0"]
    given = {"i0": inputs[0]} if constant else {"i0": inputs[0], "i1": inputs[1]}
    original = Runtime().session(model, "off").run(given)["o0"]
    assert twin.shape == original.shape
    assert np.allclose(twin, original, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 0, 2]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    ],
)
def test_average_pool(attributes, include):
    inputs = [floats(2, 3, 8, 6)]
    model = single("AveragePool", inputs, count_include_pad=include, **attributes)
    original = Runtime().session(model, "off").run({"i0": inputs[0]})["o0"]
    twin = Twin(model, None)
    assert not twin.islands
    found = Runtime().session(twin.model, "off").run(feeds(model, inputs))["o0"]
    assert found.shape == original.shape
    assert np.allclose(found, original, atol=1e-6)


ELEMENTWISE = {
    "Celu": {"alpha": 0.7},
    "Elu": {"alpha": 0.7},
    "Erf": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "HardSwish": {},
    "LeakyRelu": {"alpha": 0.2},
    "Mish": {},
    "Selu": {},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "ThresholdedRelu": {"alpha": 0.5},
}


@pytest.mark.parametrize("op", ELEMENTWISE)
def test_activations(op):
    inputs = [(RNG.standard_normal((3, 40)) * 4).astype(np.float32)]
    assert_exact(single(op, inputs, 18, **ELEMENTWISE[op]), inputs, 1e-7 if op in ("Selu", "Celu") else 1e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    inputs = [floats(3, 40) * 3]
    assert_exact(single("Gelu", inputs, 20, approximate=approximate), inputs, 1e-6)


def test_every_other_lowering():
    image = floats(2, 6, 5, 4)
    for op, inputs, attributes in (
        ("GlobalAveragePool", [image], {}),
        ("GlobalMaxPool", [image], {}),
        ("InstanceNormalization", [image, floats(6), floats(6)], {"epsilon": 1e-3}),
        ("PRelu", [image, floats(6, 1, 1)], {}),
    ):
        assert_exact(single(op, inputs, **attributes), inputs, 1e-7)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(size):
    """Against ONNX Runtime: the reference evaluator drops a channel at the far end."""
    inputs = [floats(2, 6, 5, 4)]
    model = single("LRN", inputs, size=size, alpha=0.7, beta=0.6, bias=1.5)
    twin = Runtime().session(Twin(model, None).model, "off").run(feeds(model, inputs))["o0"]
    assert np.allclose(twin, Runtime().session(model, "off").run({"i0": inputs[0]})["o0"], rtol=1e-6)


def test_no_lowering_is_untested():
    covered = {"Conv", "ConvTranspose", "AveragePool", "Gelu", "GlobalAveragePool", "GlobalMaxPool"}
    covered |= {"InstanceNormalization", "LRN", "PRelu", *ELEMENTWISE}
    assert covered == LOWERINGS.keys()


def test_erf_is_as_good_as_the_libms():
    points = np.concatenate([np.linspace(-7, 7, 4001), RNG.standard_normal(1000) * 1e-3, [0.0, 1e-300, 30, -30]])
    model = single("Erf", [points.astype(np.float32)])
    session = Runtime().session(Twin(model, None).model, "off")
    exact = points.astype(np.float32).astype(np.float64)
    found = session.run({"i0": exact})["o0"]
    assert np.max(np.abs(found - [math.erf(v) for v in exact])) < 4e-15
    assert len(erfc_coefficients()) == 25


def test_the_sigmoid_of_huge_numbers():
    points = np.array([-np.inf, -1e4, -800, -40, 0, 40, 800, np.inf, np.nan])
    session = Runtime().session(Twin(single("Sigmoid", [points.astype(np.float32)]), None).model, "off")
    found = session.run({"i0": points})["o0"]
    assert np.array_equal(found[[0, 1, 2, 4, 6, 7]], [0, 0, 0, 0.5, 1, 1])
    assert np.isclose(found[3], math.exp(-40), rtol=1e-14, atol=0)
    assert np.isnan(found[8])


def test_a_sigmoid_of_an_opset_without_broadcasting():
    inputs = [floats(3, 40)]
    session = Runtime().session(Twin(single("Sigmoid", inputs, 6), None).model, "off")
    assert np.allclose(session.run(feeds(single("Sigmoid", inputs), inputs))["o0"], 1 / (1 + np.exp(-inputs[0])))


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_are_inputs_too_are_weights(ir_version):
    inputs = [floats(1, 4, 6, 7), floats(6, 4, 3, 3)]
    model = single("Conv", inputs, 9, constants=(1,))
    model.ir_version = ir_version
    model.graph.input.append(helper.make_tensor_value_info("i1", TensorProto.FLOAT, inputs[1].shape))
    twin = Twin(model, None)
    assert [v.name for v in twin.model.graph.input] == (["i0"] if ir_version == 3 else ["i0", "i1"])
    assert list(twin.defaults) == ([] if ir_version == 3 else ["i1"])
    session, _ = session_of_twin(model, None, Runtime(), None)
    original = Runtime().session(model, "off").run({"i0": inputs[0]})["o0"]
    assert np.allclose(session.run({"i0": inputs[0].astype(np.float64)})["o0"], original, atol=1e-5)
    assert optimize(model).status == "unchanged"
    verification = verify(model, model)
    assert verification.verdict == "verified"
    assert any(name.startswith("overridden") for name in verification.inputs) == (ir_version == 8)


def test_a_weight_that_a_caller_overrides_must_count():
    """Equal at the defaults, and not otherwise."""
    inputs = [floats(1, 4, 6, 7), floats(6, 4, 3, 3), np.zeros(6, np.float32)]
    model = single("Conv", inputs, constants=(1, 2))
    for name, values in (("i1", inputs[1]), ("i2", inputs[2])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape))
    assert verify(model, model).verdict == "verified"
    for name in ("i1", "i2"):
        deaf = onnx.ModelProto()
        deaf.CopyFrom(model)
        copy = deaf.graph.initializer.add()
        copy.CopyFrom(next(t for t in deaf.graph.initializer if t.name == name))
        copy.name = "own"
        deaf.graph.node[0].input[int(name[1])] = "own"
        verification = verify(model, deaf)
        assert verification.verdict == "rejected"
        assert "overridden" in verification.reason


def branches(first, second):
    """An If whose branches call their weights by the same name."""
    bodies = []
    for weight in (first, second):
        node = helper.make_node("MatMul", ["x", "w"], ["z"])
        result = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([node], "body", [], [result], [numpy_helper.from_array(weight, "w")]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    read = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, len(first)]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph([node], "g", read, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("size", [4, 128])
def test_weights_of_one_name_in_both_branches(size):
    weights = floats(size, size), floats(size, size)
    assert (size == 128) == (weights[0].size * 8 >= 1 << 16)
    model = branches(*weights)
    session, _ = session_of_twin(model, None, Runtime(), None)
    x = RNG.standard_normal((1, size))
    for chosen, weight in zip((True, False), weights, strict=True):
        found = session.run({"x": x, "c": np.array(chosen)})["y"]
        assert np.allclose(found, x @ weight.astype(np.float64), rtol=1e-12, atol=1e-12)


def switched(factor, name="w"):
    """A convolution whose weight is an initializer in one branch of an If, and calculated in the other."""
    info = helper.make_tensor_value_info
    rng = np.random.default_rng(1)
    stored, given = (rng.standard_normal((3, 3, 3, 3)).astype(np.float32) for _ in range(2))
    result = [info("z", TensorProto.FLOAT, None)]
    conv = helper.make_node("Conv", ["x", name], ["z"], pads=[1, 1, 1, 1])
    other = helper.make_graph([conv], "else", [], result, [numpy_helper.from_array(stored, name)])
    scaled = helper.make_node("Mul", ["v", "k"], ["w"])
    again = helper.make_node("Conv", ["x", "w"], ["z"], pads=[1, 1, 1, 1])
    then = helper.make_graph([scaled, again], "then", [], result, [numpy_helper.from_array(np.float32(factor), "k")])
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "limit"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    tensors = [numpy_helper.from_array(np.float32(0.3), "limit"), numpy_helper.from_array(given, "v")]
    read, made = [info("x", TensorProto.FLOAT, [1, 3, 8, 8])], [info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", read, made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", ["w", "own"])
def test_a_name_that_two_branches_give_to_other_things(name):
    assert verify(switched(2, name), switched(2, name)).verdict == "verified"
    assert verify(switched(2, name), switched(7, name)).verdict == "rejected"


def test_names_are_made_distinct_inside_bodies_alone():
    model = switched(2)
    before = model.SerializeToString(deterministic=True)
    found = distinct(model)
    assert model.SerializeToString(deterministic=True) == before
    assert distinct(found) is found
    bodies = [a.g for a in found.graph.node[2].attribute]
    defined = [n for g in (found.graph, *bodies) for node in g.node for n in node.output]
    defined += [t.name for g in (found.graph, *bodies) for t in g.initializer]
    assert len(set(defined)) == len(defined)
    assert {v.name for v in (*found.graph.input, *found.graph.output)} == {"x", "y"}
    Runtime().session(found, "off")


def test_a_body_that_returns_its_own_weight():
    info = helper.make_tensor_value_info
    weight = floats(2, 3)
    given = helper.make_graph(
        [], "then", [], [info("w", TensorProto.FLOAT, [2, 3])], [numpy_helper.from_array(weight, "w")]
    )
    doubled = helper.make_node("Add", ["x", "x"], ["z"])
    other = helper.make_graph([doubled], "else", [], [info("z", TensorProto.FLOAT, [2, 3])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=given, else_branch=other)
    read = [info("x", TensorProto.FLOAT, [2, 3]), info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph([node], "g", read, [info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = Runtime().session(Twin(model, None).model, "off")
    assert np.array_equal(session.run({"x": np.ones((2, 3)), "c": np.array(True)})["y"], weight)


def test_the_memory_of_a_convolution_without_channels():
    inputs = [floats(1, 3, 8), floats(0, 3, 1)]
    assert needed(single("Conv", inputs, constants=(1,)), {"i0": (1, 3, 8)}) >= 0


WIDE = [
    ((1, 31), (64, 64), {"pads": [0, 15, 0, 15]}),
    ((31, 1), (64, 64), {"pads": [15, 0, 15, 0]}),
    ((3, 3), (64, 64), {"pads": [1, 1, 1, 1]}),
    ((3, 3), (64, 64), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((7, 7), (64, 64), {"auto_pad": "SAME_UPPER"}),
    ((7, 7), (7, 512), {}),
    ((3, 3), (64, 64), {"pads": [1, 1, 1, 1], "strides": [4, 4]}),
]


@pytest.mark.parametrize(("kernel", "image", "attributes"), WIDE)
def test_the_memory_of_a_convolution_is_about_what_was_estimated(kernel, image, attributes):
    """All that is alive at one time in the twin; ONNX Runtime's arena holds up to twice that, as measured."""
    inputs = [floats(1, 8, *image), floats(8, 1, *kernel)]
    model = single("Conv", inputs, constants=(1,), group=8, **attributes)
    inferred = onnx.shape_inference.infer_shapes(Twin(model, None).model, data_prop=True).graph
    sizes = {
        v.name: 8 * math.prod(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    last = {name: place for place, node in enumerate(inferred.node) for name in node.input}
    alive = peak = sizes["i0"]
    for place, node in enumerate(inferred.node):
        alive += sizes[node.output[0]]
        peak = max(peak, alive)
        alive -= sum(sizes.get(name, 0) for name in set(node.input) if last[name] == place)
    assert 0.95 < needed(model, {"i0": inputs[0].shape}) / peak < 2.0


def test_ops_without_a_double_kernel_become_islands():
    inputs = [floats(1, 2, 4, 4)]
    node = helper.make_node("Resize", ["i0", "", "scales"], ["up"], mode="nearest")
    relu = helper.make_node("Relu", ["up"], ["o0"])
    graph = helper.make_graph(
        [node, relu],
        "g",
        [helper.make_tensor_value_info("i0", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("o0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    twin = Twin(model, None)
    assert twin.islands == ["Resize"]
    found = Runtime().session(twin.model, "off").run(feeds(model, inputs))["o0"]
    assert np.array_equal(found, np.maximum(inputs[0].repeat(2, 2).repeat(2, 3), 0))


def test_transposed_convolutions_that_are_not_lowered_are_islands():
    inputs = [floats(1, 2, 4, 4), floats(2, 2, 3, 3)]
    model = single("ConvTranspose", inputs, constants=(1,), output_shape=[9, 9], strides=[2, 2])
    assert Twin(model, None).islands == ["ConvTranspose"]


def test_half_precision_weights_are_exact_in_double():
    inputs = [floats(1, 3, 5, 5).astype(np.float16), floats(2, 3, 3, 3).astype(np.float16)]
    model = single("Conv", inputs, constants=(1,))
    twin = Runtime().session(Twin(model, None).model, "off").run({"i0": inputs[0].astype(np.float64)})["o0"]
    wide = single("Conv", [a.astype(np.float32) for a in inputs], constants=(1,))
    expected = ReferenceEvaluator(double(wide)).run(None, {"i0": inputs[0].astype(np.float64)})[0]
    assert np.allclose(twin, expected, rtol=1e-13)


def test_bodies_and_local_functions():
    body = helper.make_graph(
        [helper.make_node("Softplus", ["x"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("HardSwish", ["x"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other),
        helper.make_node("Scale", ["y"], ["z"], domain="local"),
    ]
    function = helper.make_function(
        "local", "Scale", ["a"], ["b"], [helper.make_node("Mul", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("z", 1, [2, 3])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    session = Runtime().session(Twin(model, None).model, "off")
    x = np.array([[1, 2, 3], [-1, -2, 0.5]])
    assert np.allclose(session.run({"x": x})["z"], np.log1p(np.exp(x)) ** 2, rtol=1e-13)
    assert np.allclose(session.run({"x": -x})["z"], (-x * np.clip(-x / 6 + 0.5, 0, 1)) ** 2, rtol=1e-13)


def test_bodies_with_weights_of_their_own():
    weights = {name: floats(4, 4, k, k) for name, k in (("narrow", 1), ("wide", 3))}
    bodies = {}
    for branch, (name, values) in zip(("then_branch", "else_branch"), weights.items(), strict=True):
        pads = [values.shape[-1] // 2] * 4
        bodies[branch] = helper.make_graph(
            [helper.make_node("Conv", ["x", name], [f"{name}_y"], pads=pads)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, None)],
            [numpy_helper.from_array(values.astype(np.float32), name)],
        )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **bodies)],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4, 5, 5]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [1, 4, 5, 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session, plain = Runtime().session(Twin(model, None).model, "off"), Runtime().session(model, "off")
    x = floats(1, 4, 5, 5)
    for choice in (np.array(True), np.array(False)):
        expected = plain.run({"x": x.astype(np.float32), "c": choice})["y"]
        assert np.allclose(session.run({"x": x.astype(np.float64), "c": choice})["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (single("RandomNormalLike", [floats(2, 2)]), "deterministic"),
    ],
)
def test_models_without_a_twin(model, words):
    with pytest.raises(NoTwin, match=words):
        Twin(model, None)


def test_same_padding_of_an_unknown_size_needs_the_size():
    inputs = [floats(1, 2, 7, 7), floats(2, 2, 3, 3)]
    model = single("Conv", inputs, constants=(1,), auto_pad="SAME_UPPER", strides=[2, 2])
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.ClearField("dim_value")
    with pytest.raises(NoTwin, match="SAME"):
        Twin(model, None)
    twin = Twin(model, None, shapes={"i0": (1, 2, 7, 7)})
    found = Runtime().session(twin.model, "off").run({"i0": inputs[0].astype(np.float64)})["o0"]
    assert np.allclose(found, Runtime().session(model, "off").run({"i0": inputs[0]})["o0"], atol=1e-5)
