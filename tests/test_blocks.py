"""The five systems that must be replaced completely: every variation becomes one convolution per block."""

from __future__ import annotations

import numpy as np
import pytest

from models.blocks import Block, count, seed_blocks
from onnxrep import optimize
from tests.tools import assert_same, folded, run

BLOCKS = list(seed_blocks())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.name)
@pytest.mark.parametrize("kept", [True, False], ids=["bn", "folded"])
def test_block_becomes_one_convolution(block: Block, kept: bool):
    model = block.model(folded=not kept, dynamic=True)
    result, _, _ = folded(model)
    assert count(result) == {"Conv": block.convs, **block.others}
    for shape in ((1, 1), (2, 5), (2, 8)):
        x = np.random.default_rng(0).standard_normal((shape[0], block.channels, *[shape[1]] * block.axes))
        feeds = {"x": x.astype(np.float32)}
        old, new = run(model, feeds)[0], run(result, feeds)[0]
        assert np.max(np.abs(old - new)) <= 1e-5 * max(np.max(np.abs(old)), 1.0)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "Sigmoid" not in b.others], ids=lambda b: b.name)
def test_block_is_exact_where_arithmetic_is(block: Block):
    model = block.model(exact=True, dynamic=True)
    result, _, _ = folded(model)
    assert_same(model, result, (1, 2, 5, 8))


@pytest.mark.parametrize("block", BLOCKS[::9], ids=lambda b: b.name)
def test_block_is_verified(block: Block):
    result = optimize(block.model(dynamic=True))
    assert result.status == "folded"
    assert result.report.verification.verdict == "verified"
