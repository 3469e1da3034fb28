"""Wrong folds, injected into an edit: each must be caught by the certificate. ``make mutants`` prints a table.

A mutant is made from a chain of blocks ``Relu(BN(C3) + BN(C1) + BN(x))``. Either the weights of the fold of one block
are changed, or the block is changed before it is folded, and its fold then claims to be that of the unchanged block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import onnx
from onnx import numpy_helper

from models.net import Net
from onnxrep import folding
from onnxrep.emit import Emitter
from onnxrep.graph import Edit
from onnxrep.proof import check
from onnxrep.proof.certificate import Certificate
from onnxrep.proof.inputs import Wishes
from onnxrep.proof.sides import Side
from tests.tools import RUNTIME, copy

WIDTH = 8


@dataclass(frozen=True)
class Mutant:
    """A wrong fold.

    Attributes:
        name: what is wrong.
        weights: changes the new initializers (name -> float64 values, "bias" in the name of biases) and attributes.
        block: changes the block before it is folded.
        hidden: whether no input can show it end to end: what is wrong lies in a channel that is always zero.
    """

    name: str
    weights: Callable[[dict[str, np.ndarray], Mapping], None] | None = None
    block: Callable[[onnx.ModelProto, str], None] | None = None
    hidden: bool = False


def network(blocks: int = 3, *, head: str = "map", dtype: type = np.float32, seed: int = 0) -> onnx.ModelProto:
    """Return a chain of blocks with a feature map or a softmax as output, of trained scale."""
    net = Net(seed, dtype=dtype, opset=22)
    x = net.conv_bn(net.input(("batch", 3, "height", "width")), WIDTH, 3)
    for _ in range(blocks):
        x = net.relu(net.add(net.conv_bn(x, WIDTH, 3), net.conv_bn(x, WIDTH, 1), net.bn(x)))
    if head == "softmax":
        x = net.scale(net.op("Flatten", net.op("GlobalAveragePool", x)), [2.0**-8])
        x = net.op("Softmax", x, axis=-1)
        net.axes[x] = 0
    return net.model(x)


def sums(model: onnx.ModelProto) -> list[str]:
    """Return the outputs of the blocks' folds."""
    read_by_relu = {n.input[0] for n in model.graph.node if n.op_type == "Relu"}
    return [n.output[0] for n in model.graph.node if n.op_type == "Add" and n.output[0] in read_by_relu]


# -- changes of the fold ---------------------------------------------------------------------------------------------


def kernel(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the weight among new initializers."""
    return max(tensors.values(), key=lambda v: v.ndim)


def bias(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the bias among new initializers."""
    return min(tensors.values(), key=lambda v: v.ndim)


def bias_dropped(tensors, _):
    bias(tensors)[:] = 0.0


def _bias_of_one_channel_dropped(tensors, _):
    bias(tensors)[WIDTH // 2] = 0.0


def _channels_swapped(tensors, _):
    for values in (kernel(tensors), bias(tensors)):
        values[[1, 2]] = values[[2, 1]]


def _kernel_turned(tensors, _):
    kernel(tensors)[:] = kernel(tensors).swapaxes(-1, -2).copy()


def _kernel_mirrored(tensors, _):
    kernel(tensors)[:] = kernel(tensors)[..., ::-1].copy()


def _one_weight_off(tensors, _):
    kernel(tensors)[3, 5, 1, 2] *= 1.01


def _one_weight_zero(tensors, _):
    kernel(tensors)[3, 5, 1, 2] = 0.0


def _through_half(tensors, _):
    for values in tensors.values():
        values[:] = values.astype(np.float16)


def _inputs_permuted(tensors, _):
    kernel(tensors)[:] = np.roll(kernel(tensors), 1, axis=1)


def _pads_mirrored(_, attributes):
    attributes["pads"] = [0, 0, 2, 2]


def _dilated(_, attributes):
    attributes["dilations"], attributes["pads"] = [2, 2], [2] * 4


def _strided(_, attributes):
    attributes["strides"] = [2, 2]


# -- changes of the block --------------------------------------------------------------------------------------------


def set_values(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an initializer."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values.astype(np.float64)).astype(values.dtype), name))


def norms(model: onnx.ModelProto, output: str) -> list[onnx.NodeProto]:
    """Return the BatchNormalizations of the block that ends in a value: of the 3x3, of the 1x1, of the identity."""
    makers = {o: n for n in model.graph.node for o in n.output}
    last = makers[output]
    return [makers[name] for name in (*makers[last.input[0]].input, last.input[1])]


def _epsilon(value: float, count: int):
    def change(model, output):
        for node in norms(model, output)[:count]:
            next(a for a in node.attribute if a.name == "epsilon").f = value

    return change


def _no_root(model, output):
    set_values(model, norms(model, output)[0].input[4], np.square)


def _no_mean(model, output):
    set_values(model, norms(model, output)[0].input[3], np.zeros_like)


def _no_identity(model, output):
    node = norms(model, output)[2]
    set_values(model, node.input[1], np.zeros_like)
    set_values(model, node.input[2], np.zeros_like)


def _tap_beside(model, output):
    """Put the 1x1 one column off, in a 3x3."""
    small = next(n for n in model.graph.node if n.output[0] == norms(model, output)[1].input[0])
    set_values(model, small.input[1], lambda w: np.pad(w, ((0, 0), (0, 0), (1, 1), (2, 0))))
    for attribute in small.attribute:
        if attribute.name == "kernel_shape":
            attribute.ints[:] = [3, 3]
        elif attribute.name == "pads":
            attribute.ints[:] = [1] * 4


def _identity_beside(model, output):
    """Let the identity read the next channel: as a 1x1."""
    node = norms(model, output)[2]
    weight = np.roll(np.eye(WIDTH), 1, axis=1)[:, :, None, None]
    kind = next(t.data_type for t in model.graph.initializer if t.name == node.input[1])
    weight = weight.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    model.graph.initializer.append(numpy_helper.from_array(weight, "turned"))
    conv = onnx.helper.make_node("Conv", [node.input[0], "turned"], ["turned_out"], kernel_shape=[1, 1])
    node.input[0] = "turned_out"
    model.graph.node.insert(list(model.graph.node).index(node), conv)


def _garbage(tensors, _):
    kernel(tensors)[0] = 7.0


MUTANTS = (
    Mutant("bias dropped, all channels", bias_dropped),
    Mutant("bias dropped, one channel", _bias_of_one_channel_dropped),
    Mutant("1x1 tap placed one column off", block=_tap_beside),
    Mutant("identity on the wrong channel", block=_identity_beside),
    Mutant("identity branch dropped", block=_no_identity),
    Mutant("two output channels swapped", _channels_swapped),
    Mutant("3x3 kernel transposed", _kernel_turned),
    Mutant("epsilon 1e-3 for 1e-5, all branches", block=_epsilon(1e-3, 3)),
    Mutant("epsilon 1e-4 for 1e-5, one branch", block=_epsilon(1e-4, 1)),
    Mutant("variance used for its square root", block=_no_root),
    Mutant("mean forgotten, one branch", block=_no_mean),
    Mutant("one weight off by 1 %", _one_weight_off),
    Mutant("one weight zeroed", _one_weight_zero),
    Mutant("fold stored through float16", _through_half),
    Mutant("garbage in a channel that Relu holds at zero", _garbage, hidden=True),
    Mutant("kernel mirrored", _kernel_mirrored),
    Mutant("input channels rotated", _inputs_permuted),
    Mutant("pads all at the end", _pads_mirrored),
    Mutant("dilation mistaken", _dilated),
    Mutant("stride mistaken", _strided),
)


# -- folding wrongly -------------------------------------------------------------------------------------------------


def mutated(edit: Edit, change: Callable[[dict[str, np.ndarray], Mapping], None]) -> Edit:
    """Return an edit with changed weights, exact and stored, or attributes."""
    exact = {name: values.copy() for name, values in edit.exact.items()}
    change(exact, edit.nodes[0].attrs)
    tensors = [(n, exact[n].astype(v.dtype) if n in exact else v) for n, v in edit.tensors]
    return replace(edit, tensors=tensors, exact=exact)


@contextmanager
def wrong_edit(output: str, change: Callable[[Edit], Edit], *, proven: bool) -> Iterator[None]:
    """Let the fold that makes a value go wrong; with ``proven=False`` the certificate looks away."""
    real = Emitter.edit

    def edit(self, region):
        made = real(self, region)
        return change(made) if region.output == output else made

    blind = (lambda claims: [Certificate() for _ in claims]) if not proven else folding.certify
    with mock.patch.object(Emitter, "edit", edit), mock.patch.object(folding, "certify", blind):
        yield


def wrong_weights(output: str, change: Callable[[dict[str, np.ndarray], Mapping], None], *, proven: bool = True):
    """Let the weights or attributes of the fold that makes a value go wrong."""
    return wrong_edit(output, lambda edit: mutated(edit, change), proven=proven)


def change_of(mutant: Mutant, model: onnx.ModelProto, output: str) -> Callable[[Edit], Edit]:
    """Return what makes a right edit of a model's block the mutant's."""
    if mutant.weights is not None:
        change = mutant.weights
        return lambda edit: mutated(edit, change)
    other, found = copy(model), []
    assert mutant.block is not None
    mutant.block(other, output)
    with wrong_edit(output, lambda edit: found.append(edit) or edit, proven=False):
        folding.fold(other, None)
    return lambda edit: replace(edit, tensors=found[0].tensors, exact=found[0].exact, nodes=found[0].nodes)


def hidden_channel(model: onnx.ModelProto, output: str) -> None:
    """Hold channel 0 of a block at zero: its bias is far below zero."""
    for node in norms(model, output):
        set_values(model, node.input[2], lambda v: np.where(np.arange(len(v)) == 0, -1e4, v))


def folded_wrong(
    model: onnx.ModelProto, mutant: Mutant, output: str, *, proven: bool
) -> tuple[onnx.ModelProto, list, list]:
    """Fold a model with one wrong fold."""
    change = change_of(mutant, model, output)
    result = copy(model)
    with wrong_edit(output, change, proven=proven):
        folds, refusals = folding.fold(result, None)
    return result, folds, refusals


def verdict(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Judge two models end to end."""
    sides = (Side(m, None, None) for m in (before, after))
    return check.check(*sides, RUNTIME, Wishes({"x": (1, 3, 12, 12)}, None)).verdict


RIGHT = tuple(
    (blocks, dtype, hard, scale, seed)
    for blocks in (20, 60)
    for dtype in (np.float32, np.float16)
    for hard in (False, True)
    for scale in (1.0, 100.0)
    for seed in (0, 1)
)
"""Networks whose folds are right: deep, ill-conditioned, of large outputs."""


def false_alarms() -> list[tuple]:
    """Return the right networks of which a fold or the whole is accused."""
    found = []
    for blocks, dtype, hard, scale, seed in RIGHT:
        model = network(blocks, dtype=dtype, seed=seed)
        generator = np.random.default_rng(seed)
        for node in model.graph.node:
            if node.op_type == "BatchNormalization":
                set_values(model, node.input[1], lambda v: 0.72 * v)
                set_values(model, node.input[2], lambda v: 0.72 * v)
            if node.op_type == "BatchNormalization" and hard:
                spread = 10.0 ** generator.uniform(-6, 2, WIDTH)
                set_values(model, node.input[4], lambda _, spread=spread: spread)
                set_values(model, node.input[1], lambda v, spread=spread: v * np.sqrt(spread))
        last = model.graph.output[0].name
        factor = numpy_helper.from_array(np.array(scale, dtype), "factor")
        model.graph.initializer.append(factor)
        model.graph.node.append(onnx.helper.make_node("Mul", [last, "factor"], ["scaled"]))
        model.graph.output[0].name = "scaled"
        result = copy(model)
        folds, refusals = folding.fold(result, None)
        good = len(folds) >= blocks and not any(r.code == "certificate" for r in refusals)
        if not good or verdict(model, result) == "rejected":
            found.append((blocks, dtype.__name__, hard, scale, seed))
    return found


def main() -> int:
    """Print which mutants the certificate catches, and which the end-to-end check alone."""
    settings = [(h, d) for h in ("map", "softmax") for d in (np.float32, np.float16)]
    places = (0, 9, 19)
    total = len(settings) * len(places)
    sys.stdout.write(f"{'wrong fold':48}{'certificate':>12}{'end to end':>12}   of {total}\n")
    missed = 0
    for mutant in MUTANTS:
        local = whole = 0
        for head, dtype in settings:
            model = network(20, head=head, dtype=dtype)
            for place in places:
                output = sums(model)[place]
                if mutant.hidden:
                    hidden_channel(model, output)
                _, _, refusals = folded_wrong(model, mutant, output, proven=True)
                local += any(r.code == "certificate" for r in refusals)
                result, _, _ = folded_wrong(model, mutant, output, proven=False)
                whole += verdict(model, result) == "rejected"
        missed += total - local
        sys.stdout.write(f"{mutant.name:48}{local:12}{whole:12}\n")
        sys.stdout.flush()
    sys.stdout.write(f"missed by the certificate: {missed}\n")
    alarms = false_alarms()
    sys.stdout.write(f"right folds accused: {len(alarms)} of {len(RIGHT)} {alarms}\n")
    return int(missed > 0 or bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
