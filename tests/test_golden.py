"""Small graphs before and after, as text: ``make golden`` writes them anew, and the difference is reviewed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.blocks.seeds import (
    conv_bn,
    mmpose_rep,
    paddle_rep,
    plain_rep,
    rep_cpe,
    super_gradients_rep,
)
from models.net import Net
from onnxrep.report.records import Fold, Refusal
from tests.tools import folded

GOLDEN = Path(__file__).parent / "golden"

GRAPHS = {
    "mmpose_rep": mmpose_rep(True, 2, 2),
    "plain_rep_5x5": plain_rep(5, 1, True),
    "super_gradients_rep": super_gradients_rep(0.75, True, True),
    "conv_bn": conv_bn(3, 1),
    "paddle_rep": paddle_rep(-0.5),
    "rep_cpe": rep_cpe(7),
    "two_sources": lambda n, x: n.bn(n.add(n.conv(x, 8, 3), n.conv(n.relu(x), 8, 1))),
    "partial": lambda n, x: n.add(n.conv(x, 8, 3), n.conv(x, 8, 3, dilation=9), n.conv(x, 8, 1), n.relu(x)),
    "refused": lambda n, x: n.conv(n.op("Mul", n.conv(x, 8, 1, bias=True), n.constant(np.ones(12))), 8, 3),
}


def text(model: onnx.ModelProto) -> list[str]:
    """A graph, one line per node and initializer."""
    lines = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        dims = "x".join(map(str, tensor.dims)) or "scalar"
        lines.append(f"  {tensor.name}: {dims} sum {values.sum():g} squares {np.square(values).sum():g}")
    for node in model.graph.node:
        attributes = ", ".join(f"{a.name}={onnx.helper.get_attribute_value(a)}" for a in node.attribute)
        call = f"{node.op_type}({', '.join(node.input)}{'; ' if attributes else ''}{attributes})"
        lines.append(f"  {', '.join(node.output)} = {call}  # {node.name}")
        lines += [f"    {p.key}: {p.value}" for p in node.metadata_props]
    return lines


def story(model: onnx.ModelProto, result: onnx.ModelProto, folds: list[Fold], refusals: list[Refusal]) -> str:
    """Before, after, and what is said about it."""
    lines = ["before", *text(model), "after", *text(result)]
    for f in folds:
        lines.append(f"{f.kind} {f.output} from {', '.join(f.sources)}: macs {f.macs[0]:g} -> {f.macs[1]:g}")
    lines += [f"left {r.node.name}: {r.code}: {r.detail}" for r in refusals]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", GRAPHS)
def test_golden(name):
    net = Net(2, exact=True)
    x = net.input((1, 8, 12, 12))
    model = net.model(GRAPHS[name](net, x))
    result, folds, refusals = folded(model)
    path = GOLDEN / f"{name}.txt"
    found = story(model, result, folds, refusals)
    if os.environ.get("ONNXREP_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text(), "run 'make golden' and review the difference"
