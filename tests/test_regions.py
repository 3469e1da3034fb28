"""Random linear regions: what folds computes the same bits, and what the naive oracle computes."""

from __future__ import annotations

import os

import numpy as np
import pytest

from onnxrep.proof.errors import CannotRun
from tests import oracle
from tests.strategies import random_region
from tests.tools import folded, run

REGIONS = int(os.environ.get("ONNXREP_REGIONS", "2400"))
START = int(os.environ.get("ONNXREP_REGIONS_START", "0"))
CHUNK = 200
ORACLE_EVERY = 4


@pytest.mark.parametrize("start", range(START, START + REGIONS, CHUNK))
def test_random_regions_bit_for_bit(start):
    changed = compared = 0
    for seed in range(start, start + CHUNK):
        region = random_region(seed)
        feeds = {"x": region.x}
        try:
            (before,) = run(region.model, feeds)
        except CannotRun:  # the random sizes are too small for this model
            continue
        result, folds, _ = folded(region.model)
        (after,) = run(result, feeds)
        assert np.array_equal(before, after), f"seed {seed}"
        if seed % ORACLE_EVERY == 0:
            assert np.array_equal(oracle.run(region.model, feeds)[0], after), f"seed {seed} (oracle)"
        compared += 1
        changed += bool(folds)
    assert compared > 0.9 * CHUNK
    assert changed > 0.9 * compared
