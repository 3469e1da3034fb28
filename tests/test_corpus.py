"""The models of ONNX's own operator tests: nothing crashes or changes, and the twin computes what they compute."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from onnxrep.folding import fold
from onnxrep.pipeline import load
from onnxrep.proof.errors import CannotRun, NoTwin
from onnxrep.proof.reference import session_of_twin
from onnxrep.proof.sessions import Runtime

RUNTIME = Runtime(threads=1)
TRUSTED_LESS = ("test_ai_onnx_ml_tree_ensemble",)


def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return [c for c in collect_testcases(None) if c.model is not None]


@pytest.fixture(scope="module")
def corpus():
    return cases()


def test_nothing_crashes_and_nothing_changes(corpus):
    assert len(corpus) > 1000
    for case in corpus:
        source = load(case.model)
        before = source.model.SerializeToString(deterministic=True)
        folds, _ = fold(source.model, None)
        assert not folds, case.name
        assert source.model.SerializeToString(deterministic=True) == before, case.name


def test_the_twin_computes_the_same(corpus):
    compared = 0
    for case in corpus:
        if case.name.startswith(TRUSTED_LESS):
            continue
        try:
            session = RUNTIME.session(case.model, "off")
            feeds = {i[0]: np.asarray(v) for i, v in zip(session.inputs, case.data_sets[0][0], strict=False)}
            expected = session.run(feeds)
        except (CannotRun, ValueError):
            continue  # ONNX Runtime has no kernel for it
        floats = {k: v for k, v in expected.items() if getattr(v, "dtype", np.dtype(int)).kind == "f"}
        if not floats:
            continue
        try:
            twin, _ = session_of_twin(case.model, None, RUNTIME, {k: v.shape for k, v in feeds.items()})
        except NoTwin as error:
            pytest.fail(f"{case.name}: {error}")
        wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
        found = twin.run(wide)
        for name, value in floats.items():
            tolerance = 2e-3 if value.dtype == np.float16 else 1e-4
            close = np.allclose(value.astype(np.float64), found[name], tolerance, tolerance / 10, equal_nan=True)
            assert close, case.name
        compared += 1
    assert compared > 700
