"""Models that were made to do harm: sizes that no machine has, names that are none, code from outside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.blocks import seed_blocks
from models.net import Net
from onnxrep import Options, cli, constants, optimize, pipeline
from onnxrep.errors import InvalidModel, UsageError
from onnxrep.proof.sessions import Runtime

BLOCK = next(iter(seed_blocks()))


class Bombs(Net):
    """Nets of one block that adds a number taken from a constant, which is meant to be too large."""

    def integers(self, *values: int) -> str:
        return self.constant(list(values), dtype=np.int64)

    def one(self, value: str, rank: int = 1) -> str:
        """The first element of a value."""
        axes = range(rank)
        return self.op("Slice", value, self.integers(*(0 for _ in axes)), self.integers(*(1 for _ in axes)))

    def shaped(self, *sizes: int) -> str:
        return self.op("ConstantOfShape", self.integers(*sizes))

    def doubled(self, op: str) -> str:
        """A constant of four elements, doubled sixty times."""
        value = self.constant(np.ones(4))
        for _ in range(60):
            if op == "Concat":
                value = self.op("Concat", value, value, axis=0)
            elif op == "Tile":
                value = self.op("Tile", value, self.integers(2))
            else:
                wide = self.op("Expand", self.op("Unsqueeze", value, self.integers(0)), self.integers(2, 1))
                value = self.op("Reshape", wide, self.integers(-1))
        return value

    def finish(self, extra: str) -> onnx.ModelProto:
        x = self.input((1, 4, 6, 6))
        y = self.op("Add", self.relu(self.add(self.conv_bn(x, 4, 3), self.conv_bn(x, 4, 1))), extra)
        outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "bomb", self.inputs, outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def bomb(kind: str) -> onnx.ModelProto:
    n = Bombs(1)
    if kind in ("Concat", "Tile", "Expand"):
        return n.finish(n.one(n.doubled(kind)))
    if kind == "ConstantOfShape":
        return n.finish(n.op("ReduceSum", n.shaped(1 << 20, 1 << 20), n.integers(0, 1), keepdims=0))
    if kind == "EyeLike":
        return n.finish(n.op("ReduceSum", n.op("EyeLike", n.shaped(1 << 20, 1 << 20)), n.integers(0, 1), keepdims=0))
    if kind == "Range":
        numbers = n.op("Range", *(n.constant(v, dtype=np.int64) for v in (0, 1 << 40, 1)))
        return n.finish(n.op("Cast", n.one(numbers), to=TensorProto.FLOAT))
    if kind == "Pad":
        return n.finish(n.one(n.op("Pad", n.constant(np.ones((1, 1))), n.integers(0, 0, 1 << 20, 1 << 20)), 2))
    if kind == "OneHot":
        hot = n.op("OneHot", n.integers(*range(100)), n.constant(1 << 40, dtype=np.int64), n.constant([0, 1]))
        return n.finish(n.one(hot, 2))
    if kind == "Conv":
        image = n.shaped(1, 64, 512, 512)
        n.axes[image], n.channels[image] = 2, 64
        return n.finish(n.one(n.conv(image, 64, 7), 4))
    value = n.op("Cast", n.shaped(4000, 4000), to=TensorProto.INT64)
    product = n.op("MatMul", value, value)  # of integers, for which numpy has no fast product
    return n.finish(n.op("Cast", n.one(product, 2), to=TensorProto.FLOAT))


BOMBED = """
import resource, sys
from onnxrep import pipeline
resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)
report = pipeline.inspect(sys.argv[1])
status = dict(line.split(":") for line in open("/proc/self/status"))
print(len(report.folds), status["VmHWM"].removesuffix("kB\\n"))
"""
"""The peak that getrusage tells is at least that of the process which started this one."""


@pytest.mark.skipif(sys.platform != "linux", reason="units of memory, limits of a process")
@pytest.mark.parametrize(
    "kind", ["ConstantOfShape", "Concat", "Tile", "Expand", "EyeLike", "Range", "Pad", "OneHot", "Conv", "MatMul"]
)
def test_constants_that_no_machine_can_hold(tmp_path, kind):
    """What is too large to be computed is not constant; the rest of the model folds as ever."""
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bomb(kind).SerializeToString())
    command = [sys.executable, "-c", BOMBED, path]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    folds, peak = map(int, found.stdout.split())
    assert folds == 1
    assert peak < 1 << 20, "kilobytes"


def test_many_constants_that_are_each_small_enough(monkeypatch):
    monkeypatch.setattr(constants, "TOTAL_LIMIT", 1 << 20)
    n = Bombs(1)
    values = [n.one(n.op("Tile", n.constant([1.0]), n.integers(1 << 16))) for _ in range(50)]
    total = n.op("Sum", *values)
    made = []
    real = constants.evaluate

    def evaluate(node, feeds, opset):
        found = real(node, feeds, opset)
        made.extend(v.nbytes for v in found.values())
        return found

    monkeypatch.setattr(constants, "evaluate", evaluate)
    report = pipeline.inspect(n.finish(total))
    assert report.folds
    assert sum(made) < 50 << 18


@pytest.mark.parametrize("change", ["pads", "dilations", "strides"])
@pytest.mark.parametrize("size", [30_000, 1 << 40])
def test_windows_that_no_image_can_hold(change, size):
    """Nothing is tried out on images of such sizes: the region is left alone, or proven on smaller ones."""
    model = BLOCK.model()
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == change:
                attribute.ints[:] = [size] * len(attribute.ints)
    start = time.process_time()
    pipeline.inspect(model)
    assert time.process_time() - start < 20


def test_names_that_are_no_text(tmp_path):
    path = tmp_path / "m.onnx"
    for name in (b"BatchNormalization", b"parameter_1", b"node_"):
        data = BLOCK.model().SerializeToString()
        path.write_bytes(data.replace(name, name[:3] + b"\xff" + name[4:]))
        with pytest.raises(InvalidModel, match="is no UTF-8 text"):
            optimize(path)


def test_a_name_that_is_declared_twice():
    for field in ("initializer", "input"):
        model = BLOCK.model()
        getattr(model.graph, field).append(getattr(model.graph, field)[0])
        with pytest.raises(InvalidModel, match="is declared twice"):
            optimize(model)


def _sparse(**changes):
    values = numpy_helper.from_array(np.ones(2, np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([0, 3], np.int64))
    sparse = helper.make_sparse_tensor(values, indices, [2, 2])
    for name, value in changes.items():
        if name == "dims":
            sparse.dims[:] = value
        else:
            getattr(sparse, name).CopyFrom(value)
    return sparse


@pytest.mark.parametrize("place", ["initializer", "attribute", "function", "list", "training"])
def test_sizes_are_checked_wherever_a_tensor_is(place):
    """In bodies, functions, lists and training graphs too."""
    model = BLOCK.model()
    tensor = TensorProto(name="bad", dims=[1 << 31, 1 << 31], data_type=TensorProto.FLOAT, raw_data=b"1234")
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    elif place == "list":
        attribute = model.graph.node.add(op_type="Custom", domain="d", output=["c"]).attribute.add(name="v", type=9)
        attribute.tensors.append(tensor)
    elif place == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    else:
        node = helper.make_node("Constant", [], ["c"], value=tensor)
        opset = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("local", "F", [], ["c"], [node], opset))
    with pytest.raises(InvalidModel, match="tensor bad has 4 bytes of data"):
        optimize(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": [2, -2]},
        {"indices": numpy_helper.from_array(np.zeros((2, 3), np.int64))},
        {"indices": numpy_helper.from_array(np.zeros(2, np.int32))},
        {"values": numpy_helper.from_array(np.ones((2, 1), np.float32), "sparse")},
    ],
)
def test_sparse_tensors_that_do_not_fit(changes):
    model = BLOCK.model()
    model.graph.sparse_initializer.append(_sparse(**changes))
    with pytest.raises(InvalidModel, match="sparse tensor"):
        optimize(model)
    del model.graph.sparse_initializer[:]
    model.graph.sparse_initializer.append(_sparse())
    assert pipeline.inspect(model).folds


@pytest.mark.parametrize("field", ["int64_data", "double_data", "segment", "strings"])
def test_values_in_the_wrong_field(field):
    model = BLOCK.model()
    tensor = model.graph.initializer[0]
    count = int(np.prod(tensor.dims))
    if field == "segment":
        tensor.segment.begin = 0
    elif field == "strings":
        tensor.data_type = TensorProto.STRING
    else:
        tensor.ClearField("raw_data")
        getattr(tensor, field).extend([1] * count)
    with pytest.raises(InvalidModel, match=r"values for dims|segment|bytes of data for dims"):
        optimize(model)


def test_op_types_and_file_names_cannot_command_the_terminal(capsys, tmp_path):
    model = BLOCK.model()
    y = model.graph.output[0].name
    model.graph.node.append(helper.make_node("\x1b[31mRed", [y], ["z"], domain="d\x07"))
    model.graph.output[0].name = "z"
    model.opset_import.append(helper.make_opsetid("d\x07", 1))
    path = tmp_path / "\x1b[2Jm.onnx"
    path.write_bytes(model.SerializeToString())
    codes = [cli.main(["inspect", str(path), "-v"]), cli.main(["optimize", str(path)])]
    codes.append(cli.main(["inspect", str(tmp_path / "\x1b[2Jabsent")]))
    captured = capsys.readouterr()
    assert codes == [0, 1, 2]
    assert not {"\x1b", "\x07"} & set(captured.out + captured.err)
    assert "x1b[2Jm.onnx" in captured.out


def test_file_names_that_are_no_text(capsys, tmp_path):
    path = tmp_path / "\udcff.onnx"
    try:
        path.write_bytes(BLOCK.model().SerializeToString())
    except OSError:
        pytest.skip("this file system takes text only")
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == str(path)
    assert cli.main(["optimize", str(path), "--report", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_bytes())["input"] == str(path)


def test_input_data_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return exit, (7,)

    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    model.write_bytes(BLOCK.model().SerializeToString())
    np.savez(data, x=np.array([Evil()], dtype=object))
    with pytest.raises(UsageError):
        optimize(model, options=Options(input_data=data))


LIBRARY = """
#include <stdio.h>
void *RegisterCustomOps(void *options, const void *api) {
    FILE *file = fopen("LOG", "a");
    fputs("loaded\\n", file);
    fclose(file);
    return 0;
}
"""


@pytest.mark.skipif(not shutil.which("cc") or sys.platform != "linux", reason="needs a compiler of C")
def test_custom_op_libraries_are_loaded_on_request_only(tmp_path, capsys):
    log, source, library = tmp_path / "log", tmp_path / "ops.c", tmp_path / "ops.so"
    source.write_text(LIBRARY.replace("LOG", str(log)))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    path, report = tmp_path / "m.onnx", tmp_path / "r.json"
    path.write_bytes(BLOCK.model().SerializeToString())
    assert cli.main(["optimize", str(path)]) == 0
    assert not log.exists()
    assert cli.main(["optimize", str(path), "--custom-ops-lib", str(library), "--report", str(report)]) == 0
    assert log.read_text().count("loaded") >= 5, "each session of either model, and the twin"
    assert json.loads(report.read_text())["options"] == {"custom_ops_lib": [str(library)]}


def test_a_custom_op_library_that_is_none(tmp_path):
    other = tmp_path / "ops.so"
    with pytest.raises(UsageError, match=r"--custom-ops-lib .*: no such file"):
        Runtime(custom_ops=(other,)).check()
    other.write_bytes(b"garbage")
    with pytest.raises(UsageError, match="--custom-ops-lib"):
        Runtime(custom_ops=(other,)).check()


def chain(length: int) -> bytes:
    """A block and many activations behind it."""
    n = Net(0)
    x = n.input((1, 4, 6, 6))
    x = n.relu(n.add(n.conv_bn(x, 4, 3), n.conv_bn(x, 4, 1)))
    for index in range(length):
        x = n.op(("Relu", "Sigmoid")[index % 2], x)
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 4, 6, 6])]
    graph = helper.make_graph(n.nodes, "chain", n.inputs, outputs, n.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def test_time_grows_with_the_number_of_nodes():
    """Four times the nodes take about four times as long; with quadratic steps, it would be sixteen times."""
    seconds = []
    for length in (6_000, 24_000):
        data = chain(length)
        start = time.process_time()
        assert optimize(data, options=Options(verify=False)).status == "folded"
        seconds.append(time.process_time() - start)
    assert seconds[1] < 7 * seconds[0]
