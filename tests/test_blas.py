"""Threads of matrix products: one while folding, then as many as before."""

from __future__ import annotations

import pytest
import threadpoolctl

from models.net import Net
from onnxrep import Options, blas, folding, optimize


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    """An interpreter in which nobody has said how many threads there are to be."""
    for name in blas.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        yield


def threads() -> set[int]:
    return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}


def block():
    net = Net(0)
    x = net.input((1, 4, 6, 6))
    return net.model(net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1))))


def test_folding_takes_one_thread_and_gives_the_others_back(monkeypatch):
    seen, certify = [], folding.certify
    monkeypatch.setattr(folding, "certify", lambda claims: seen.append(threads()) or certify(claims))
    assert threads() == {2}
    assert optimize(block(), options=Options(verify=False)).status == "folded"
    assert set().union(*seen) == {1}
    assert threads() == {2}


def test_they_come_back_after_an_error(monkeypatch):
    monkeypatch.setattr(folding, "certify", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimize(block(), options=Options(verify=False))
    assert threads() == {2}


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv(blas.VARIABLES[0], "3")
    with blas.single():
        assert threads() == {2}
    assert threads() == {2}
