"""A zoo with faulty files strewn in, to see that none of them hurts the rest.

    python -m models.faulty FOLDER [--models 500] [--faulty 40] [--seed 0]

Sound models are published blocks of the catalogue; faulty files are the kinds that are met in the field, and some that
end or stop the process that opens them. What each must become is written to ``FOLDER.json``. The same numbers give the
same zoo.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.blocks import Block, count, section, seed_blocks
from models.net import Net

_PLACES = ("", "detect", "detect/large models", "分类", "разное/глубоко", "ünïcode/日本語/ネスト")
_STEMS = ("model {0}", "repvgg_{0}", "モデル{0}", "модель-{0}", "नमूना_{0}", "modèle ({0})", "模型.{0}", "😀{0}")


# -- models ---------------------------------------------------------------------------------------------------------


def _block(net: Net, x: str) -> str:
    """Add a block that folds."""
    channels = net.channels[x]
    return net.relu(net.add(net.conv_bn(x, channels, 3), net.conv_bn(x, channels, 1), net.bn(x)))


def _start(seed: int, *shape: int | str) -> tuple[Net, str]:
    """Return a net and the output of its first block."""
    net = Net(seed)
    return net, _block(net, net.input(shape or (1, 4, 8, 8)))


def _unchecked(net: Net, *outputs: str) -> onnx.ModelProto:
    """Return a model that onnx.checker and shape inference have not seen: either may end the process."""
    results = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    graph = helper.make_graph(net.nodes, "net", net.inputs, results, net.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)], ir_version=10)


def _sound(seed: int) -> onnx.ModelProto:
    """Return a model of one block."""
    net, y = _start(seed)
    return net.model(y)


def _weight(model: onnx.ModelProto) -> TensorProto:
    """Return the first weight of a convolution."""
    return next(t for t in model.graph.initializer if len(t.dims) == 4)


# -- files that are no model ----------------------------------------------------------------------------------------


def _bytes(content: bytes) -> Callable[[Path, int], None]:
    """Return a fault that is these bytes."""

    def write(path: Path, seed: int) -> None:
        path.write_bytes(content)

    return write


def _noise(path: Path, seed: int) -> None:
    path.write_bytes(b"\xff" + np.random.default_rng(seed).bytes(4096))


def _truncated(path: Path, seed: int) -> None:
    path.write_bytes(_sound(seed).SerializeToString()[:-100])


def _nested(path: Path, seed: int) -> None:
    """Write graphs in graphs, 500 deep; as bytes, because the library refuses to."""

    def field(number: int, payload: bytes) -> bytes:
        size, length = len(payload), b""
        while size > 0x7F:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + payload

    graph = b""
    for _ in range(500):  # graph.node.attribute.g
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    path.write_bytes(b"\x08\x08" + field(7, graph))


def _dangling(path: Path, seed: int) -> None:
    path.symlink_to(path.with_name("not there"))


# -- data outside the file ------------------------------------------------------------------------------------------


def _external(location: str, *, offset: int = 0, link: bool = False) -> Callable[[Path, int], None]:
    """Return a fault whose first weight lies at ``location``; ``{}`` stands for the model's name."""

    def write(path: Path, seed: int) -> None:
        model = _sound(seed)
        tensor = _weight(model)
        data = path.with_name(f"{path.name}.data")
        if "{}" in location:
            data.write_bytes(tensor.raw_data)
        if link:
            data.rename(data.with_suffix(".real"))
            data.symlink_to(data.with_suffix(".real"))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location.format(path.name)), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())

    return write


# -- models with something wrong in them ----------------------------------------------------------------------------


def _changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path, int], None]:
    """Return a fault that is a sound model with one change."""

    def write(path: Path, seed: int) -> None:
        model = _sound(seed)
        change(model)
        path.write_bytes(model.SerializeToString())

    return write


def _enormous(model: onnx.ModelProto) -> None:
    del _weight(model).dims[:]
    next(t for t in model.graph.initializer if not t.dims).dims.extend([1 << 31, 1 << 31])


def _poisoned(value: float, *, variance: bool = False) -> Callable[[onnx.ModelProto], None]:
    """Return a change that puts a value into every weight, or into every variance."""

    def change(model: onnx.ModelProto) -> None:
        variances = {n.input[4] for n in model.graph.node if n.op_type == "BatchNormalization"}
        for tensor in model.graph.initializer:
            if tensor.name in variances if variance else len(tensor.dims) == 4:
                array = numpy_helper.to_array(tensor).copy()
                array.flat[0] = value
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


def _training(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("training_mode", 1))
            node.output.extend([f"{node.output[0]}_mean", f"{node.output[0]}_variance"])


def _same_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "node"


def _cycle(model: onnx.ModelProto) -> None:
    last = model.graph.node[-1]
    model.graph.node[0].input[0] = last.output[0]


def _made_twice(model: onnx.ModelProto) -> None:
    model.graph.node[0].output[0] = model.graph.node[1].output[0]


def _custom(path: Path, seed: int) -> None:
    net, y = _start(seed)
    net.nodes.append(helper.make_node("Mystery", [y], ["z"], domain="com.example"))
    model = _unchecked(net, "z")
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    path.write_bytes(model.SerializeToString())


# -- models that hurt the process that opens them ---------------------------------------------------------------------


def _abort(path: Path, seed: int) -> None:
    """Put a Slice behind a kernel larger than its image: shape inference of onnx ends the process."""
    net, y = _start(seed, 1, 4, 2, 2)
    y = net.conv(y, 4, 5, pads=0)
    sizes = [net.constant([n], dtype=np.int64) for n in (0, 1, 2)]
    path.write_bytes(_unchecked(net, net.op("Slice", y, *sizes)).SerializeToString())


def _endless(path: Path, seed: int) -> None:
    """Write a loop of 10^12 rounds."""
    net, y = _start(seed)
    shape = [1, 4, 8, 8]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Sin", ["state"], ["next"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            value("round", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, shape),
        ],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, shape)],
    )
    z = net.op("Loop", net.constant(10**12, dtype=np.int64), "", y, body=body)
    path.write_bytes(_unchecked(net, z).SerializeToString())


def _plus_sum(net: Net, y: str, large: str) -> bytes:
    """Return a model that adds the sum of a large value to the block's output."""
    total = net.op("ReduceSum", large, keepdims=0)
    return _unchecked(net, net.op("Add", y, total)).SerializeToString()


def _bomb(path: Path, seed: int) -> None:
    """Write a constant of 4 TiB."""
    net, y = _start(seed)
    shape = net.constant([1 << 20, 1 << 20], dtype=np.int64)
    path.write_bytes(_plus_sum(net, y, net.op("ConstantOfShape", shape)))


def _hidden_bomb(path: Path, seed: int) -> None:
    """Write a value of 32 TiB whose size no shape inference can tell."""
    net, y = _start(seed)
    nothing = net.op("Cast", net.op("ReduceSum", net.op("Mul", y, net.constant(0.0)), keepdims=0), to=TensorProto.INT64)
    size = net.op("Add", nothing, net.constant([1 << 43], dtype=np.int64))
    path.write_bytes(_plus_sum(net, y, net.op("Expand", net.constant(1.0), size)))


def _vast(path: Path, seed: int) -> None:
    """Write an input of 2^20 x 2^20 pixels."""
    net, y = _start(seed, 1, 4, 1 << 20, 1 << 20)
    path.write_bytes(_unchecked(net, y).SerializeToString())


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what it is, or what is wrong with it.
        status: what must become of it.
        write: makes such a file, given its path and a seed.
    """

    name: str
    status: str
    write: Callable[[Path, int], None]


FAULTS = (
    Kind("empty file", "invalid", lambda path, seed: path.touch()),
    Kind("truncated", "invalid", _truncated),
    Kind("HTML page", "invalid", _bytes(b"<!DOCTYPE html><html><body>404</body></html>")),
    Kind("random bytes", "invalid", _noise),
    Kind("Git LFS pointer", "invalid", _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")),
    Kind("nested 500 deep", "invalid", _nested),
    Kind("link to nowhere", "error", _dangling),
    Kind("external data missing", "invalid", _external("weights.bin")),
    Kind("external data above the folder", "invalid", _external("../{}.data")),
    Kind("external data by absolute path", "invalid", _external("/etc/passwd")),
    Kind("external data behind a link", "invalid", _external("{}.data", link=True)),
    Kind("external data beyond its file", "invalid", _external("{}.data", offset=1 << 40)),
    Kind("dims of 2^62 elements", "invalid", _changed(_enormous)),
    Kind("weight cut short", "invalid", _changed(lambda m: setattr(_weight(m), "raw_data", b"\0" * 8))),
    Kind("negative dims", "invalid", _changed(lambda m: _weight(m).dims.__setitem__(0, -1))),
    Kind("unknown element type", "invalid", _changed(lambda m: setattr(_weight(m), "data_type", 99))),
    Kind("NaN in weights", "unchanged", _changed(_poisoned(float("nan")))),
    Kind("infinity in weights", "unchanged", _changed(_poisoned(float("inf")))),
    Kind("negative variance", "unchanged", _changed(_poisoned(-1.0, variance=True))),
    Kind("BatchNormalization in training", "unchanged", _changed(_training)),
    Kind("node name used twice", "invalid", _changed(_same_names)),
    Kind("value made twice", "invalid", _changed(_made_twice)),
    Kind("cycle", "invalid", _changed(_cycle)),
    Kind("opset 999", "unsupported", _changed(lambda m: setattr(m.opset_import[0], "version", 999))),
    Kind("IR version 99", "unsupported", _changed(lambda m: setattr(m, "ir_version", 99))),
    Kind("no opset import", "invalid", _changed(lambda m: m.ClearField("opset_import"))),
    Kind("no graph", "invalid", _changed(lambda m: m.ClearField("graph"))),
    Kind("input made by nothing", "invalid", _changed(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"))),
    Kind("output made by nothing", "invalid", _changed(lambda m: setattr(m.graph.output[0], "name", "nowhere"))),
    Kind("custom op", "unverified", _custom),
    Kind("constant of 4 TiB", "unverified", _bomb),
    Kind("input of 2^40 pixels", "unverified", _vast),
    Kind("32 TiB at run time", "oom", _hidden_bomb),
    Kind("shape inference aborts", "crashed", _abort),
    Kind("endless loop", "timeout", _endless),
)


# -- the zoo --------------------------------------------------------------------------------------------------------


def _sound_kinds(seed: int) -> Iterator[Kind]:
    """Yield kinds of sound models without end."""
    blocks = [*seed_blocks(), *section("What looks foldable and is not")]
    for number in itertools.count(seed):
        block = blocks[number * 7 % len(blocks)]
        folds = count(block.model()) != dict(block.left)
        yield Kind(block.name, "folded" if folds else "unchanged", _saved(block))


def _saved(block: Block) -> Callable[[Path, int], None]:
    """Return what writes a model of one block."""

    def write(path: Path, seed: int) -> None:
        path.write_bytes(block.model(seed=seed).SerializeToString())

    return write


def write(folder: Path, models: int = 500, faulty: int = 40, seed: int = 0) -> dict[str, dict[str, str]]:
    """Write a zoo; return, and write beside it, relative path -> what the file is, and what must become of it."""
    rng = np.random.default_rng(seed)
    bad = set(rng.choice(models, faulty, replace=False).tolist())
    faults = itertools.cycle(FAULTS)
    sound = _sound_kinds(seed)
    expected: dict[str, dict[str, str]] = {}
    for number in range(models):
        kind = next(faults if number in bad else sound)
        stem = _STEMS[int(rng.integers(len(_STEMS)))].format(number)
        path = folder / _PLACES[int(rng.integers(len(_PLACES)))] / f"{stem}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind.write(path, number)
        expected[path.relative_to(folder).as_posix()] = {"kind": kind.name, "status": kind.status}
    text = json.dumps(expected, indent=1, ensure_ascii=False, sort_keys=True)
    folder.with_name(f"{folder.name}.json").write_text(text + "\n", encoding="utf-8")
    return expected


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A zoo with faulty files strewn in")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--faulty", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if os.path.lexists(arguments.folder):
        sys.exit(f"{arguments.folder}: is there already")
    expected = write(arguments.folder, arguments.models, arguments.faulty, arguments.seed)
    print(f"{len(expected)} models in {arguments.folder}")


if __name__ == "__main__":
    main()
