"""Random linear regions: what folds computes the same bits, does no more work, and what the naive oracle computes."""

from __future__ import annotations

import os
import sys

import numpy as np
import onnx
import pytest

from onnxrep.constants import Constants
from onnxrep.graph import Model
from onnxrep.lift import LIFTED
from onnxrep.proof.errors import CannotRun
from onnxrep.shapes import FOLLOWED, Shapes
from tests import oracle
from tests.measures import macs, nodes, observed
from tests.needless import CHAIN, SUM, share_left
from tests.regions import Case, random_case, random_readers
from tests.strategies import random_region
from tests.tools import RUNTIME, attributes, copy, folded

REGIONS = int(os.environ.get("ONNXREP_REGIONS", "1200")) // 2
START = int(os.environ.get("ONNXREP_REGIONS_START", "0"))
CHUNK = 200
ORACLE_EVERY = 4
ROUNDING = 2.0
"""On images of few pixels, the last window of a stride costs more than its share."""
BORDER = 1.02
"""Work is priced per position; a merged kernel also runs on the border of an image."""
STARTS = range(START, START + REGIONS, CHUNK)


@pytest.mark.parametrize("start", STARTS)
def test_random_regions_bit_for_bit(start):
    changed = compared = 0
    for seed in range(start, start + CHUNK):
        region = random_region(seed)
        feeds = {"x": region.x}
        folds = check(Case(region.model, [feeds]), seed)
        compared += folds is not None
        changed += bool(folds)
    assert compared > 0.9 * CHUNK
    assert changed > 0.9 * compared


@pytest.mark.parametrize("start", STARTS)
def test_random_compositions_bit_for_bit(start):
    changed = compared = 0
    for seed in range(start, start + CHUNK):
        folds = check(random_case(seed), seed)
        compared += folds is not None
        changed += bool(folds)
    assert compared > 0.9 * CHUNK
    assert changed > 0.75 * compared


@pytest.mark.parametrize("start", STARTS[::3])
def test_random_maps_with_several_readers_bit_for_bit(start):
    changed = compared = 0
    for seed in range(start, start + CHUNK):
        folds = check(random_readers(seed), seed)
        compared += folds is not None
        changed += bool(folds)
    assert compared > 0.9 * CHUNK
    assert changed > 0.75 * compared


def check(case: Case, seed: int) -> int | None:
    """Fold a random model and hold it to its promises; return the number of folds, None if it runs at no size."""
    result, folds, _ = folded(case.model)
    ran, largest = 0, None
    for feeds in case.feeds:
        if is_empty_inside(case.model, feeds):
            continue
        try:
            before = run(case.model, feeds)
        except CannotRun:  # the sizes are too small for this model
            continue
        if has_empty_image(case.model, feeds):
            continue
        after = run(result, feeds)
        equal = close if any("_shifted" in e.name for f in folds for e in f.emitted) else np.array_equal
        assert all(map(equal, before, after)), f"seed {seed}"
        if seed % ORACLE_EVERY == 0 and not ran:
            assert all(map(equal, oracle.run(case.model, feeds), after)), f"seed {seed} (oracle)"
        ran += 1
        largest = feeds if largest is None or size(feeds) > size(largest) else largest
    if not ran:
        return None
    assert nodes(result) <= nodes(case.model), f"seed {seed}"
    if folds:
        more, figures = growth(case.model, result, largest)
        if more > BORDER and not case.is_static:
            more, figures = growth(case.model, result, enlarged(largest))
        assert more <= (ROUNDING if case.is_static else BORDER), f"seed {seed}: {figures} multiply-accumulates"
    return len(folds)


def close(old, new) -> bool:
    """Whether two results differ by no more than rounding: a shift divided by a scale is no round number."""
    return old.shape == new.shape and bool(np.max(np.abs(old - new)) <= 1e-6 * max(np.max(np.abs(old)), 1.0))


def size(feeds) -> int:
    """Count the elements of all inputs."""
    return sum(v.size for v in feeds.values())


def run(model, feeds) -> list[np.ndarray]:
    """Run a model without reuse of buffers.

    ONNX infers the named size of a Slice's input for its result, and ONNX Runtime may then reuse a buffer that is too
    large and fail.
    """
    return list(RUNTIME.session(model, "off", reuse_memory=False).run(feeds).values())


def growth(before, after, feeds) -> tuple[float, str]:
    """Return how much more a model works than another, by the count that is kindest, and the counts."""
    old, new = work(before, feeds), work(after, feeds)
    return min(n / max(o, 1) for n, o in zip(new, old, strict=True)), f"{old} -> {new}"


def enlarged(feeds) -> dict[str, np.ndarray]:
    """Return inputs of larger images, of which the border is a small part."""
    return {n: np.tile(v, (1, 1, *(8,) * (v.ndim - 2))) for n, v in feeds.items()}


def work(model, feeds) -> tuple[int, ...]:
    """Count the multiply-accumulates of a model for given inputs."""
    twin = observed(model)
    names = [o.name for o in twin.graph.output]
    return macs(model, feeds | dict(zip(names, run(twin, feeds), strict=True)))


def is_empty_inside(model, feeds) -> bool:
    """Whether some value surely has no pixel: ONNX Runtime 1.31 may crash on such an image."""
    fixed = copy(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            dim.dim_value = size
    scope = Model(fixed, None, LIFTED | FOLLOWED).scopes[0]
    shapes = Shapes(scope, Constants(scope, None, None), onnx.GraphProto(input=fixed.graph.input), None)
    found = [shapes.of(name) for node in fixed.graph.node for name in node.output]
    return any(dim == 0 for shape in found if shape is not None for dim in shape)


def has_empty_image(model, feeds) -> bool:
    """Whether some value inside has no pixel, or a pool's window is larger than its image.

    A Slice that drops more than there is stops at zero; ONNX Runtime rounds the size of such a pool towards zero.
    """
    twin = observed(model, every=True)
    values = feeds | dict(zip([o.name for o in twin.graph.output], run(twin, feeds), strict=True))
    for node in model.graph.node:
        if node.op_type == "AveragePool":
            shape, found = values[node.input[0]].shape[2:], attributes(node)
            axes = len(shape)
            pads = found.get("pads", [0] * 2 * axes)
            extents = [
                d * (k - 1) + 1 for d, k in zip(found.get("dilations", [1] * axes), found["kernel_shape"], strict=True)
            ]
            if any(n + pads[i] + pads[i + axes] < extents[i] for i, n in enumerate(shape)):
                return True
    return any(v.size == 0 for v in values.values())


@pytest.mark.parametrize("kind", [SUM, CHAIN])
def test_nothing_is_refused_without_need(kind):
    count = max(REGIONS // 6, 50)
    left = share_left(kind, range(START, START + count))
    sys.stdout.write(
        f"\n{kind}: {len(left) / count:.2%} of {count} are left as more than one convolution {left[:20]}\n"
    )
    assert not left
