"""What several tests need: fold a model, run it, compare bit for bit."""

from __future__ import annotations

import numpy as np
import onnx

from onnxrep.folding import fold
from onnxrep.proof.sessions import Runtime
from onnxrep.report.records import Fold, Refusal

RUNTIME = Runtime(threads=1)


def ops(model: onnx.ModelProto) -> list[str]:
    """Op types of the main graph in order, constants left out."""
    return [n.op_type for n in model.graph.node if n.op_type != "Constant"]


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    """The only node of an op type."""
    (found,) = [n for n in model.graph.node if n.op_type == op]
    return found


def attributes(proto: onnx.NodeProto) -> dict:
    """A node's attributes as Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def folded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Fold], list[Refusal]]:
    """A folded copy of a model, with the records; the copy passes the checker and folds no further."""
    result = copy(model)
    folds, refusals = fold(result, None)
    onnx.checker.check_model(result)
    again = copy(result)
    more, _ = fold(again, None)
    assert not more, "a second run folds more"
    assert again.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    return result, folds, refusals


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], level: str = "off") -> list[np.ndarray]:
    """The outputs of a model in ONNX Runtime."""
    return list(RUNTIME.session(model, level).run(feeds).values())


def integers(model: onnx.ModelProto, seed: int = 0, size: int = 6) -> dict[str, np.ndarray]:
    """Small integers for every input of a model; dynamic sizes become ``size``."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or (1 if i == 0 else size) for i, d in enumerate(kind.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[value.name] = rng.integers(-3, 4, shape).astype(dtype)
    return feeds


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, sizes: tuple[int, ...] = (6,), exact: bool = True
) -> None:
    """Both models agree, bit for bit if they are exact."""
    for seed, size in enumerate(sizes):
        feeds = integers(before, seed, size)
        for old, new in zip(run(before, feeds), run(after, feeds), strict=True):
            assert old.shape == new.shape
            if exact:
                assert np.array_equal(old, new)
            else:
                assert np.allclose(old, new, rtol=1e-5, atol=1e-5 * max(np.abs(old).max(), 1e-6))


def codes(refusals: list[Refusal]) -> set[str]:
    """The codes of refusals."""
    return {r.code for r in refusals}
