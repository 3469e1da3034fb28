"""Real exports without their weights, and how they are filled again with reproducible random ones.

A skeleton is a model as an exporter wrote it, in which every float tensor of 64 elements or more is emptied: it keeps
name, dims and type, and its doc string holds ``{"skeleton": [mean, std, min, max]}`` of the values that it had. Filling
draws from those statistics; the values depend on the tensor's name and the seed alone, so every machine gets the same
model.

    python -m models.skeletons list
    python -m models.skeletons fill repvgg_a0/train_legacy OUT.onnx
    python -m models.skeletons pack MODEL.onnx OUT.onnx.xz
"""

from __future__ import annotations

import argparse
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ZOO = Path(__file__).parent / "zoo"
CONTROLS = ("resnet50", "tf_efficientnet_b0", "vit_tiny_patch16_224")
"""Models in which there is nothing multi-branch to merge."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_SMALL = 64


def names() -> list[str]:
    """Return the name of every skeleton, as ``model/variant``."""
    return sorted(p.relative_to(ZOO).as_posix().removesuffix(".onnx.xz") for p in ZOO.glob("*/*.onnx.xz"))


def manifest() -> dict[str, dict[str, Any]]:
    """Return what is recorded of each skeleton: package, opset, input shapes, op counts."""
    entries: dict[str, dict[str, Any]] = json.loads((ZOO / "manifest.json").read_text())
    return entries


def fill(name: str, seed: int = 0) -> onnx.ModelProto:
    """Return a skeleton of the zoo, filled with weights.

    Raises:
        FileNotFoundError: there is no such skeleton.
    """
    model = onnx.load_from_string(lzma.decompress((ZOO / f"{name}.onnx.xz").read_bytes()))
    for index, tensor in enumerate(_tensors(model.graph)):
        if tensor.doc_string.startswith('{"skeleton"'):
            tensor.CopyFrom(_filled(tensor, tensor.name or str(index), seed))
    return model


def _filled(tensor: TensorProto, name: str, seed: int) -> TensorProto:
    """Return an emptied tensor with values."""
    mean, std, low, high = json.loads(tensor.doc_string)["skeleton"]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    shape = tuple(tensor.dims)
    values = rng.uniform(low, high, shape) if low > 0 else rng.normal(mean, std, shape).clip(low, high)
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)), tensor.name)


def pack(source: Path, target: Path) -> None:
    """Write the skeleton of a model."""
    model = onnx.load(source)
    for tensor in _tensors(model.graph):
        if tensor.data_type not in _FLOATS or np.prod(tensor.dims) < _SMALL:
            continue
        values = numpy_helper.to_array(tensor).astype(np.float64)
        if np.ptp(values) == 0 or not np.isfinite(values).all():
            continue
        statistics = [float(f"{v:.6g}") for v in (values.mean(), values.std(), values.min(), values.max())]
        empty = TensorProto(name=tensor.name, dims=list(tensor.dims), data_type=tensor.data_type)
        empty.doc_string = json.dumps({"skeleton": statistics})
        tensor.CopyFrom(empty)
    target.write_bytes(lzma.compress(model.SerializeToString(deterministic=True), preset=6))


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield a graph's initializers and the tensors of its attributes, subgraphs included, in a fixed order."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Real exports without their weights")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the names of all skeletons")
    filling = commands.add_parser("fill", help="write a skeleton filled with random weights")
    filling.add_argument("name")
    filling.add_argument("target", type=Path)
    filling.add_argument("--seed", type=int, default=0)
    packing = commands.add_parser("pack", help="write the skeleton of a model")
    packing.add_argument("source", type=Path)
    packing.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "list":
        print("\n".join(names()))
    elif arguments.command == "fill":
        onnx.save(fill(arguments.name, arguments.seed), arguments.target)
    else:
        pack(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
