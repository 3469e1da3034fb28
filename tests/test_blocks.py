"""The five systems that must be replaced completely: every variation becomes one convolution per block."""

from __future__ import annotations

import numpy as np
import pytest

from models.blocks import Block, count, seed_blocks
from onnxrep import optimize
from tests.tools import codes, folded, run

BLOCKS = list(seed_blocks())


def compare(block: Block, model, result, exact: bool):
    """Both models agree at all of the block's sizes."""
    for seed, shape in enumerate(block.input_shapes()):
        rng = np.random.default_rng(seed)
        x = rng.integers(-3, 4, shape) if exact else rng.standard_normal(shape)
        feeds = {"x": x.astype(np.float32)}
        old, new = run(model, feeds)[0], run(result, feeds)[0]
        assert old.shape == new.shape
        if exact:
            assert np.array_equal(old, new), shape
        else:
            assert np.max(np.abs(old - new), initial=0) <= 2e-5 * max(np.max(np.abs(old), initial=0), 1.0), shape


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.name)
@pytest.mark.parametrize("kept", [True, False], ids=["bn", "folded"])
def test_block_becomes_what_it_must(block: Block, kept: bool):
    model = block.model(folded=not kept)
    result, _, refusals = folded(model)
    assert count(result) == dict(block.left)
    assert block.refused <= codes(refusals)
    compare(block, model, result, exact=False)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.exact], ids=lambda b: b.name)
def test_block_is_exact_where_arithmetic_is(block: Block):
    model = block.model(exact=True)
    compare(block, model, folded(model)[0], exact=True)


@pytest.mark.parametrize("block", BLOCKS[::9], ids=lambda b: b.name)
def test_block_is_verified(block: Block):
    result = optimize(block.model())
    assert result.status == "folded"
    assert result.report.verification.verdict == "verified"
