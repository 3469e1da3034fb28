"""A model of 2.3 GB with external data: memory and time of folding two blocks in it, beside a plain copy of its data.

``make bench-external`` prints the table; it needs 8 GB of disk in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto

from models.net import Net
from onnxrep import files

WORDS, WIDTH = 150_000, 1024
LAYERS = 50
SEEN = 16
"""Words of an input."""


def build(path: Path, layers: int = LAYERS) -> int:
    """Write an image branch of two RepVGG blocks and a text branch of many large weights; return the bytes of data."""
    net = Net(0)
    x = net.input((1, 64, 32, 32))
    for _ in range(2):
        x = net.relu(net.add(net.conv_bn(x, 64, 3), net.conv_bn(x, 64, 1), net.bn(x)))
    net.inputs.append(onnx.helper.make_tensor_value_info("words", TensorProto.INT64, (1, SEEN)))
    shapes = {"table": (WORDS, WIDTH)}
    text = net.op("Gather", "table", "words", axis=0)
    for layer in range(layers):
        shapes[f"up_{layer}"], shapes[f"down_{layer}"] = (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)
        up = net.op("Add", net.op("MatMul", text, f"up_{layer}"), net.constant(net.draw(4 * WIDTH, scale=0.02)))
        text = net.op("Add", text, net.op("MatMul", net.relu(up), f"down_{layer}"))
    outputs = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in ((x, (1, 64, 32, 32)), (text, (1, SEEN, WIDTH)))
    ]
    graph = onnx.helper.make_graph(net.nodes, "large", net.inputs, outputs)
    with path.with_suffix(".bin").open("wb") as file:
        for tensor in net.initializers:
            _append(graph, file, tensor.name, onnx.numpy_helper.to_array(tensor))
        for name, shape in shapes.items():
            _append(graph, file, name, net.rng.standard_normal(shape, np.float32) * np.float32(0.02))
        size = file.tell()
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return size


def _append(graph: onnx.GraphProto, file: BinaryIO, name: str, values: np.ndarray) -> None:
    """Append an initializer's values to a data file."""
    tensor = graph.initializer.add(name=name, dims=values.shape, data_type=TensorProto.FLOAT)
    file.write(bytes(-file.tell() % files.ALIGNMENT))
    files.refer(tensor, Path(file.name).name, file.tell())
    file.write(values.tobytes())


def measure(command: Sequence[str | Path]) -> tuple[float, float]:
    """Return the seconds that a command takes, and the most MiB of memory that it holds at a time."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    start = time.perf_counter()
    child = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return time.perf_counter() - start, int(child.stdout) / unit


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"pairs of matrices (default: {LAYERS})")
    parser.add_argument("--verify", action="store_true", help="verify too: needs three times the memory")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        here, there = Path(name, "here"), Path(name, "there")
        for folder in (here, there):
            folder.mkdir()
        model = here / "large.onnx"
        size = build(model, options.layers)
        sys.stdout.write(f"{size / 1e9:.2f} GB of external data        seconds   peak MiB\n")
        fold: list[str | Path] = [sys.executable, "-m", "onnxrep", "optimize", model]
        runs: list[tuple[str, list[str | Path]]] = [
            ("cp of the data", ["cp", model.with_suffix(".bin"), there / "copy.bin"]),
            ("sha256 of the data", ["sha256sum", model.with_suffix(".bin")]),
            ("optimize --no-verify, same folder", [*fold, "--no-verify", "-o", here / "out.onnx"]),
            ("optimize --no-verify, other folder", [*fold, "--no-verify", "-o", there / "out.onnx"]),
            ("inspect", [sys.executable, "-m", "onnxrep", "inspect", model]),
        ]
        if options.verify:
            runs.append(("optimize, same folder", [*fold, "-o", here / "verified.onnx"]))
        for title, command in runs:
            seconds, memory = measure(command)
            sys.stdout.write(f"{title:36}{seconds:8.2f}{memory:10.0f}\n")
            sys.stdout.flush()
            for output in (*here.glob("out.onnx"), *there.glob("out.onnx")):
                nodes = onnx.load(output, load_external_data=False).graph.node
                assert sum(node.op_type == "Conv" for node in nodes) == 2, "both blocks fold"
            shutil.rmtree(there)
            there.mkdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
