"""The catalogue of blocks: each becomes what it must, for the right reasons, and computes what it did."""

from __future__ import annotations

import numpy as np
import pytest

from models.blocks import Block, catalogue, count, seed_blocks
from models.blocks.table import PAGE, page
from onnxrep import optimize
from tests.tools import codes, folded, run

BLOCKS = list(catalogue())


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


@pytest.mark.parametrize("block", BLOCKS[::12], ids=lambda b: b.name)
def test_block_is_verified(block: Block):
    result = optimize(block.model())
    assert result.status in ("folded", "unchanged")
    if result.status == "folded":
        assert result.report.verification.verdict == "verified"


def test_the_seeds_become_one_convolution_each():
    assert all(b.left["Conv"] == (3 if "with SE" in b.variation else 1) for b in seed_blocks())


def test_names_are_unique():
    names = [b.name for b in BLOCKS]
    assert len(set(names)) == len(names)


def test_the_page_is_up_to_date():
    """``make blocks`` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()
