"""Threads of matrix products: one while folding, then as many as before."""

from __future__ import annotations

import threading

import pytest
import threadpoolctl

from models.net import Net
from onnxrep import Options, blas, folding, optimize


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch):
    """An environment that does not say how many threads there are to be."""
    for name in blas.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _two_threads():
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        yield


def threads() -> set[int]:
    return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}


def block():
    net = Net(0)
    x = net.input((1, 4, 6, 6))
    return net.model(net.relu(net.add(net.conv_bn(x, 4, 3), net.conv_bn(x, 4, 1))))


@pytest.mark.usefixtures("_two_threads")
def test_folding_takes_one_thread_and_gives_the_others_back(monkeypatch):
    seen, certify = [], folding.certify
    monkeypatch.setattr(folding, "certify", lambda claims: seen.append(threads()) or certify(claims))
    assert threads() == {2}
    assert optimize(block(), options=Options(verify=False)).status == "folded"
    assert set().union(*seen) == {1}
    assert threads() == {2}


@pytest.mark.usefixtures("_two_threads")
def test_they_come_back_after_an_error(monkeypatch):
    monkeypatch.setattr(folding, "certify", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimize(block(), options=Options(verify=False))
    assert threads() == {2}


@pytest.mark.usefixtures("_two_threads")
def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv(blas.VARIABLES[0], "3")
    with blas.single():
        assert threads() == {2}
    assert threads() == {2}


def test_two_that_overlap_leave_as_many_threads_as_there_were():
    """The one that begins first ends first. No limit is set here: only the thread that set one could change it."""
    before, inside, left = threads(), threading.Event(), threading.Event()

    def second():
        with blas.single():
            inside.set()
            assert left.wait(60)

    other = threading.Thread(target=second)
    with blas.single():
        assert threads() == {1}
        other.start()
        assert inside.wait(60)
    left.set()
    other.join()
    assert threads() == before
    with blas.single():
        assert threads() == {1}
    assert threads() == before
